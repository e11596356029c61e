//! The bounds of a box on what it shares with other boxes, as the configuration of every driver has
//! them: a number, a Kubernetes quantity, or `none`.

use agentbox_contracts::units::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// Bits per second that a box may send, and as many that it may receive.
#[must_use]
pub const fn network_bandwidth() -> Option<u64> {
    Some(1_000_000_000)
}

/// Open connections of a box in the machine's connection table.
#[must_use]
pub const fn network_connections() -> Option<u64> {
    Some(4_096)
}

/// Reads a bound: a number, a Kubernetes quantity such as `100M`, or `none`.
///
/// # Errors
/// When the value is none of these.
pub fn quantity_or_none<'de, D: Deserializer<'de>>(value: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected a quantity, such as \"100M\", or \"none\""
    )]
    enum Value {
        Number(u64),
        Text(String),
    }
    match Value::deserialize(value)? {
        Value::Number(number) => Ok(Some(number)),
        Value::Text(text) if text == "none" => Ok(None),
        Value::Text(text) => match text.parse::<Bytes>() {
            Ok(quantity) => Ok(Some(quantity.0)),
            Err(error) => Err(D::Error::custom(error)),
        },
    }
}

/// A bound is out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: must be `none`, or {min} to {max}, is {value}")]
pub struct BoundError {
    pub field: &'static str,
    pub min: u64,
    pub max: u64,
    pub value: u64,
}

fn check(field: &'static str, value: Option<u64>, min: u64, max: u64) -> Result<(), BoundError> {
    match value {
        Some(value) if !(min..=max).contains(&value) => Err(BoundError {
            field,
            min,
            max,
            value,
        }),
        _ => Ok(()),
    }
}

/// # Errors
/// When the bandwidth is below 1 Mbit/s, which one large packet exceeds, or above 100 Gbit/s.
pub fn check_bandwidth(value: Option<u64>) -> Result<(), BoundError> {
    check("network_bandwidth", value, 1_000_000, 100_000_000_000)
}

/// # Errors
/// When there are too few connections for an ordinary program, or more than a table has.
pub fn check_connections(value: Option<u64>) -> Result<(), BoundError> {
    check("network_connections", value, 16, 1 << 24)
}

/// # Errors
/// When the bandwidth is below 1 MiB/s or above 1 TiB/s.
pub fn check_disk_bandwidth(value: Option<u64>) -> Result<(), BoundError> {
    check("disk_bandwidth", value, 1 << 20, 1 << 40)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Config {
        #[serde(default = "network_bandwidth", deserialize_with = "quantity_or_none")]
        network_bandwidth: Option<u64>,
    }

    fn read(json: &str) -> Result<Option<u64>, String> {
        let config: Config = serde_json::from_str(json).map_err(|error| error.to_string())?;
        Ok(config.network_bandwidth)
    }

    #[test]
    fn bound_is_a_number_a_quantity_or_none() {
        for (json, expected) in [
            ("{}", Some(1_000_000_000)),
            (r#"{"network_bandwidth": "none"}"#, None),
            (r#"{"network_bandwidth": "100M"}"#, Some(100_000_000)),
            (r#"{"network_bandwidth": "1.5G"}"#, Some(1_500_000_000)),
            (r#"{"network_bandwidth": 5000000}"#, Some(5_000_000)),
        ] {
            assert_eq!(read(json), Ok(expected), "{json}");
        }
        for json in [
            r#"{"network_bandwidth": "fast"}"#,
            r#"{"network_bandwidth": "-1M"}"#,
            r#"{"network_bandwidth": null}"#,
            r#"{"network_bandwidth": []}"#,
        ] {
            assert!(read(json).is_err(), "{json}");
        }
    }

    #[test]
    fn bound_out_of_its_range_is_refused() {
        for (value, is_valid) in [
            (None, true),
            (Some(999_999), false),
            (Some(1_000_000), true),
            (Some(100_000_000_001), false),
        ] {
            assert_eq!(check_bandwidth(value).is_ok(), is_valid, "{value:?}");
        }
        assert_eq!(
            check_connections(Some(3)).unwrap_err().to_string(),
            "network_connections: must be `none`, or 16 to 16777216, is 3"
        );
    }
}
