//! The frames of an attached terminal, and what they mean to the box. Pure.

use agentbox_api::attach::{ClientMessage, ServerMessage};
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::{Exit, FromBox, MAX_CHUNK, ToBox};
use axum::extract::ws::Message;
use bytes::Bytes;

use super::parameters::size;
use crate::edge::json;
use crate::text::Decoder;

/// What one frame of the client's asks of the box.
///
/// # Errors
/// When it is not a message of ours: it is answered, and changes nothing.
pub(super) fn to_box(text: &str) -> Result<Vec<ToBox>, Error> {
    Ok(match json::parse(text.as_bytes())? {
        ClientMessage::Stdin { data } => stdin(data.into()),
        ClientMessage::Resize { cols, rows } => vec![ToBox::Resize(size(cols, rows)?)],
        ClientMessage::Signal { signal } => vec![ToBox::Signal(signal)],
        ClientMessage::Eof {} => vec![ToBox::Eof],
    })
}

/// Stdin in messages of the session.
pub(super) fn stdin(mut bytes: Bytes) -> Vec<ToBox> {
    let mut chunks = Vec::with_capacity(bytes.len().div_ceil(MAX_CHUNK));
    while !bytes.is_empty() {
        chunks.push(ToBox::Stdin(bytes.split_to(bytes.len().min(MAX_CHUNK))));
    }
    chunks
}

pub(super) fn frame(message: &ServerMessage) -> Message {
    // Plain data with string keys always serializes.
    Message::text(serde_json::to_string(message).unwrap_or_default())
}

pub(super) fn exit(exit: &Exit) -> Message {
    frame(&ServerMessage::Exit {
        exit_code: exit.exit_code,
        timed_out: exit.timed_out,
        oom_killed: exit.oom_killed,
    })
}

/// Output on its way to the client.
pub(super) struct Output {
    is_binary: bool,
    stdout: Decoder,
    stderr: Decoder,
}

impl Output {
    pub(super) fn new(is_binary: bool) -> Self {
        Self {
            is_binary,
            stdout: Decoder::default(),
            stderr: Decoder::default(),
        }
    }

    /// The frame for a piece of output; `None` when nothing of it can be shown yet, or it
    /// is no output.
    pub(super) fn frame(&mut self, message: FromBox) -> Option<Message> {
        match message {
            FromBox::Stdout(bytes) | FromBox::Stderr(bytes) if self.is_binary => {
                (!bytes.is_empty()).then_some(Message::Binary(bytes))
            }
            FromBox::Stdout(bytes) => text(self.stdout.push(&bytes), |data| {
                ServerMessage::Stdout { data }
            }),
            FromBox::Stderr(bytes) => text(self.stderr.push(&bytes), |data| {
                ServerMessage::Stderr { data }
            }),
            _ => None,
        }
    }

    /// What was held back for the rest of a character that will not come.
    pub(super) fn finish(&mut self) -> impl Iterator<Item = Message> {
        let stdout = text(self.stdout.finish(), |data| ServerMessage::Stdout { data });
        let stderr = text(self.stderr.finish(), |data| ServerMessage::Stderr { data });
        stdout.into_iter().chain(stderr)
    }
}

fn text(data: String, message: impl FnOnce(String) -> ServerMessage) -> Option<Message> {
    (!data.is_empty()).then(|| frame(&message(data)))
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::error::ErrorCode;
    use agentbox_contracts::exec::TerminalSize;

    use super::*;

    #[test]
    fn every_message_of_the_client_reaches_the_box() {
        for (text, expected) in [
            (
                r#"{"type":"stdin","data":"ls -la\n"}"#,
                ToBox::Stdin(Bytes::from_static(b"ls -la\n")),
            ),
            (
                r#"{"type":"resize","cols":132,"rows":50}"#,
                ToBox::Resize(TerminalSize {
                    cols: 132,
                    rows: 50,
                }),
            ),
            (
                r#"{"type":"signal","signal":"SIGINT"}"#,
                ToBox::Signal("SIGINT".into()),
            ),
            (r#"{"type":"eof"}"#, ToBox::Eof),
        ] {
            assert_eq!(to_box(text), Ok(vec![expected]), "{text}");
        }
        assert_eq!(to_box(r#"{"type":"stdin","data":""}"#), Ok(vec![]));
    }

    #[test]
    fn what_is_no_message_is_an_error_and_nothing_else() {
        for (text, code) in [
            ("ls", ErrorCode::BadRequest),
            (r#"{"type":"exit"}"#, ErrorCode::Validation),
            (r#"{"type":"stdin"}"#, ErrorCode::Validation),
            (
                r#"{"type":"resize","cols":0,"rows":1}"#,
                ErrorCode::Validation,
            ),
        ] {
            assert_eq!(to_box(text).unwrap_err().code, code, "{text}");
        }
    }

    #[test]
    fn long_stdin_is_cut_into_messages_and_nothing_is_lost() {
        let bytes: Vec<u8> = (0..100_000u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut back = Vec::new();
        for message in stdin(bytes.clone().into()) {
            let ToBox::Stdin(chunk) = message else {
                panic!("{message:?}")
            };
            assert!(chunk.len() <= MAX_CHUNK);
            back.extend_from_slice(&chunk);
        }
        assert_eq!(back, bytes);
    }

    #[test]
    fn output_is_text_with_whole_characters_or_exact_bytes() {
        let cut = |bytes: &'static [u8]| FromBox::Stdout(Bytes::from_static(bytes));
        let mut output = Output::new(false);
        assert_eq!(output.frame(cut(b"\xe2\x82")), None);
        assert_eq!(
            output.frame(cut(b"\xac")),
            Some(Message::text(r#"{"type":"stdout","data":"€"}"#))
        );
        assert_eq!(output.frame(cut(b"\xe2")), None);
        let left: Vec<Message> = output.finish().collect();
        assert_eq!(
            left,
            [Message::text("{\"type\":\"stdout\",\"data\":\"\u{fffd}\"}")]
        );
        let mut output = Output::new(true);
        assert_eq!(
            output.frame(cut(b"\xe2")),
            Some(Message::Binary(Bytes::from_static(b"\xe2")))
        );
        assert_eq!(output.finish().count(), 0);
    }
}
