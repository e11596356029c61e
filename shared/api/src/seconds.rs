//! Durations in seconds.

use std::fmt;
use std::time::Duration;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// A number of seconds, which may have a fraction.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct Seconds(pub f64);

impl Seconds {
    /// `None` for a negative number, and for one that is too large for a [`Duration`].
    #[must_use]
    pub fn duration(self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.0).ok()
    }

    #[must_use]
    pub fn from_millis(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds).as_secs_f64())
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

struct SecondsVisitor;

impl Visitor<'_> for SecondsVisitor {
    type Value = Seconds;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of seconds")
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Seconds, E> {
        Ok(Seconds(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Seconds, E> {
        // Above 2^53 the nearest number that a double represents.
        Ok(Seconds(value as f64))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Seconds, E> {
        Ok(Seconds(value as f64))
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_f64(SecondsVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_in_any_notation_is_read() {
        for (json, milliseconds) in [("30", 30_000), ("0.25", 250), ("3e1", 30_000), ("0", 0)] {
            let seconds: Seconds = serde_json::from_str(json).unwrap();
            let expected = Duration::from_millis(milliseconds);
            assert_eq!(seconds.duration(), Some(expected), "{json}");
            assert_eq!(Seconds::from_millis(milliseconds), seconds, "{json}");
        }
        let negative: Seconds = serde_json::from_str("-1").unwrap();
        assert_eq!(negative.duration(), None);
        let error = serde_json::from_str::<Seconds>("true").unwrap_err();
        assert!(error.to_string().contains("a number of seconds"), "{error}");
    }
}
