//! The errors of a driver.

use std::time::Duration;

/// The cluster can never run the spec. It becomes a 400 that names the field.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {message}")]
pub struct PreflightError {
    /// The field, as in the request: `isolation.runtime_class`.
    pub field: &'static str,
    pub message: String,
}

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The cluster cannot be reached or does not answer. A later call may succeed.
    #[error("the cluster does not answer: {0}")]
    Unavailable(String),
    #[error("the cluster did not finish within {0:?}")]
    Deadline(Duration),
    /// A newer generation is in force.
    #[error("generation {given} is older than the current generation {held}")]
    Fenced { given: i64, held: i64 },
    /// Nothing answers at a box's address.
    #[error("the box cannot be reached: {0}")]
    Unreachable(String),
    /// The box cannot be claimed for this spec: it is not warm, it has ended, its claim differs, or the
    /// driver cannot give it all of the spec. Nothing of the spec runs in it.
    #[error("the box cannot be claimed: {0}")]
    NotClaimable(String),
    /// Any other error of the cluster; the caller retries with backoff.
    #[error("{operation} failed: {message}")]
    Cluster {
        operation: &'static str,
        message: String,
    },
}

/// The operation of a [`RuntimeError::Cluster`] whose message is written for users.
pub const IMAGE_PULL: &str = "image pull";

impl RuntimeError {
    /// The message for users. It leaves the cluster's own text out, which may contain paths and
    /// addresses of the server.
    #[must_use]
    pub fn user_message(&self) -> String {
        match self {
            Self::Unavailable(_) => "the cluster does not answer".to_owned(),
            Self::Unreachable(_) => "the box cannot be reached".to_owned(),
            Self::NotClaimable(_) => "the box cannot be claimed".to_owned(),
            Self::Cluster { operation, .. } if *operation != IMAGE_PULL => {
                format!("{operation} failed")
            }
            Self::Cluster { .. } | Self::Deadline(_) | Self::Fenced { .. } => self.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_message_contains_no_text_of_the_cluster() {
        let cluster = |operation| RuntimeError::Cluster {
            operation,
            message: "open /var/lib/x".to_owned(),
        };
        for (error, message) in [
            (cluster("state file"), "state file failed"),
            (cluster(IMAGE_PULL), "image pull failed: open /var/lib/x"),
            (
                RuntimeError::Unavailable("10.0.0.1: refused".to_owned()),
                "the cluster does not answer",
            ),
            (
                RuntimeError::Unreachable("10.0.0.1:1".to_owned()),
                "the box cannot be reached",
            ),
            (
                RuntimeError::NotClaimable("10.0.0.1:1".to_owned()),
                "the box cannot be claimed",
            ),
        ] {
            assert_eq!(error.user_message(), message);
        }
    }
}
