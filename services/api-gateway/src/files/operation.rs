//! One operation on files: its session with the box, and its errors.

use std::time::Duration;

use agentbox_bus::{SessionReceiver, SessionSender};
use agentbox_contracts::error::{Error, ErrorCode, shortened};
use agentbox_contracts::exec::{FromBox, OpenKind, ToBox};
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{FileFailure, FileOutput, FileRequest};
use bytes::Bytes;

use crate::box_loss;
use crate::box_session::{self, BoxSession};
use crate::lookup::EnvironmentLocation;
use crate::state::Gateway;

/// How long an operation without content may take, and one step of a transfer in the box.
pub(super) const OPERATION_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest message of a box that a caller receives, in characters.
const MAX_MESSAGE: usize = 1024;

/// Awaits a step of an operation.
///
/// # Errors
/// [`ErrorCode::Timeout`] after [`OPERATION_TIMEOUT`], else that of the step.
pub(super) async fn in_time<T>(step: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    match tokio::time::timeout(OPERATION_TIMEOUT, step).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::new(
            ErrorCode::Timeout,
            format!(
                "the environment did not complete the operation within {} seconds; whether it has \
                 had an effect is unknown",
                OPERATION_TIMEOUT.as_secs()
            ),
        )),
    }
}

/// Opens the session of an operation. An empty `user` is the environment's.
pub(super) async fn open(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    path: Bytes,
    user: String,
    operation: Operation,
) -> Result<BoxSession, Error> {
    let request = FileRequest {
        path,
        user,
        operation: Some(operation),
    };
    box_session::open(gateway, location, OpenKind::Files(request)).await
}

/// The next output of an operation; `None` when it has succeeded.
///
/// # Errors
/// That of the operation, or of its session.
pub(super) async fn next(from_box: &mut SessionReceiver<FromBox>) -> Result<Option<Output>, Error> {
    match from_box.recv().await? {
        Some(FromBox::File(FileOutput {
            output: Some(output),
        })) => match output {
            Output::Done(()) => Ok(None),
            Output::Failed(failure) => Err(public_error(failure)),
            output => Ok(Some(output)),
        },
        Some(_) => Err(unexpected()),
        None => Err(Error::new(
            ErrorCode::BoxLost,
            "the connection to the environment was lost; whether the operation has had an effect is \
             unknown",
        )),
    }
}

/// An operation that has begun.
pub(super) struct Begun {
    pub first: Option<Output>,
    /// Held until the end: without it the operation would be cancelled.
    pub to_box: SessionSender<ToBox>,
    pub from_box: SessionReceiver<FromBox>,
}

/// Begins an operation with several outputs, as the environment's user, and waits for its first one.
///
/// # Errors
/// That of the operation, with the reason if the box was lost.
pub(super) async fn begin(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    path: Bytes,
    operation: Operation,
) -> Result<Begun, Error> {
    let begun = in_time(async {
        let session = open(gateway, location, path, String::new(), operation).await?;
        let (to_box, mut from_box) = session.split();
        let first = next(&mut from_box).await?;
        Ok::<_, Error>(Begun {
            first,
            to_box,
            from_box,
        })
    })
    .await;
    match begun {
        Ok(begun) => Ok(begun),
        Err(error) => Err(box_loss::with_reason(gateway, &location.id, error).await),
    }
}

/// Performs an operation without content, and returns its last answer.
///
/// # Errors
/// That of the operation, with the reason if the box was lost.
pub(super) async fn perform(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    path: Bytes,
    user: String,
    operation: Operation,
) -> Result<Option<Output>, Error> {
    let performed = in_time(async {
        let session = open(gateway, location, path, user, operation).await?;
        // A dropped sender would cancel the operation.
        let (_to_box, mut from_box) = session.split();
        let mut answer = None;
        while let Some(output) = next(&mut from_box).await? {
            answer = Some(output);
        }
        Ok::<_, Error>(answer)
    })
    .await;
    match performed {
        Ok(answer) => Ok(answer),
        Err(error) => Err(box_loss::with_reason(gateway, &location.id, error).await),
    }
}

/// The error of an answer that does not belong to its operation.
pub(super) fn unexpected() -> Error {
    tracing::error!("a file operation was answered with another one's output");
    Error::internal()
}

/// The error of a failed operation. A box may be hostile: it has no say on the caller's credential.
fn public_error(failure: FileFailure) -> Error {
    let code = ErrorCode::parse(&failure.code).filter(|code| code.status() != 401);
    let Some(code) = code else {
        let code = shortened(&failure.code);
        tracing::error!(%code, "a file operation failed with an unknown error");
        return Error::internal();
    };
    if code == ErrorCode::Internal {
        // The exec-proxy has logged the fault.
        return Error::internal();
    }
    let message = failure.message.chars().filter(|c| !c.is_control());
    let mut error = Error::new(code, message.take(MAX_MESSAGE).collect::<String>());
    if code == ErrorCode::RateLimited {
        error.retry_after_s = Some(1);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &str, message: &str) -> Error {
        public_error(FileFailure {
            code: code.to_owned(),
            message: message.to_owned(),
        })
    }

    #[test]
    fn failure_has_its_code_and_a_bounded_message() {
        let error = of("not_empty", "/a\n: has entries");
        assert_eq!(error.code, ErrorCode::NotEmpty);
        assert_eq!(error.message, "/a: has entries");
        let error = of("no_space", &"x".repeat(MAX_MESSAGE + 1));
        assert_eq!(error.message.len(), MAX_MESSAGE);
        assert_eq!(of("rate_limited", "busy").retry_after_s, Some(1));
    }

    #[test]
    fn failure_that_no_operation_has_is_internal() {
        for code in ["", "out_of_luck", "unauthorized", "internal"] {
            assert_eq!(of(code, "secret"), Error::internal(), "{code}");
        }
    }
}
