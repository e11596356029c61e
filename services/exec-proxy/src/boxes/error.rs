//! Errors between exec-proxy and a box.
//!
//! Callers must distinguish "nothing was started" ([`BoxError::Unreachable`],
//! [`BoxError::Busy`]) from "a command was started and its end is unknown"
//! ([`BoxError::Lost`]).

use std::error::Error as _;
use std::io;

use agentbox_box_protocol::ERROR_CODE_METADATA;
use agentbox_box_protocol::client::ConnectError;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_runtime::RuntimeError;
use tonic::{Code, Status};

/// How the message of a status begins that tonic makes here, for a message over this client's limit.
const TOO_LONG: &str = "Error, decoded message length too large";
/// The most bytes of a message from a box that a caller receives.
const MAX_TEXT: usize = 8 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum BoxError {
    /// Nothing listens at the box's address: the box has ended, or is not started yet.
    #[error("the box cannot be reached: {0}")]
    Unreachable(String),
    /// The cluster, or a box that accepted the connection, does not answer in time.
    #[error("the cluster does not answer: {0}")]
    Cluster(String),
    #[error("the box is at its limit of {0} sessions")]
    Busy(usize),
    /// The connection was lost during the call.
    #[error("the box was lost: {0}")]
    Lost(String),
    /// boxd returned an error. Its message may contain user data and is not logged.
    #[error("boxd refused: {:?}", .0.code())]
    Refused(Box<Status>),
    /// More than boxd keeps: boxd was replaced or is faulty.
    #[error("the box sent more than {0} bytes of kept output")]
    TooMuchOutput(usize),
    /// boxd is replaced or faulty.
    #[error("the box sent a message that boxd does not send: {0}")]
    Invalid(&'static str),
    /// The token cannot be derived or sent: the secret is wrong.
    #[error("the box's token cannot be used: {0}")]
    Credential(String),
}

impl BoxError {
    /// From a failed call: [`BoxError::Lost`] when the connection failed, [`BoxError::Invalid`] for
    /// a message that is too long, else [`BoxError::Refused`].
    #[must_use]
    pub fn from_status(status: Status) -> Self {
        if status.code() == Code::OutOfRange && status.message().starts_with(TOO_LONG) {
            Self::Invalid("a message that is too long")
        } else if is_transport(&status) {
            Self::Lost(deepest_cause(&status))
        } else {
            Self::Refused(Box::new(status))
        }
    }

    #[must_use]
    pub fn is_refused_with(&self, code: Code) -> bool {
        matches!(self, Self::Refused(status) if status.code() == code)
    }

    /// The error for the caller, without details that only the log has.
    #[must_use]
    pub fn public(&self) -> Error {
        match self {
            Self::Unreachable(_) => Error::new(
                ErrorCode::NotRunning,
                "the environment is not running: its box cannot be reached",
            ),
            Self::Cluster(_) => Error::new(
                ErrorCode::Unavailable,
                "the environment's cluster does not answer",
            ),
            Self::Busy(limit) => Error::new(
                ErrorCode::Unavailable,
                format!(
                    "the environment is at its limit of {limit} sessions; end one or try again"
                ),
            ),
            Self::Lost(_) => Error::new(
                ErrorCode::BoxLost,
                "the connection to the environment's box was lost; how the operation ended is not known",
            ),
            Self::Refused(status) => refusal(status),
            Self::Invalid(_) => Error::new(
                ErrorCode::BoxLost,
                "the environment's box sent an invalid message",
            ),
            Self::TooMuchOutput(_) => Error::new(
                ErrorCode::BoxLost,
                "the environment's box sent more output than it can have kept",
            ),
            Self::Credential(_) => Error::internal(),
        }
    }
}

/// The error for the caller of a call that boxd refused.
fn refusal(status: &Status) -> Error {
    let text = || shorten_text(status.message().to_owned());
    if let Some(word) = status.metadata().get(ERROR_CODE_METADATA) {
        let code = word.to_str().ok().and_then(box_code);
        return code.map_or_else(Error::internal, |code| Error::new(code, text()));
    }
    match status.code() {
        Code::NotFound => Error::not_found("execution"),
        Code::FailedPrecondition => Error::new(ErrorCode::Conflict, text()),
        Code::ResourceExhausted => Error {
            retry_after_s: Some(1),
            ..Error::new(ErrorCode::RateLimited, text())
        },
        Code::InvalidArgument | Code::OutOfRange => Error::new(ErrorCode::Validation, text()),
        _ => Error::internal(),
    }
}

/// The error code that a box names. `None` for an unknown one, and for those on the caller itself,
/// which a box knows nothing about.
#[must_use]
pub fn box_code(word: &str) -> Option<ErrorCode> {
    let about_the_caller = |code: &ErrorCode| {
        matches!(
            code,
            ErrorCode::Unauthorized
                | ErrorCode::InvalidCredentials
                | ErrorCode::Forbidden
                | ErrorCode::QuotaExceeded
        )
    };
    ErrorCode::parse(word).filter(|code| !about_the_caller(code))
}

/// Cuts a box's text to its first [`MAX_TEXT`] bytes, in whole characters.
#[must_use]
pub fn shorten_text(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

impl From<RuntimeError> for BoxError {
    fn from(error: RuntimeError) -> Self {
        match error {
            RuntimeError::Unreachable(message) => Self::Unreachable(message),
            other => Self::Cluster(other.to_string()),
        }
    }
}

impl From<ConnectError> for BoxError {
    fn from(error: ConnectError) -> Self {
        match error {
            // A box that uses up its CPU runs, and may answer the next attempt.
            ConnectError::Tls(error) if error.kind() == io::ErrorKind::TimedOut => {
                Self::Cluster("boxd did not finish the TLS handshake in time".to_owned())
            }
            // The peer accepted the connection and speaks no TLS or no HTTP/2, or has another key:
            // the box is ending, or something else has its address by now.
            ConnectError::Tls(error) => Self::Unreachable(error.to_string()),
            ConnectError::Transport(error) => Self::Unreachable(deepest_cause(&error)),
            ConnectError::Token(error) => Self::Credential(error.to_string()),
        }
    }
}

/// Whether the status was made on this side because the connection failed: then it has a
/// source, and a status from the server has none. A reset stream counts as lost too. A status that
/// names an error code is boxd's.
fn is_transport(status: &Status) -> bool {
    let is_named = status.metadata().contains_key(ERROR_CODE_METADATA);
    let is_lost = matches!(status.code(), Code::Unavailable | Code::Cancelled);
    status.source().is_some() || (is_lost && !is_named)
}

fn deepest_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_error_has_code_and_hides_detail() {
        let refused = |code| BoxError::from_status(Status::new(code, "detail"));
        for (error, code) in [
            (
                BoxError::Unreachable("detail".into()),
                ErrorCode::NotRunning,
            ),
            (BoxError::Cluster("detail".into()), ErrorCode::Unavailable),
            (BoxError::Busy(64), ErrorCode::Unavailable),
            (BoxError::Lost("detail".into()), ErrorCode::BoxLost),
            (refused(Code::Unavailable), ErrorCode::BoxLost),
            (refused(Code::NotFound), ErrorCode::NotFound),
            (BoxError::Invalid("detail"), ErrorCode::BoxLost),
            (refused(Code::Unauthenticated), ErrorCode::Internal),
            (BoxError::Credential("detail".into()), ErrorCode::Internal),
        ] {
            let public = error.public();
            assert_eq!(public.code, code, "{error}");
            assert!(!public.message.contains("detail"), "{error}");
        }
        for (grpc, code) in [
            (Code::InvalidArgument, ErrorCode::Validation),
            (Code::OutOfRange, ErrorCode::Validation),
            (Code::FailedPrecondition, ErrorCode::Conflict),
            (Code::ResourceExhausted, ErrorCode::RateLimited),
        ] {
            let error = refused(grpc);
            assert!(!error.to_string().contains("detail"), "{error}");
            let public = error.public();
            assert_eq!((public.code, public.message.as_str()), (code, "detail"));
        }
        let busy = refused(Code::ResourceExhausted).public();
        assert_eq!(busy.retry_after_s, Some(1));
    }

    #[test]
    fn status_that_names_an_error_code_is_that_error() {
        let named = |grpc, word: &'static str, text: &str| {
            let mut status = Status::new(grpc, text);
            let word = tonic::metadata::MetadataValue::from_static(word);
            status.metadata_mut().insert(ERROR_CODE_METADATA, word);
            BoxError::from_status(status).public()
        };
        for (grpc, word, code) in [
            (
                Code::Unavailable,
                "nothing_listening",
                ErrorCode::NothingListening,
            ),
            (
                Code::InvalidArgument,
                "working_dir_not_found",
                ErrorCode::WorkingDirNotFound,
            ),
        ] {
            let error = named(grpc, word, "port 80");
            assert_eq!((error.code, error.message.as_str()), (code, "port 80"));
        }
        // An unknown word, and what a box cannot know.
        for word in ["no_such_code", "", "unauthorized", "quota_exceeded"] {
            let error = named(Code::InvalidArgument, word, "text");
            assert_eq!(error, Error::internal(), "{word}");
        }
        let long = named(Code::InvalidArgument, "invalid_path", &"é".repeat(MAX_TEXT));
        assert_eq!(long.message, "é".repeat(MAX_TEXT / 2));
    }

    #[test]
    fn only_unreachable_from_driver_means_not_running() {
        for (error, code) in [
            (RuntimeError::Unreachable("x".into()), ErrorCode::NotRunning),
            (
                RuntimeError::Unavailable("x".into()),
                ErrorCode::Unavailable,
            ),
            (
                RuntimeError::Deadline(std::time::Duration::from_secs(1)),
                ErrorCode::Unavailable,
            ),
        ] {
            assert_eq!(BoxError::from(error).public().code, code);
        }
    }

    #[test]
    fn silent_boxd_is_unavailable_and_another_peer_is_not_running() {
        for (kind, code) in [
            (io::ErrorKind::TimedOut, ErrorCode::Unavailable),
            (io::ErrorKind::InvalidData, ErrorCode::NotRunning),
            (io::ErrorKind::UnexpectedEof, ErrorCode::NotRunning),
        ] {
            let error = ConnectError::Tls(kind.into());
            assert_eq!(BoxError::from(error).public().code, code, "{kind}");
        }
    }
}
