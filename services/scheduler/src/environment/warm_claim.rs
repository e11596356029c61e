//! The claim of a warm box by an environment. Pure.
//!
//! * I1. The environment takes over the id of the box. Everything that is derived from the id (token,
//!   hostname, namespace) is therefore the box's, and no other environment has had it.
//! * I2. The generation of a claim is above that of the start of the warm box, so that a slow replica
//!   cannot start the box again without the claim.

use std::net::SocketAddr;

/// The generation with which warm boxes are started.
pub const WARM_GENERATION: i64 = 1;
/// The generation of an environment that has claimed a warm box.
pub const CLAIM_GENERATION: i64 = WARM_GENERATION + 1;

/// What is left to do for a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarmClaim {
    /// The box at this address must be configured.
    Pending { address: SocketAddr },
    /// The box is configured, and its cluster must record it.
    Unrecorded,
}

const PENDING: &str = "pending";
const UNRECORDED: &str = "unrecorded";

impl WarmClaim {
    /// The value of the column `claim`.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Pending { .. } => PENDING,
            Self::Unrecorded => UNRECORDED,
        }
    }

    /// The value of the column `claim_address`.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Pending { address } => Some(*address),
            Self::Unrecorded => None,
        }
    }

    /// Reads the columns.
    ///
    /// # Errors
    /// The problem, when this version cannot read them.
    pub fn from_columns(
        claim: Option<&str>,
        address: Option<&str>,
    ) -> Result<Option<Self>, String> {
        match (claim, address) {
            (None, _) => Ok(None),
            (Some(UNRECORDED), _) => Ok(Some(Self::Unrecorded)),
            (Some(PENDING), Some(address)) => match address.parse() {
                Ok(address) => Ok(Some(Self::Pending { address })),
                Err(_) => Err(format!("`{address}` is not an address")),
            },
            (Some(claim), _) => Err(format!("`{claim}` is not a claim with its address")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claim_is_read_as_it_was_written() {
        let address = "10.0.0.2:10777".parse().unwrap();
        for claim in [WarmClaim::Pending { address }, WarmClaim::Unrecorded] {
            let stored = claim.address().map(|address| address.to_string());
            let read = WarmClaim::from_columns(Some(claim.as_str()), stored.as_deref());
            assert_eq!(read, Ok(Some(claim)));
        }
        assert_eq!(WarmClaim::from_columns(None, None), Ok(None));
    }

    #[test]
    fn claim_of_a_newer_version_is_refused() {
        for (claim, address) in [
            ("pending", None),
            ("pending", Some("box")),
            ("paused", Some("10.0.0.2:1")),
        ] {
            assert!(WarmClaim::from_columns(Some(claim), address).is_err());
        }
    }
}
