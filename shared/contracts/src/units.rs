//! Quantities with the unit in their type, in Kubernetes' notation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::shortened;

/// Thousandths of a CPU core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MilliCpu(pub u64);

/// Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// The longest quantity, in bytes.
const MAX_LENGTH: usize = 32;
/// The most digits of an exponent.
const MAX_EXPONENT_DIGITS: usize = 2;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("`{0}` is not a Kubernetes quantity such as \"500m\", \"0.5\" or \"512Mi\"")]
    Syntax(String),
    #[error("`{0}` has more than {max} bytes", max = MAX_LENGTH)]
    TooLong(String),
    #[error("`{0}` is not greater than zero")]
    NotPositive(String),
    #[error("`{0}` is too large")]
    TooLarge(String),
}

/// The suffixes of Kubernetes' `resource.Quantity`, as powers of ten and of two.
fn scale(suffix: &str) -> Option<(i32, u32)> {
    Some(match suffix {
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "" => (0, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            if exponent.trim_start_matches(['+', '-']).len() > MAX_EXPONENT_DIGITS {
                return None;
            }
            (exponent.parse().ok()?, 0)
        }
    })
}

/// Parses a quantity into units of `1 / per_unit`. Rounds up, as Kubernetes does.
fn parse(text: &str, per_unit: u128) -> Result<u64, QuantityError> {
    let shown = || shortened(text);
    let syntax = || QuantityError::Syntax(shown());
    if text.len() > MAX_LENGTH {
        return Err(QuantityError::TooLong(shown()));
    }
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
    let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| syntax())?;
    let (ten, two) = scale(suffix).ok_or_else(syntax)?;
    if digits == 0 {
        return Err(QuantityError::NotPositive(shown()));
    }
    let exponent = ten - i32::try_from(fraction.len()).unwrap_or(i32::MAX);
    let units = digits
        .checked_mul(per_unit)
        .and_then(|v| v.checked_mul(1u128 << two));
    let value = match (units, 10u128.checked_pow(exponent.unsigned_abs())) {
        (Some(units), Some(power)) if exponent < 0 => Some(units.div_ceil(power)),
        // The power is larger than any number of units: a part of one unit.
        (Some(_), None) if exponent < 0 => Some(1),
        (Some(units), Some(power)) => units.checked_mul(power),
        _ => None,
    };
    value
        .and_then(|v| u64::try_from(v).ok())
        .filter(|v| *v <= i64::MAX as u64)
        .ok_or_else(|| QuantityError::TooLarge(shown()))
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
            ("1e-99", 1),
            ("0.0000000000000000000000001", 1),
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
        for text in [
            "", "m", "abc", "1.2.3", "1 Gi", "1gi", "0x10", "1e", "٣", "1e001", "1e+-1", ".",
        ] {
            assert!(
                matches!(text.parse::<Bytes>(), Err(QuantityError::Syntax(_))),
                "{text}"
            );
        }
        for text in ["0", "0m", "-1", "-500m", "0e99", "0.00"] {
            assert!(
                matches!(text.parse::<MilliCpu>(), Err(QuantityError::NotPositive(_))),
                "{text}"
            );
        }
        for text in ["16Ei", "1e30", "1e99", "99999999999999999999999999999999"] {
            assert!(
                matches!(text.parse::<Bytes>(), Err(QuantityError::TooLarge(_))),
                "{text}"
            );
        }
        let long = format!("{}1", "0".repeat(MAX_LENGTH));
        let error = long.parse::<Bytes>().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("`{long}` has more than 32 bytes")
        );
    }

    #[test]
    fn quantity_displays_in_its_largest_whole_unit() {
        assert_eq!(MilliCpu(500).to_string(), "500m");
        assert_eq!(MilliCpu(24_000).to_string(), "24");
        assert_eq!(Bytes(48 << 30).to_string(), "48Gi");
        assert_eq!(Bytes(1_000).to_string(), "1000");
    }
}
