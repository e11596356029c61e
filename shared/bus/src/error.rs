//! Errors of the bus itself. The error that a service replies with is a contract [`Error`].
//!
//! [`Error`]: agentbox_contracts::error::Error

use std::time::Duration;

/// An error of the NATS client. `downcast_ref` gives its concrete type, which has a kind.
type Source = Box<dyn std::error::Error + Send + Sync>;

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
    /// NATS refused an operation, or did not answer.
    #[error("{operation} failed")]
    Nats {
        operation: &'static str,
        #[source]
        source: Source,
    },
    #[error("a message is not the JSON that the contract defines")]
    Malformed(#[from] serde_json::Error),
}

impl BusError {
    /// For `map_err`: names the operation and keeps the error of NATS as the source.
    pub(crate) fn nats<E: Into<Source>>(operation: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Nats {
            operation,
            source: error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::ErrorChain;
    use async_nats::jetstream::context::{PublishError, PublishErrorKind};

    use super::*;

    #[test]
    fn nats_error_keeps_source_and_kind() {
        let error = BusError::nats("publishing an event")(PublishError::new(
            PublishErrorKind::StreamNotFound,
        ));
        assert_eq!(
            ErrorChain(&error).to_string(),
            "publishing an event failed: no stream found for given subject"
        );
        let BusError::Nats { source, .. } = &error else {
            panic!("{error:?}");
        };
        let kind = source.downcast_ref().map(PublishError::kind);
        assert_eq!(kind, Some(PublishErrorKind::StreamNotFound));
    }
}
