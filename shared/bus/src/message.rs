//! The body and the deadline of a message.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::subjects::{HEADER_DEADLINE, HEADER_EXPIRES_AT};
use async_nats::HeaderMap;
use bytes::Bytes;
use serde::Serialize;

/// NATS' own limit on a message, less room for headers.
const MAX_MESSAGE: usize = 1000 * 1024;

/// Encodes a message's JSON body. Fails when it is larger than one message.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Bytes, Error> {
    let body = serde_json::to_vec(value).map_err(|error| {
        tracing::error!(error = %ErrorChain(&error), "message not encoded");
        Error::internal()
    })?;
    if body.len() > MAX_MESSAGE {
        return Err(Error::new(
            ErrorCode::PayloadTooLarge,
            format!(
                "a message must be at most {MAX_MESSAGE} bytes, got {}",
                body.len()
            ),
        ));
    }
    Ok(body.into())
}

/// Sets the header with the time when the caller stops waiting.
pub(crate) fn set_deadline(headers: &mut HeaderMap, from_now: Duration) {
    headers.insert(HEADER_DEADLINE, unix_ms_in(from_now).to_string());
}

/// Sets the header with the time when a command expires.
pub(crate) fn set_expiry(headers: &mut HeaderMap, from_now: Duration) {
    headers.insert(HEADER_EXPIRES_AT, unix_ms_in(from_now).to_string());
}

/// Whether the caller of a request has stopped waiting.
pub(crate) fn is_past_deadline(headers: Option<&HeaderMap>) -> bool {
    is_past(headers, HEADER_DEADLINE)
}

/// Whether a command has expired.
pub(crate) fn is_expired(headers: Option<&HeaderMap>) -> bool {
    is_past(headers, HEADER_EXPIRES_AT)
}

fn is_past(headers: Option<&HeaderMap>, name: &str) -> bool {
    headers
        .and_then(|headers| headers.get(name))
        .and_then(|at| at.as_str().parse::<u64>().ok())
        .is_some_and(|at| at < now_unix_ms())
}

fn now_unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

fn unix_ms_in(from_now: Duration) -> u64 {
    now_unix_ms().saturating_add(u64::try_from(from_now.as_millis()).unwrap_or(u64::MAX))
}
