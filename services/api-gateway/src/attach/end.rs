//! How a socket ends, and what that means for its command. Pure.

use agentbox_contracts::error::Error;

use super::close::Close;
use crate::stream::StreamEnd;

/// How a socket ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The command has ended.
    Exited,
    /// The client has sent a close frame.
    Closed,
    /// The connection broke, or the client did not answer pings.
    Lost(Option<Close>),
    /// The client sent what cannot be answered.
    Misused(Close),
    /// The session with the box broke.
    Failed(Error),
    /// The credential has ended, or the gateway stops.
    Ended(StreamEnd),
}

impl End {
    /// Whether it ends the command of a terminal too. Otherwise the command waits to be resumed.
    pub(super) const fn ends_command(&self) -> bool {
        match self {
            Self::Closed | Self::Misused(_) | Self::Ended(StreamEnd::Refused(_)) => true,
            Self::Exited | Self::Lost(_) | Self::Failed(_) | Self::Ended(StreamEnd::Stopping) => {
                false
            }
        }
    }

    /// The close frame to send; `None` if the client is gone.
    pub(super) fn close(self) -> Option<Close> {
        match self {
            Self::Exited => Some(Close::exited()),
            Self::Closed => None,
            Self::Lost(close) => close,
            Self::Misused(close) => Some(close),
            Self::Failed(error) => Some(Close::failed(&error)),
            Self::Ended(end) => Some(end.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::error::ErrorCode;

    use super::*;

    #[test]
    fn command_of_a_terminal_outlives_only_what_its_client_did_not_ask_for() {
        let error = |code| Error::new(code, "why");
        let close = || Close::new(4408, "why");
        for (end, ends_command, code) in [
            (End::Exited, false, Some(1000)),
            (End::Closed, true, None),
            (End::Lost(None), false, None),
            (End::Lost(Some(close())), false, Some(4408)),
            (End::Misused(Close::new(1009, "long")), true, Some(1009)),
            (
                End::Failed(error(ErrorCode::Unavailable)),
                false,
                Some(4503),
            ),
            (
                End::Ended(StreamEnd::Refused(error(ErrorCode::Unauthorized))),
                true,
                Some(4401),
            ),
            (End::Ended(StreamEnd::Stopping), false, Some(1001)),
        ] {
            assert_eq!(end.ends_command(), ends_command, "{end:?}");
            assert_eq!(end.clone().close().map(|close| close.code), code, "{end:?}");
        }
    }
}
