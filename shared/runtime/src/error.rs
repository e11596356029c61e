//! What a driver can fail with.

use std::time::Duration;

/// The spec can never run here; becomes a 400 that names the field.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {message}")]
pub struct PreflightError {
    /// As in the request: `isolation.runtime_class`.
    pub field: &'static str,
    pub message: String,
}

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The cluster cannot be reached or does not answer: try again later.
    #[error("the cluster does not answer: {0}")]
    Unavailable(String),
    #[error("the cluster did not finish within {0:?}")]
    Deadline(Duration),
    /// A newer generation is in force.
    #[error("generation {held} is in force, {given} is older")]
    Fenced { given: i64, held: i64 },
    /// Nothing answers at a box's address.
    #[error("the box cannot be reached: {0}")]
    Unreachable(String),
    /// Anything else the cluster said; retried with backoff.
    #[error("{operation} failed: {message}")]
    Cluster {
        operation: &'static str,
        message: String,
    },
}
