//! Converts between the frames of an attached terminal and the messages of its session. Pure.

use super::client_message;
use super::parameters::size;
use crate::exec::stdin_messages;
use crate::text::Decoder;
use agentbox_api::attach::{ClientMessage, ServerMessage};
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::{Exit, FromBox, ToBox};
use agentbox_contracts::signal::is_signal_name;
use axum::extract::ws::Message;

/// Reads one text frame of the client.
///
/// # Errors
/// When it is not a valid message. The client receives the error; nothing reaches the box.
pub(super) fn to_box(text: &str) -> Result<Vec<ToBox>, Error> {
    Ok(match client_message::parse(text)? {
        ClientMessage::Stdin { data } => stdin_messages(data.into()),
        ClientMessage::Resize { cols, rows } => vec![ToBox::Resize(size(cols, rows)?)],
        ClientMessage::Signal { signal } if is_signal_name(&signal) => {
            vec![ToBox::Signal(signal)]
        }
        ClientMessage::Signal { signal } => {
            return Err(Error::value(
                "signal",
                "must be the name of a signal, such as SIGINT or INT",
                signal,
            ));
        }
        ClientMessage::Eof {} => vec![ToBox::End],
    })
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

/// The first byte of a binary frame of output: the stream's file descriptor.
const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// Converts output of the command to frames.
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

    /// The frame for a piece of output. `None` if the piece ends within a character that is still
    /// incomplete and has nothing else, and for messages without output.
    pub(super) fn frame(&mut self, message: FromBox) -> Option<Message> {
        match message {
            FromBox::Stdout(bytes) if self.is_binary => binary(STDOUT, &bytes),
            FromBox::Stderr(bytes) if self.is_binary => binary(STDERR, &bytes),
            FromBox::Stdout(bytes) => text(self.stdout.push(&bytes), |data| {
                ServerMessage::Stdout { data }
            }),
            FromBox::Stderr(bytes) => text(self.stderr.push(&bytes), |data| {
                ServerMessage::Stderr { data }
            }),
            _ => None,
        }
    }

    /// The frames for incomplete characters that were held back.
    pub(super) fn finish(&mut self) -> impl Iterator<Item = Message> {
        let stdout = text(self.stdout.finish(), |data| ServerMessage::Stdout { data });
        let stderr = text(self.stderr.finish(), |data| ServerMessage::Stderr { data });
        stdout.into_iter().chain(stderr)
    }
}

fn binary(stream: u8, bytes: &[u8]) -> Option<Message> {
    if bytes.is_empty() {
        return None;
    }
    let mut frame = Vec::with_capacity(bytes.len() + 1);
    frame.push(stream);
    frame.extend_from_slice(bytes);
    Some(Message::Binary(frame.into()))
}

fn text(data: String, message: impl FnOnce(String) -> ServerMessage) -> Option<Message> {
    (!data.is_empty()).then(|| frame(&message(data)))
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::error::ErrorCode;
    use agentbox_contracts::exec::{MAX_CHUNK, TerminalSize};
    use bytes::Bytes;

    use super::*;

    #[test]
    fn client_messages_become_session_messages() {
        for (text, expected) in [
            (
                r#"{"type":"stdin","data":"ls -la\n"}"#,
                ToBox::Data(Bytes::from_static(b"ls -la\n")),
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
            (r#"{"type":"eof"}"#, ToBox::End),
        ] {
            assert_eq!(to_box(text), Ok(vec![expected]), "{text}");
        }
        assert_eq!(to_box(r#"{"type":"stdin","data":""}"#), Ok(vec![]));
    }

    #[test]
    fn invalid_message_returns_an_error() {
        for (text, code) in [
            ("ls", ErrorCode::BadRequest),
            (r#"{"type":"exit"}"#, ErrorCode::Validation),
            (r#"{"type":"stdin"}"#, ErrorCode::Validation),
            (
                r#"{"type":"resize","cols":0,"rows":1}"#,
                ErrorCode::Validation,
            ),
            (
                r#"{"type":"signal","signal":"SIGFOO"}"#,
                ErrorCode::Validation,
            ),
            (r#"{"type":"signal","signal":"9"}"#, ErrorCode::Validation),
        ] {
            assert_eq!(to_box(text).unwrap_err().code, code, "{text}");
        }
    }

    #[test]
    fn long_stdin_is_split_without_loss() {
        let bytes: Vec<u8> = (0..100_000u32).map(|n| n.to_le_bytes()[0]).collect();
        let mut back = Vec::new();
        for message in stdin_messages(bytes.clone().into()) {
            let ToBox::Data(chunk) = message else {
                panic!("{message:?}")
            };
            assert!(chunk.len() <= MAX_CHUNK);
            back.extend_from_slice(&chunk);
        }
        assert_eq!(back, bytes);
    }

    #[test]
    fn output_is_whole_characters_or_exact_bytes() {
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
            Some(Message::Binary(Bytes::from_static(b"\x01\xe2")))
        );
        assert_eq!(
            output.frame(FromBox::Stderr(Bytes::from_static(b"e"))),
            Some(Message::Binary(Bytes::from_static(b"\x02e")))
        );
        assert_eq!(output.frame(cut(b"")), None);
        assert_eq!(output.finish().count(), 0);
    }
}
