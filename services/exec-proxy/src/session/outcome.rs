//! How a session ended, and the ways to end one.

use agentbox_bus::SessionSender;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::FromBox;

use crate::boxes::BoxError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With its last message.
    Finished,
    /// The other end went before that.
    PeerGone,
    /// With an error, which the other end has been told.
    Failed(ErrorCode),
}

impl Outcome {
    /// Ends the session in order.
    pub async fn finished(sender: SessionSender<FromBox>, last: FromBox) -> Self {
        match sender.finish(last).await {
            Ok(()) => Self::Finished,
            Err(error) => {
                tracing::debug!(%error, "the last message was not taken");
                Self::PeerGone
            }
        }
    }

    /// Ends the session with what went wrong at the box; the detail goes to the log.
    pub async fn failed(sender: SessionSender<FromBox>, error: &BoxError) -> Self {
        tracing::info!(%error, "the box failed the session");
        Self::refused(sender, error.public()).await
    }

    pub async fn refused(sender: SessionSender<FromBox>, error: Error) -> Self {
        let code = error.code;
        sender.fail(error).await;
        Self::Failed(code)
    }
}
