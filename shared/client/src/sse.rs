//! A stream of server-sent events.

use std::time::Duration;

use agentbox_api::error::ErrorBody;
use reqwest::Response;
use tokio::time::timeout;

use crate::Error;

/// The size limit of one event, in bytes.
const MAX_EVENT_BYTES: usize = 4 << 20;
/// How long the server may send nothing. It sends a comment every 15 s.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(45);

/// An event with data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SseEvent {
    pub name: Option<String>,
    pub id: Option<String>,
    pub data: String,
}

pub(crate) struct Sse {
    response: Response,
    buffer: Vec<u8>,
}

impl Sse {
    pub(crate) fn new(response: Response) -> Self {
        Self {
            response,
            buffer: Vec::new(),
        }
    }

    /// The next event; `None` at the end. An event named `error` is returned as an error.
    pub(crate) async fn next(&mut self) -> Result<Option<SseEvent>, Error> {
        loop {
            while let Some(block) = take_block(&mut self.buffer) {
                match parse(&block) {
                    Some(event) if event.name.as_deref() == Some("error") => {
                        let body: ErrorBody = serde_json::from_str(&event.data)?;
                        return Err(Error::Api {
                            status: body.code,
                            body,
                        });
                    }
                    Some(event) => return Ok(Some(event)),
                    None => {}
                }
            }
            if self.buffer.len() > MAX_EVENT_BYTES {
                return Err(Error::EventTooLong {
                    limit: MAX_EVENT_BYTES,
                });
            }
            match timeout(KEEPALIVE_TIMEOUT, self.response.chunk()).await {
                Ok(chunk) => match chunk? {
                    Some(bytes) => self.buffer.extend_from_slice(&bytes),
                    None => return Ok(None),
                },
                Err(_) => return Err(Error::KeepaliveTimeout(KEEPALIVE_TIMEOUT)),
            }
        }
    }
}

/// Takes the bytes up to the first empty line.
fn take_block(buffer: &mut Vec<u8>) -> Option<String> {
    let end = buffer.windows(2).position(|pair| pair == b"\n\n")?;
    let block: Vec<u8> = buffer.drain(..end + 2).collect();
    Some(String::from_utf8_lossy(&block).into_owned())
}

/// Parses an event; `None` for a block without data, such as a comment.
fn parse(block: &str) -> Option<SseEvent> {
    let (mut name, mut id, mut data) = (None, None, Vec::new());
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" if value != "message" => name = Some(value.to_owned()),
            "id" => id = Some(value.to_owned()),
            "data" => data.push(value),
            _ => {}
        }
    }
    (!data.is_empty()).then(|| SseEvent {
        name,
        id,
        data: data.join("\n"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_end_at_empty_lines_and_comments_are_skipped() {
        let mut buffer = b": hi\n\nid: 7\ndata: {\ndata: }\n\nevent: end\ndata:x\n\nda".to_vec();
        let mut seen = Vec::new();
        while let Some(block) = take_block(&mut buffer) {
            seen.extend(parse(&block));
        }
        assert_eq!(buffer, b"da");
        let event = |name: Option<&str>, id: Option<&str>, data: &str| SseEvent {
            name: name.map(Into::into),
            id: id.map(Into::into),
            data: data.into(),
        };
        assert_eq!(
            seen,
            [
                event(None, Some("7"), "{\n}"),
                event(Some("end"), None, "x")
            ]
        );
    }
}
