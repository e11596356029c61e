//! The outcome of a session, and the ways to end one.

use agentbox_bus::{Incoming, SessionSender};
use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::FromBox;
use agentbox_contracts::exec::rpc::BoxSession;

use crate::boxes::BoxError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Ended with its last message.
    Finished,
    /// The gateway closed the session before that.
    PeerGone,
    /// Ended with an error, which was sent to the gateway.
    Failed(ErrorCode),
}

impl Outcome {
    /// Ends the session with its last message.
    pub async fn finished(sender: SessionSender<FromBox>, last: FromBox) -> Self {
        match sender.finish(last).await {
            Ok(()) => Self::Finished,
            Err(error) => {
                tracing::debug!(error = %ErrorChain(&error), "the gateway did not receive the last message");
                Self::PeerGone
            }
        }
    }

    /// Ends the session with the public form of `error`; its detail is logged.
    pub async fn failed(sender: SessionSender<FromBox>, error: &BoxError) -> Self {
        tracing::info!(error = %ErrorChain(&error), "the session failed in the box");
        Self::refused(sender, error.public()).await
    }

    /// Ends the session with `error`.
    pub async fn refused(sender: SessionSender<FromBox>, error: Error) -> Self {
        let code = error.code;
        sender.fail(error).await;
        Self::Failed(code)
    }
}

/// Refuses a session that was not accepted.
pub async fn refuse(incoming: Incoming<BoxSession>, error: Error) -> Outcome {
    let code = error.code;
    incoming.refuse(error).await;
    Outcome::Failed(code)
}

/// The error of sessions whose command is killed when the shutdown of this service ends them.
pub fn shutdown_error() -> Error {
    Error::new(
        ErrorCode::BoxLost,
        "the exec-proxy is shutting down; the command was killed",
    )
}

/// The error of other sessions that the shutdown ends.
pub fn stopping_error() -> Error {
    Error::new(ErrorCode::BoxLost, "the exec-proxy is shutting down")
}
