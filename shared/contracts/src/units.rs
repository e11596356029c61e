//! Quantities with the unit in their type, in Kubernetes' notation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Thousandths of a CPU core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MilliCpu(pub u64);

/// Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("`{0}` is not a Kubernetes quantity such as \"500m\", \"0.5\" or \"512Mi\"")]
    Syntax(String),
    #[error("`{0}` is not greater than zero")]
    NotPositive(String),
    #[error("`{0}` is too large")]
    TooLarge(String),
}

/// The suffixes of Kubernetes' `resource.Quantity` as powers of ten or two.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let (numerator, denominator) = match suffix {
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "" => (1, 1),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10u128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    };
    Some((numerator, denominator))
}

/// Parses a quantity into units of `1 / per_unit`. Rounds up, as Kubernetes does.
fn parse(text: &str, per_unit: u128) -> Result<u64, QuantityError> {
    let shown = || text.chars().take(40).collect::<String>();
    let syntax = || QuantityError::Syntax(shown());
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let end = unsigned
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(if text.starts_with('-') && text.len() > 1 {
            QuantityError::NotPositive(shown())
        } else {
            syntax()
        });
    }
    if whole.len() + fraction.len() > 30 {
        return Err(QuantityError::TooLarge(shown()));
    }
    let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| syntax())?;
    let decimals = 10u128.pow(u32::try_from(fraction.len()).unwrap_or(u32::MAX));
    let (numerator, denominator) = scale(suffix).ok_or_else(syntax)?;
    let value = digits
        .checked_mul(numerator)
        .and_then(|v| v.checked_mul(per_unit))
        .zip(decimals.checked_mul(denominator))
        .map(|(v, d)| v.div_ceil(d))
        .and_then(|v| u64::try_from(v).ok())
        .filter(|v| *v <= i64::MAX as u64)
        .ok_or_else(|| QuantityError::TooLarge(shown()))?;
    if value == 0 {
        return Err(QuantityError::NotPositive(shown()));
    }
    Ok(value)
}

impl FromStr for MilliCpu {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse(text, 1_000).map(Self)
    }
}

impl FromStr for Bytes {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse(text, 1).map(Self)
    }
}

/// `500m`, or `2` for whole cores.
impl fmt::Display for MilliCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            milli if milli % 1_000 == 0 => write!(f, "{}", milli / 1_000),
            milli => write!(f, "{milli}m"),
        }
    }
}

/// The largest binary unit that divides it: `512Mi`, `1500Ki`, `1000`.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (suffix, shift) in [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)] {
            let unit = 1u64 << shift;
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{suffix}", self.0 / unit);
            }
        }
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_quantities_of_every_form_parse() {
        for (text, milli) in [
            ("500m", 500),
            ("0.1", 100),
            (".5", 500),
            ("1.", 1_000),
            ("1", 1_000),
            ("2k", 2_000_000),
            ("1e3", 1_000_000),
            ("100u", 1),
            ("+1", 1_000),
        ] {
            assert_eq!(text.parse::<MilliCpu>(), Ok(MilliCpu(milli)), "{text}");
        }
        for (text, bytes) in [
            ("512Mi", 512 << 20),
            ("0.125Gi", 128 << 20),
            ("1G", 1_000_000_000),
            ("128974848", 128_974_848),
            ("129e6", 129_000_000),
            ("1E", 1_000_000_000_000_000_000),
            ("1500m", 2),
        ] {
            assert_eq!(text.parse::<Bytes>(), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn invalid_quantities_are_rejected() {
        for text in ["", "m", "abc", "1.2.3", "1 Gi", "1gi", "0x10", "1e", "٣"] {
            assert!(
                matches!(text.parse::<Bytes>(), Err(QuantityError::Syntax(_))),
                "{text}"
            );
        }
        for text in ["0", "0m", "-1", "-500m"] {
            assert!(
                matches!(text.parse::<MilliCpu>(), Err(QuantityError::NotPositive(_))),
                "{text}"
            );
        }
        for text in ["16Ei", "1e30", "99999999999999999999999999999999"] {
            assert!(
                matches!(text.parse::<Bytes>(), Err(QuantityError::TooLarge(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn quantity_displays_in_its_largest_whole_unit() {
        assert_eq!(MilliCpu(500).to_string(), "500m");
        assert_eq!(MilliCpu(24_000).to_string(), "24");
        assert_eq!(Bytes(48 << 30).to_string(), "48Gi");
        assert_eq!(Bytes(1_000).to_string(), "1000");
    }
}
