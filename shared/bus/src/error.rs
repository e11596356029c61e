//! What the bus itself can fail with.

use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum BusError {
    #[error("cannot connect to NATS at {url}")]
    Connect {
        url: String,
        #[source]
        source: async_nats::ConnectError,
    },
    #[error("NATS is not connected")]
    Disconnected,
    #[error("NATS did not answer within {0:?}")]
    Deadline(Duration),
    #[error("a message of {size} bytes is over the bus's limit of {limit}")]
    TooLarge { size: usize, limit: usize },
    /// What NATS answered to an operation of ours.
    #[error("{operation} failed: {message}")]
    Nats {
        operation: &'static str,
        message: String,
    },
    #[error("a stored message cannot be read: {0}")]
    Malformed(String),
}

impl BusError {
    /// For `map_err`: names the operation, keeps what NATS said.
    pub(crate) fn nats<E: std::fmt::Display>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Nats {
            operation,
            message: error.to_string(),
        }
    }
}
