//! The errors of CRI calls. Callers handle each kind differently.

use std::time::Duration;

use agentbox_runtime::RuntimeError;
use tonic::{Code, Status};

/// A CRI call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    #[error("{operation} did not finish within {after:?}")]
    Deadline {
        operation: &'static str,
        after: Duration,
    },
    /// containerd is down, or its connection broke.
    #[error("{operation}: containerd does not answer: {message}")]
    Unavailable {
        operation: &'static str,
        message: String,
    },
    #[error("{operation}: {message}")]
    Refused {
        operation: &'static str,
        code: Code,
        message: String,
    },
}

impl CriError {
    pub(super) fn from_status(operation: &'static str, status: &Status) -> Self {
        let message = status.message().to_owned();
        // A broken connection has the code UNKNOWN and a source, which an answer never has. Only
        // the message shows that containerd is still starting.
        let is_broken = std::error::Error::source(status).is_some();
        let is_starting = message.contains("not initialized yet");
        match status.code() {
            Code::Unavailable | Code::Cancelled => Self::Unavailable { operation, message },
            _ if is_broken || is_starting => Self::Unavailable { operation, message },
            code => Self::Refused {
                operation,
                code,
                message,
            },
        }
    }

    /// containerd's message.
    pub fn message(&self) -> &str {
        match self {
            Self::Deadline { .. } => "deadline exceeded",
            Self::Unavailable { message, .. } | Self::Refused { message, .. } => message,
        }
    }

    /// Whether another call is still changing the object.
    pub(super) fn is_busy(&self) -> bool {
        let message = self.message();
        ["starting state", "removing state", "is already in removing"]
            .iter()
            .any(|state| message.contains(state))
    }

    /// Whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        // containerd 1.6 answers UNKNOWN for some missing objects.
        match self {
            Self::Refused {
                code: Code::NotFound,
                ..
            } => true,
            Self::Refused {
                code: Code::Unknown,
                message,
                ..
            } => message.ends_with("not found"),
            _ => false,
        }
    }
}

impl From<CriError> for RuntimeError {
    fn from(error: CriError) -> Self {
        match error {
            CriError::Deadline { after, .. } => Self::Deadline(after),
            CriError::Unavailable { message, .. } => Self::Unavailable(message),
            CriError::Refused {
                operation, message, ..
            } => Self::Cluster { operation, message },
        }
    }
}

/// Turns a missing object into success, for removals.
pub(super) fn ignore_not_found(outcome: Result<(), CriError>) -> Result<(), CriError> {
    match outcome {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}
