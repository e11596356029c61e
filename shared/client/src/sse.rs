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
    parser: Parser,
}

impl Sse {
    pub(crate) fn new(response: Response) -> Self {
        Self {
            response,
            parser: Parser::default(),
        }
    }

    /// The next event; `None` at the end. An event named `error` is returned as an error.
    pub(crate) async fn next(&mut self) -> Result<Option<SseEvent>, Error> {
        loop {
            match self.parser.next() {
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
            if self.parser.unfinished_bytes() > MAX_EVENT_BYTES {
                return Err(Error::EventTooLong {
                    limit: MAX_EVENT_BYTES,
                });
            }
            match timeout(KEEPALIVE_TIMEOUT, self.response.chunk()).await {
                Ok(chunk) => match chunk? {
                    Some(bytes) => self.parser.push(&bytes),
                    None => return Ok(None),
                },
                Err(_) => return Err(Error::KeepaliveTimeout(KEEPALIVE_TIMEOUT)),
            }
        }
    }
}

/// Parses an event stream as the HTML standard defines it (section 9.2): a line ends with CR LF,
/// LF or CR, and an empty line ends an event.
#[derive(Default)]
struct Parser {
    /// The bytes that are not parsed yet.
    buffer: Vec<u8>,
    /// The last line ended with CR. An LF that follows belongs to it.
    after_cr: bool,
    /// A byte order mark may only precede the first line.
    has_first_line: bool,
    fields: Fields,
}

/// The fields of an unfinished event.
#[derive(Default)]
struct Fields {
    name: Option<String>,
    id: Option<String>,
    data: Vec<String>,
    data_bytes: usize,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The bytes that no event contains yet.
    fn unfinished_bytes(&self) -> usize {
        self.buffer.len() + self.fields.data_bytes
    }

    /// The next finished event with data. A block without data, such as a comment, is none.
    fn next(&mut self) -> Option<SseEvent> {
        let mut start = 0;
        let event = loop {
            let rest = &self.buffer[start..];
            if self.after_cr && !rest.is_empty() {
                self.after_cr = false;
                start += usize::from(rest.starts_with(b"\n"));
                continue;
            }
            let Some(length) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
                break None;
            };
            let mut line = &rest[..length];
            self.after_cr = rest[length] == b'\r';
            start += length + 1;
            if !self.has_first_line {
                self.has_first_line = true;
                line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
            }
            if !line.is_empty() {
                self.fields.add(&String::from_utf8_lossy(line));
            } else if let Some(event) = self.fields.take() {
                break Some(event);
            }
        };
        self.buffer.drain(..start);
        event
    }
}

impl Fields {
    fn add(&mut self, line: &str) {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => {
                let is_default = matches!(value, "" | "message");
                self.name = (!is_default).then(|| value.to_owned());
            }
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "data" => {
                self.data_bytes += value.len() + 1;
                self.data.push(value.to_owned());
            }
            _ => {}
        }
    }

    fn take(&mut self) -> Option<SseEvent> {
        let fields = std::mem::take(self);
        (!fields.data.is_empty()).then(|| SseEvent {
            name: fields.name,
            id: fields.id,
            data: fields.data.join("\n"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: Option<&str>, id: Option<&str>, data: &str) -> SseEvent {
        SseEvent {
            name: name.map(Into::into),
            id: id.map(Into::into),
            data: data.into(),
        }
    }

    /// The events of a stream that arrives in chunks of this size.
    fn events(stream: &[u8], chunk: usize) -> Vec<SseEvent> {
        let mut parser = Parser::default();
        let mut seen = Vec::new();
        for chunk in stream.chunks(chunk) {
            parser.push(chunk);
            while let Some(event) = parser.next() {
                seen.push(event);
            }
        }
        seen
    }

    #[test]
    fn events_end_at_empty_lines_and_comments_are_skipped() {
        let stream = ": hi\n\nid: 7\ndata: {\ndata: }\n\nevent: end\ndata:x\n\ndata: unfinished\n";
        let expected = [
            event(None, Some("7"), "{\n}"),
            event(Some("end"), None, "x"),
        ];
        for line_end in ["\n", "\r\n", "\r"] {
            let stream = stream.replace('\n', line_end);
            for chunk in [1, 2, 3, stream.len()] {
                let seen = events(stream.as_bytes(), chunk);
                assert_eq!(seen, expected, "{line_end:?}, chunks of {chunk} bytes");
            }
        }
    }

    #[test]
    fn line_ends_may_differ_within_a_stream() {
        let stream = b"data: a\r\ndata: b\r\rdata: c\n\r\ndata: d\r\n\n";
        let expected = ["a\nb", "c", "d"].map(|data| event(None, None, data));
        for chunk in [1, 2, stream.len()] {
            assert_eq!(events(stream, chunk), expected);
        }
    }

    #[test]
    fn byte_order_mark_default_name_and_id_with_nul_are_ignored() {
        let stream = "\u{feff}event: message\nid: 1\0\ndata\n\n";
        assert_eq!(events(stream.as_bytes(), 1), [event(None, None, "")]);
    }
}
