//! The close codes of an attached terminal. Pure.

use agentbox_contracts::error::{Error, ErrorCode};
use axum::extract::ws::{CloseFrame, Utf8Bytes};

use crate::stream::StreamEnd;

/// A close code, of RFC 6455 or of our own (4400 to 4599), and its reason:
///
/// | code | meaning |
/// |---|---|
/// | 1000 | the command has ended; its `exit` message was sent before |
/// | 1001 | the gateway stops; connect again |
/// | 1009 | a message was larger than 256 KiB |
/// | 1011 | an internal error |
/// | 4401 | the credential is no longer valid, or no longer allows this |
/// | 4404 | the environment no longer exists, or the caller may no longer see it |
/// | 4408 | the client did not answer pings |
/// | 4409 | the environment ended as intended: deleted, expired or its command ended |
/// | 4502 | the box was lost while the command ran |
/// | 4503 | a part of the system cannot be reached; connect again |
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Close {
    pub code: u16,
    pub reason: String,
    /// The text of the `error` message that is sent before.
    pub error: Option<String>,
}

/// RFC 6455, section 5.5: the payload of a control frame, without the code.
const MAX_REASON: usize = 123;

impl Close {
    pub(super) fn new(code: u16, reason: &str) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            error: None,
        }
    }

    pub(super) fn exited() -> Self {
        Self::new(1000, "the command has ended")
    }

    pub(super) fn failed(error: &Error) -> Self {
        let code = match error.code.status() {
            _ if error.code == ErrorCode::EnvironmentEnded => 4409,
            401 | 403 => 4401,
            404 => 4404,
            409 => 4409,
            502 => 4502,
            503 | 504 => 4503,
            _ if error.code == ErrorCode::PayloadTooLarge => 1009,
            _ => 1011,
        };
        Self {
            code,
            reason: error.code.as_str().to_owned(),
            error: Some(error.message.clone()),
        }
    }

    pub(super) fn frame(&self) -> CloseFrame {
        let mut end = self.reason.len().min(MAX_REASON);
        while !self.reason.is_char_boundary(end) {
            end -= 1;
        }
        CloseFrame {
            code: self.code,
            reason: Utf8Bytes::from(&self.reason[..end]),
        }
    }
}

impl From<StreamEnd> for Close {
    fn from(end: StreamEnd) -> Self {
        match end {
            StreamEnd::Refused(error) => Self::failed(&error),
            StreamEnd::Stopping => Self::new(1001, "the gateway stops; connect again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_code_has_a_close_code() {
        for (code, expected) in [
            (ErrorCode::Unauthorized, 4401),
            (ErrorCode::NotFound, 4404),
            (ErrorCode::NotRunning, 4409),
            (ErrorCode::PayloadTooLarge, 1009),
            (ErrorCode::BoxLost, 4502),
            (ErrorCode::EnvironmentEnded, 4409),
            (ErrorCode::Unavailable, 4503),
            (ErrorCode::Timeout, 4503),
            (ErrorCode::Internal, 1011),
        ] {
            assert_eq!(
                Close::failed(&Error::new(code, "")).code,
                expected,
                "{code:?}"
            );
        }
        for code in ErrorCode::ALL {
            let close = Close::failed(&Error::new(*code, "why"));
            assert!(matches!(close.code, 1009 | 1011 | 4400..=4599), "{code:?}");
            assert_eq!(close.error.as_deref(), Some("why"));
        }
    }

    #[test]
    fn long_reason_is_cut_at_a_character() {
        let frame = Close::new(1011, &"€".repeat(100)).frame();
        assert!(frame.reason.len() <= MAX_REASON);
        assert!(frame.reason.chars().all(|c| c == '€'));
    }
}
