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
    /// Any other error of the cluster; the caller retries with backoff.
    #[error("{operation} failed: {message}")]
    Cluster {
        operation: &'static str,
        message: String,
    },
}
