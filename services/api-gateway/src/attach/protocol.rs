//! Converts between the frames of an attached terminal and the messages of its session. Pure.

use super::client_message;
use super::parameters::size;
use crate::exec::stdin_messages;
use crate::text::Decoder;
use agentbox_api::attach::{ClientMessage, ServerMessage};
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::{Exit, ToBox};
use agentbox_contracts::executions::{Execution, ExecutionStatus, OutputPiece};
use agentbox_contracts::signal::is_signal_name;
use axum::extract::ws::Message;

/// The exit codes of shells.
const TIMED_OUT: i32 = 124;
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;
const SIGNALLED: i32 = 128;
const SIGKILL: i32 = 9;

/// Checks the name of a signal.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`]
pub(crate) fn signal_name(signal: String) -> Result<String, Error> {
    if is_signal_name(&signal) {
        return Ok(signal);
    }
    Err(Error::value(
        "signal",
        "must be the name of a signal, such as SIGINT or INT",
        signal,
    ))
}

/// Reads one text frame of the client.
///
/// # Errors
/// When it is not a valid message. The client receives the error; nothing reaches the box.
pub(crate) fn to_box(text: &str) -> Result<Vec<ToBox>, Error> {
    Ok(match client_message::parse(text)? {
        ClientMessage::Stdin { data } => stdin_messages(data.into()),
        ClientMessage::Resize { cols, rows } => vec![ToBox::Resize(size(cols, rows)?)],
        ClientMessage::Signal { signal } => vec![ToBox::Signal(signal_name(signal)?)],
        ClientMessage::Eof {} => vec![ToBox::End],
        ClientMessage::TakeInput {} => vec![ToBox::TakeInput],
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

/// The exit of an execution that has ended, as a shell reports it.
pub(super) fn exit_of(execution: &Execution) -> Exit {
    let status = execution.status();
    let own = |otherwise| execution.exit_code.unwrap_or(otherwise);
    let exit_code = match status {
        ExecutionStatus::FailedToStart if execution.status_reason.ends_with("not found") => {
            own(NOT_FOUND)
        }
        ExecutionStatus::FailedToStart => own(NOT_EXECUTABLE),
        ExecutionStatus::TimedOut => TIMED_OUT,
        ExecutionStatus::Signalled | ExecutionStatus::OomKilled => {
            SIGNALLED + execution.signal.unwrap_or(SIGKILL)
        }
        ExecutionStatus::Exited
        | ExecutionStatus::Starting
        | ExecutionStatus::Running
        | ExecutionStatus::Lost => own(SIGNALLED + SIGKILL),
    };
    Exit {
        exit_code,
        timed_out: status == ExecutionStatus::TimedOut,
        oom_killed: status == ExecutionStatus::OomKilled,
        duration_ms: execution.duration_ms.unwrap_or(0),
    }
}

/// Why a command could not be started, as output of it. `None` for others.
pub(super) fn start_failure(execution: &Execution) -> Option<OutputPiece> {
    let has_failed = execution.status() == ExecutionStatus::FailedToStart;
    let (stderr, line_end) = match execution.tty {
        Some(_) => (false, "\r\n"),
        None => (true, "\n"),
    };
    has_failed.then(|| OutputPiece {
        stderr,
        offset: 0,
        data: format!("{}{line_end}", execution.status_reason).into(),
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
    /// incomplete and has nothing else.
    pub(super) fn frame(&mut self, piece: &OutputPiece) -> Option<Message> {
        match piece.stderr {
            false if self.is_binary => binary(STDOUT, &piece.data),
            true if self.is_binary => binary(STDERR, &piece.data),
            false => text(self.stdout.push(&piece.data), |data| {
                ServerMessage::Stdout { data }
            }),
            true => text(self.stderr.push(&piece.data), |data| {
                ServerMessage::Stderr { data }
            }),
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
            (r#"{"type":"take_input"}"#, ToBox::TakeInput),
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

    fn piece(stderr: bool, bytes: &'static [u8]) -> OutputPiece {
        OutputPiece {
            stderr,
            offset: 0,
            data: Bytes::from_static(bytes),
        }
    }

    #[test]
    fn output_is_whole_characters_or_exact_bytes() {
        let mut output = Output::new(false);
        assert_eq!(output.frame(&piece(false, b"\xe2\x82")), None);
        assert_eq!(
            output.frame(&piece(false, b"\xac")),
            Some(Message::text(r#"{"type":"stdout","data":"€"}"#))
        );
        assert_eq!(output.frame(&piece(false, b"\xe2")), None);
        let left: Vec<Message> = output.finish().collect();
        assert_eq!(
            left,
            [Message::text("{\"type\":\"stdout\",\"data\":\"\u{fffd}\"}")]
        );
        let mut output = Output::new(true);
        assert_eq!(
            output.frame(&piece(false, b"\xe2")),
            Some(Message::Binary(Bytes::from_static(b"\x01\xe2")))
        );
        assert_eq!(
            output.frame(&piece(true, b"e")),
            Some(Message::Binary(Bytes::from_static(b"\x02e")))
        );
        assert_eq!(output.frame(&piece(false, b"")), None);
        assert_eq!(output.finish().count(), 0);
    }

    #[test]
    fn outcome_is_reported_with_the_exit_codes_of_a_shell() {
        use ExecutionStatus as Status;
        let ended = |status: Status, exit_code, signal, reason: &str| Execution {
            status: status.into(),
            exit_code,
            signal,
            status_reason: reason.to_owned(),
            ..Execution::default()
        };
        for (execution, code) in [
            (ended(Status::Exited, Some(5), None, ""), 5),
            (ended(Status::Signalled, None, Some(2), ""), 130),
            (ended(Status::OomKilled, None, Some(9), ""), 137),
            (ended(Status::TimedOut, None, Some(9), ""), 124),
            (
                ended(Status::FailedToStart, None, None, "x: not found"),
                127,
            ),
            (
                ended(Status::FailedToStart, None, None, "x: is a directory"),
                126,
            ),
        ] {
            let exit = exit_of(&execution);
            assert_eq!(exit.exit_code, code, "{execution:?}");
            assert_eq!(exit.oom_killed, execution.status() == Status::OomKilled);
            assert_eq!(exit.timed_out, execution.status() == Status::TimedOut);
        }
        let mut failed = ended(Status::FailedToStart, None, None, "x: not found");
        assert_eq!(start_failure(&failed), Some(piece(true, b"x: not found\n")));
        failed.tty = Some(agentbox_contracts::executions::Size { cols: 1, rows: 1 });
        assert_eq!(
            start_failure(&failed),
            Some(piece(false, b"x: not found\r\n"))
        );
        assert_eq!(
            start_failure(&ended(Status::Exited, Some(0), None, "")),
            None
        );
    }
}
