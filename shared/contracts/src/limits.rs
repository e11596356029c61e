//! The limits of one user, which administrators set.

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, MilliCpu};

/// The most requests a minute of one user.
pub const MAX_RATE: u64 = 1_000_000;
/// The most sessions of one user.
pub const MAX_SESSIONS: u64 = 1_000_000;

/// The limits of one user. An absent one is the limit of the deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserLimits {
    /// Environments at a time; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environments: Option<u64>,
    /// CPU of the environments together; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<MilliCpu>,
    /// Memory of the environments together; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Storage of the environments together; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Bytes>,
    /// Commands, terminals and streams that are open on one gateway, 1 to [`MAX_SESSIONS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u64>,
    #[serde(default, skip_serializing_if = "UserRates::is_default")]
    pub rates: UserRates,
}

/// Requests a minute of one user, each 1 to [`MAX_RATE`]. An absent one is the limit of the
/// deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRates {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other: Option<u64>,
}

impl UserLimits {
    /// Whether every limit is that of the deployment.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl UserRates {
    /// Whether every rate is that of the deployment.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn absent_limits_are_not_written_and_present_ones_are_read_back() {
        assert_eq!(json!(UserLimits::default()), json!({}));
        let limits = UserLimits {
            cpu: Some(MilliCpu(0)),
            rates: UserRates {
                exec: Some(7),
                ..UserRates::default()
            },
            ..UserLimits::default()
        };
        let text = json!(limits);
        assert_eq!(text, json!({"cpu": 0, "rates": {"exec": 7}}));
        assert_eq!(serde_json::from_value::<UserLimits>(text).unwrap(), limits);
    }
}
