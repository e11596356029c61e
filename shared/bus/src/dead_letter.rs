//! Dead letters: messages that no replica can process, kept for an operator.
//!
//! * [`stored`]: what an operator does with them.

pub(crate) mod stored;

use agentbox_contracts::dead_letter::MAX_DEAD_LETTER_BYTES;
use agentbox_contracts::subjects::{self, HEADER_REASON};
use async_nats::jetstream::Message;
use async_nats::{HeaderMap, header};

use crate::client::Client;
use crate::error::BusError;
use crate::metrics;

const WRITING: &str = "writing a dead letter";
/// The most bytes of a reason that are kept, so that the largest page of letters fits in one message.
const MAX_REASON_BYTES: usize = 512;

/// Stores a message as a dead letter. The caller then removes it from its own stream.
pub(crate) async fn store(
    client: &Client,
    message: &Message,
    reason: &str,
) -> Result<(), BusError> {
    let origin = message.info();
    let origin = origin.map_or(("", 0), |info| (info.stream, info.stream_sequence));
    let headers = headers(message.headers.as_ref(), origin, reason);
    let kept = message.payload.len().min(MAX_DEAD_LETTER_BYTES);
    client
        .jetstream()
        .publish_with_headers(
            subjects::dead_letter(message.subject.as_str()),
            headers,
            message.payload.slice(..kept),
        )
        .await
        .map_err(BusError::nats(WRITING))?
        .await
        .map_err(BusError::nats(WRITING))?;
    metrics::dead_letter();
    Ok(())
}

/// The headers of a dead letter: those of the message and the reason. Its message id is not the
/// message's, because JetStream drops a second message with one id. It is the same for each attempt
/// to write the letter, so that the letter is stored once.
fn headers(
    headers: Option<&HeaderMap>,
    (stream, sequence): (&str, u64),
    reason: &str,
) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        if !name.to_string().eq_ignore_ascii_case("Nats-Msg-Id") {
            for value in values {
                kept.append(name.clone(), value.clone());
            }
        }
    }
    kept.insert(HEADER_REASON, one_line(reason));
    kept.insert(header::NATS_MESSAGE_ID, format!("dead-{stream}-{sequence}"));
    kept
}

/// The beginning of a reason, at most [`MAX_REASON_BYTES`], as the one line that a header must be.
fn one_line(reason: &str) -> String {
    let mut line = String::new();
    for c in reason.chars() {
        if line.len() + c.len_utf8() > MAX_REASON_BYTES {
            break;
        }
        line.push(if c.is_control() { ' ' } else { c });
    }
    line
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::subjects::{COMMANDS_STREAM, HEADER_EXPIRES_AT};

    use super::*;

    #[test]
    fn dead_letter_keeps_headers_with_own_id_and_one_line_reason() {
        let mut sent = HeaderMap::new();
        sent.insert(header::NATS_MESSAGE_ID, "outbox-7");
        sent.insert(HEADER_EXPIRES_AT, "12");
        let dead = headers(Some(&sent), (COMMANDS_STREAM, 9), "no\r\nroom");
        let get = |name: &str| dead.get(name).map(|value| value.as_str().to_owned());
        assert_eq!(get(HEADER_EXPIRES_AT).as_deref(), Some("12"));
        assert_eq!(get("Nats-Msg-Id").as_deref(), Some("dead-ABX_COMMANDS-9"));
        assert_eq!(get(HEADER_REASON).as_deref(), Some("no  room"));
        let long = one_line(&"é".repeat(MAX_REASON_BYTES));
        assert_eq!(long, "é".repeat(MAX_REASON_BYTES / 2));
    }
}
