//! The request that opens a session, when it is too long for one message.
//!
//! The opening message carries the first part, and in a header the length of the whole. The other
//! parts are the first data frames of the session. Neither the opener nor the server sees them.

use std::collections::VecDeque;
use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::MalformedMessage;
use bytes::Bytes;

/// The longest request, in bytes.
pub(super) const MAX_REQUEST: usize = 8 * 1024 * 1024;
/// The longest part of a request, in bytes.
const PART: usize = 256 * 1024;
/// How long the parts of a request may take to arrive.
pub(super) const COLLECT_DEADLINE: Duration = Duration::from_secs(10);

/// A request that opens a session cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the request is malformed")]
    Malformed(#[from] MalformedMessage),
    #[error("the request must be at most {MAX_REQUEST} bytes, got {0}")]
    TooLarge(usize),
    #[error("the request is longer than its header announced: {announced} bytes, got {got}")]
    TooLong { announced: usize, got: usize },
    #[error("the request did not arrive within {COLLECT_DEADLINE:?}")]
    Late,
    #[error("the request was interrupted")]
    Interrupted(#[source] Error),
}

impl OpenError {
    /// The error for the opener.
    #[must_use]
    pub fn public(&self) -> Error {
        match self {
            Self::TooLarge(length) => too_large(*length),
            Self::Late => Error::new(
                ErrorCode::Timeout,
                "the session's opening request did not arrive in time; try again",
            ),
            Self::Malformed(_) | Self::TooLong { .. } | Self::Interrupted(_) => Error::new(
                ErrorCode::BadRequest,
                "the session's opening request cannot be decoded",
            ),
        }
    }
}

fn too_large(length: usize) -> Error {
    Error::new(
        ErrorCode::PayloadTooLarge,
        format!("a session's opening request must be at most {MAX_REQUEST} bytes, got {length}"),
    )
}

/// A request in the parts in which it is sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts {
    pub first: Bytes,
    /// The data frames after the opening message.
    pub rest: VecDeque<Bytes>,
}

/// Splits `request` into parts.
///
/// # Errors
/// [`ErrorCode::PayloadTooLarge`] above [`MAX_REQUEST`].
pub(super) fn split(mut request: Bytes) -> Result<Parts, Error> {
    if request.len() > MAX_REQUEST {
        return Err(too_large(request.len()));
    }
    let mut next = || request.split_to(request.len().min(PART));
    let first = next();
    let rest = std::iter::from_fn(|| Some(next()).filter(|part| !part.is_empty())).collect();
    Ok(Parts { first, rest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_split_into_parts_that_join_to_it() {
        for (length, parts) in [
            (0, 1),
            (1, 1),
            (PART, 1),
            (PART + 1, 2),
            (MAX_REQUEST, MAX_REQUEST / PART),
        ] {
            let request: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            let split = split(Bytes::from(request.clone())).unwrap();
            assert_eq!(1 + split.rest.len(), parts, "{length}");
            let mut joined = split.first.to_vec();
            for part in &split.rest {
                assert!(!part.is_empty() && part.len() <= PART);
                joined.extend_from_slice(part);
            }
            assert!(joined == request, "{length}");
        }
    }

    #[test]
    fn request_above_the_limit_is_refused() {
        let error = split(Bytes::from(vec![0; MAX_REQUEST + 1])).unwrap_err();
        assert_eq!(error.code, ErrorCode::PayloadTooLarge);
        assert!(error.message.contains("got 8388609"), "{error}");
    }
}
