//! The output of an execution as server-sent events.
//!
//! * I1. The `id` of an event is the offsets of both streams after it, so a client that resumes there
//!   gets every byte once. Bytes that are held back because their character is incomplete are not in it.
//! * I2. An event has whole characters, or bytes in base64: nothing is replaced.

use agentbox_api::execution::{ExecutionBody, GapEvent, OutputEvent};
use agentbox_contracts::executions::{Execution, Offsets, OutputGap, OutputPiece};
use agentbox_contracts::logs::OutputStream;
use agentbox_contracts::utf8::incomplete_suffix;
use axum::response::sse::Event;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::super::position;
use super::super::reader::{Item, Reader};
use super::super::status::shown;
use crate::stream::sse::{EventQueue, Source};

pub(super) struct Events {
    reader: Reader,
    encoder: Encoder,
    ready: EventQueue,
}

impl Events {
    /// The client has the output before `from`.
    pub(super) fn new(reader: Reader, from: Offsets) -> Self {
        Self {
            reader,
            encoder: Encoder::new(from),
            ready: EventQueue::default(),
        }
    }
}

impl Source for Events {
    fn queue(&mut self) -> &mut EventQueue {
        &mut self.ready
    }

    async fn fill(&mut self) {
        let items: Vec<Numbered> = match self.reader.next().await {
            Ok(Item::Output(piece)) => self.encoder.output(&piece).into_iter().collect(),
            Ok(Item::Gap(gap)) => self.encoder.gap(gap),
            Ok(Item::End(execution)) => {
                self.ready.end();
                self.encoder.end(*execution)
            }
            Err(error) => {
                self.ready.fail(&error);
                return;
            }
        };
        self.ready.extend(items.into_iter().map(Numbered::event));
    }
}

/// The data of an event, and the offsets after it.
#[derive(Debug, PartialEq)]
struct Numbered {
    after: Offsets,
    data: Data,
}

#[derive(Debug, PartialEq)]
enum Data {
    Output(OutputEvent),
    Gap(GapEvent),
    End(Box<ExecutionBody>),
}

impl Numbered {
    fn event(self) -> Event {
        fn event(name: Option<&str>, after: Offsets, data: &impl Serialize) -> Event {
            // Plain data with string keys always serializes.
            let json = serde_json::to_string(data).unwrap_or_default();
            let event = Event::default().id(position::encode(after));
            let event = match name {
                Some(name) => event.event(name),
                None => event,
            };
            event.data(json)
        }
        match &self.data {
            Data::Output(output) => event(None, self.after, output),
            Data::Gap(gap) => event(Some("gap"), self.after, gap),
            Data::End(execution) => event(Some("end"), self.after, execution),
        }
    }
}

/// Makes events of pieces of output. Pure.
struct Encoder {
    /// What the client has when it has the last event.
    sent: Offsets,
    /// The first bytes of an incomplete character of each stream, at most three.
    stdout_rest: Vec<u8>,
    stderr_rest: Vec<u8>,
}

const fn stream(stderr: bool) -> OutputStream {
    match stderr {
        true => OutputStream::Stderr,
        false => OutputStream::Stdout,
    }
}

impl Encoder {
    const fn new(from: Offsets) -> Self {
        Self {
            sent: from,
            stdout_rest: Vec::new(),
            stderr_rest: Vec::new(),
        }
    }

    fn rest(&mut self, stderr: bool) -> &mut Vec<u8> {
        match stderr {
            true => &mut self.stderr_rest,
            false => &mut self.stdout_rest,
        }
    }

    fn sent(&mut self, stderr: bool) -> &mut u64 {
        match stderr {
            true => &mut self.sent.stderr,
            false => &mut self.sent.stdout,
        }
    }

    fn output(&mut self, piece: &OutputPiece) -> Option<Numbered> {
        let mut bytes = std::mem::take(self.rest(piece.stderr));
        bytes.extend_from_slice(&piece.data);
        let rest = bytes.split_off(bytes.len() - incomplete_suffix(&bytes));
        match String::from_utf8(bytes) {
            Ok(text) => {
                *self.rest(piece.stderr) = rest;
                self.event(piece.stderr, text.len(), Some(text), None)
            }
            Err(error) => {
                let mut bytes = error.into_bytes();
                bytes.extend(rest);
                self.bytes(piece.stderr, &bytes)
            }
        }
    }

    fn bytes(&mut self, stderr: bool, bytes: &[u8]) -> Option<Numbered> {
        self.event(stderr, bytes.len(), None, Some(STANDARD.encode(bytes)))
    }

    fn event(
        &mut self,
        stderr: bool,
        length: usize,
        data: Option<String>,
        base64: Option<String>,
    ) -> Option<Numbered> {
        if length == 0 {
            return None;
        }
        let sent = self.sent(stderr);
        let offset = *sent;
        *sent = sent.saturating_add(length as u64);
        Some(Numbered {
            after: self.sent,
            data: Data::Output(OutputEvent {
                stream: stream(stderr),
                data,
                base64,
                offset,
            }),
        })
    }

    /// Bytes that were held back, and whose character is never completed.
    fn flush(&mut self, stderr: bool) -> Option<Numbered> {
        let bytes = std::mem::take(self.rest(stderr));
        self.bytes(stderr, &bytes)
    }

    fn gap(&mut self, gap: OutputGap) -> Vec<Numbered> {
        let mut events: Vec<Numbered> = self.flush(gap.stderr).into_iter().collect();
        *self.sent(gap.stderr) = gap.offset.saturating_add(gap.bytes);
        events.push(Numbered {
            after: self.sent,
            data: Data::Gap(GapEvent {
                stream: stream(gap.stderr),
                bytes: gap.bytes,
            }),
        });
        events
    }

    fn end(&mut self, execution: Execution) -> Vec<Numbered> {
        let mut events: Vec<Numbered> = self.flush(false).into_iter().collect();
        events.extend(self.flush(true));
        events.push(Numbered {
            after: self.sent,
            data: Data::End(Box::new(shown(execution))),
        });
        events
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::stream::sse::testing::on_the_wire;

    fn piece(stderr: bool, offset: u64, data: &'static [u8]) -> OutputPiece {
        OutputPiece {
            stderr,
            offset,
            data: Bytes::from_static(data),
        }
    }

    fn at(stdout: u64, stderr: u64) -> Offsets {
        Offsets { stdout, stderr }
    }

    fn output(after: Offsets, stderr: bool, data: &str, offset: u64) -> Option<Numbered> {
        Some(Numbered {
            after,
            data: Data::Output(OutputEvent {
                stream: stream(stderr),
                data: Some(data.to_owned()),
                base64: None,
                offset,
            }),
        })
    }

    fn base64(after: Offsets, data: &str, offset: u64) -> Option<Numbered> {
        let mut event = output(after, false, "", offset)?;
        if let Data::Output(output) = &mut event.data {
            output.data = None;
            output.base64 = Some(data.to_owned());
        }
        Some(event)
    }

    #[test]
    fn split_character_is_held_back_and_not_in_the_id() {
        let mut encoder = Encoder::new(at(0, 5));
        let first = encoder.output(&piece(false, 0, b"a\xe2\x82"));
        assert_eq!(first, output(at(1, 5), false, "a", 0));
        let other = encoder.output(&piece(true, 5, b"e"));
        assert_eq!(other, output(at(1, 6), true, "e", 5));
        assert_eq!(encoder.output(&piece(false, 3, b"")), None);
        let second = encoder.output(&piece(false, 3, b"\xacb"));
        assert_eq!(second, output(at(5, 6), false, "€b", 1));
    }

    #[test]
    fn bytes_that_are_not_text_are_base64() {
        let mut encoder = Encoder::new(at(0, 0));
        let event = encoder.output(&piece(false, 0, b"a\xff\xe2"));
        assert_eq!(event, base64(at(3, 0), "Yf/i", 0));
        assert_eq!(encoder.output(&piece(false, 3, b"\xe2\x82")), None);
        let gap = OutputGap {
            stderr: false,
            offset: 5,
            bytes: 10,
        };
        let events = encoder.gap(gap);
        assert_eq!(events.len(), 2);
        assert_eq!(events.into_iter().next(), base64(at(5, 0), "4oI=", 3));
        assert_eq!(encoder.sent, at(15, 0));
    }

    #[tokio::test]
    async fn events_have_the_documented_wire_format() {
        let mut encoder = Encoder::new(at(0, 0));
        let mut events: Vec<Numbered> = encoder
            .output(&piece(false, 0, b"hi\n"))
            .into_iter()
            .collect();
        events.extend(encoder.gap(OutputGap {
            stderr: true,
            offset: 0,
            bytes: 7,
        }));
        assert_eq!(
            on_the_wire(events.into_iter().map(Numbered::event).collect()).await,
            "id: 3-0\ndata: {\"stream\":\"stdout\",\"data\":\"hi\\n\",\"offset\":0}\n\n\
             id: 3-7\nevent: gap\ndata: {\"stream\":\"stderr\",\"bytes\":7}\n\n"
        );
    }
}
