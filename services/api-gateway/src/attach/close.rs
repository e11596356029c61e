//! How an attached terminal ends. Pure.

use agentbox_contracts::error::{Error, ErrorCode};
use axum::extract::ws::{CloseFrame, Utf8Bytes};

use crate::stream::Ended;

/// The close codes, of RFC 6455 and our own:
///
/// | code | it means |
/// |---|---|
/// | 1000 | the command has ended; its `exit` message came before |
/// | 1001 | the gateway stops; connect again |
/// | 1009 | a message was larger than 1 MiB |
/// | 1011 | something went wrong on our side |
/// | 4401 | the credential is no longer good, or no longer allows this |
/// | 4404 | the environment is gone, or no longer the caller's to see |
/// | 4408 | the client did not answer pings |
/// | 4409 | the environment does not run any more, as it was to |
/// | 4502 | the box was lost while the command ran |
/// | 4503 | a part of the system cannot be reached; connect again |
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Close {
    pub code: u16,
    pub reason: String,
    /// Sent as an `error` message before.
    pub error: Option<String>,
}

/// RFC 6455 5.5: a control frame's payload, less the code.
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
            reason: error.code.word().to_owned(),
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

impl From<Ended> for Close {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Refused(error) => Self::failed(&error),
            Ended::Stopping => Self::new(1001, "the gateway stops; connect again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_a_close_code_that_says_what_to_do() {
        for (code, expected) in [
            (ErrorCode::Unauthorized, 4401),
            (ErrorCode::NotFound, 4404),
            (ErrorCode::NotRunning, 4409),
            (ErrorCode::PayloadTooLarge, 1009),
            (ErrorCode::BoxLost, 4502),
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
    fn a_reason_fits_its_frame_and_breaks_no_character() {
        let frame = Close::new(1011, &"€".repeat(100)).frame();
        assert!(frame.reason.len() <= MAX_REASON);
        assert!(frame.reason.chars().all(|c| c == '€'));
    }
}
