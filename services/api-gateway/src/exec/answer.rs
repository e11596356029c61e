//! The answer with a command's result, written in pieces.
//!
//! * I1. JSON makes six bytes of one control byte. So memory holds the bytes of the command, and
//!   of their JSON only one piece.
//! * I2. A client that takes less than [`MIN_PROGRESS`] of its answer in the write timeout does not
//!   get the rest, and the memory is free again.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use agentbox_api::exec::{ExecReply, OutputEncoding};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::ExecResult;
use axum::body::Body as AxumBody;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::memory::ResultMemory;
use super::output::Output;
use crate::metrics;
use crate::state::{Gateway, OpenSession};
use crate::text::Decoder;

/// Bytes of an answer that its client must take in each write timeout.
const MIN_PROGRESS: u64 = 1024 * 1024;
/// Output, in bytes, that is written in one piece, with a Content-Length.
const ONE_PIECE: usize = 64 * 1024;
/// The beginning of an [`ExecReply`] without output.
const WITHOUT_OUTPUT: &str = r#"{"stdout":"","stderr":"","#;

/// The result of a command, and the memory that its output takes.
pub(super) struct Collected {
    pub stdout: Output,
    pub stderr: Output,
    /// The result without its output.
    pub result: ExecResult,
    pub memory: ResultMemory,
}

/// Output as the content of a JSON string.
struct Text {
    output: Output,
    /// `None`: base64.
    decoder: Option<Decoder>,
}

impl Text {
    fn new(output: Output, encoding: OutputEncoding) -> Self {
        Self {
            output,
            decoder: (encoding == OutputEncoding::Utf8).then(Decoder::default),
        }
    }

    /// The next piece, and the length of the output in it. `None`: the text is complete.
    fn next(&mut self) -> Option<(String, usize)> {
        let block = self.output.pop();
        let length = block.as_ref().map_or(0, Vec::len);
        let piece = match (&mut self.decoder, block) {
            (Some(decoder), Some(block)) => escaped(&decoder.push(&block)),
            // A second call finds nothing left to finish.
            (Some(decoder), None) => escaped(&decoder.finish()),
            (None, Some(block)) => STANDARD.encode(block),
            (None, None) => String::new(),
        };
        (length > 0 || !piece.is_empty()).then_some((piece, length))
    }
}

/// The content of a JSON string.
fn escaped(text: &str) -> String {
    // A string always serializes.
    let mut json = serde_json::to_string(text).unwrap_or_default();
    json.pop();
    json.split_off(json.len().min(1))
}

enum Part {
    Json(String),
    Text(Text),
}

/// Writes an [`ExecReply`] in pieces.
struct Writer {
    parts: VecDeque<Part>,
    memory: ResultMemory,
    /// The bytes of all pieces until now.
    written: u64,
}

impl Writer {
    fn new(collected: Collected, encoding: OutputEncoding) -> Self {
        let Collected {
            stdout,
            stderr,
            result,
            memory,
        } = collected;
        let reply = ExecReply {
            stdout: String::new(),
            stderr: String::new(),
            exit_code: result.exit.exit_code,
            duration_ms: result.exit.duration_ms,
            timed_out: result.exit.timed_out,
            stdout_truncated: result.stdout_truncated,
            stderr_truncated: result.stderr_truncated,
            oom_killed: result.exit.oom_killed,
        };
        // Plain data with string keys always serializes, its fields in their order.
        let json = serde_json::to_string(&reply).unwrap_or_default();
        let rest = json.strip_prefix(WITHOUT_OUTPUT).unwrap_or_default();
        let parts = [
            Part::Json("{\"stdout\":\"".to_owned()),
            Part::Text(Text::new(stdout, encoding)),
            Part::Json("\",\"stderr\":\"".to_owned()),
            Part::Text(Text::new(stderr, encoding)),
            Part::Json(format!("\",{rest}")),
        ];
        Self {
            parts: parts.into(),
            memory,
            written: 0,
        }
    }

    /// The next piece, and the length of the output in it. `None`: all were written.
    fn next(&mut self) -> Option<(String, usize)> {
        loop {
            let next = match self.parts.front_mut()? {
                Part::Json(json) => {
                    let json = std::mem::take(json);
                    self.parts.pop_front();
                    Some((json, 0))
                }
                Part::Text(text) => {
                    let next = text.next();
                    if next.is_none() {
                        self.parts.pop_front();
                    }
                    next
                }
            };
            if next.is_some() {
                return next;
            }
        }
    }

    /// Writes all in one piece, and returns its length. The memory stays that of the output.
    fn join(&mut self) -> u64 {
        let mut all = String::new();
        while let Some((piece, _)) = self.next() {
            all.push_str(&piece);
        }
        let length = all.len() as u64;
        self.parts.push_back(Part::Json(all));
        length
    }

    /// Takes the next piece for the client.
    fn take(&mut self) -> Option<String> {
        let (piece, output) = self.next()?;
        self.memory.shrink(output);
        self.written += piece.len() as u64;
        Some(piece)
    }
}

enum State {
    Unread(Writer),
    Complete,
    /// The client has not read the answer in time.
    Expired,
}

/// The body of the answer.
struct ResultBody {
    state: Arc<Mutex<State>>,
    /// The bytes that are left, if they are known.
    left: Option<u64>,
    /// Ends the watch of the client's progress.
    _watched: DropGuard,
    _session: OpenSession,
}

impl Body for ResultBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let mut state = this.state.lock();
        let piece = match &mut *state {
            State::Unread(writer) => writer.take(),
            State::Complete => None,
            State::Expired => {
                let error = Error::new(ErrorCode::Timeout, "the client did not read its answer");
                return Poll::Ready(Some(Err(error)));
            }
        };
        let Some(piece) = piece else {
            *state = State::Complete;
            return Poll::Ready(None);
        };
        if let Some(left) = &mut this.left {
            *left = left.saturating_sub(piece.len() as u64);
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0) || matches!(*self.state.lock(), State::Complete)
    }

    fn size_hint(&self) -> SizeHint {
        self.left
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Drops a result if its client takes less than [`MIN_PROGRESS`] of it in each `deadline`.
async fn watch_progress(state: Arc<Mutex<State>>, deadline: Duration) {
    let mut before = 0;
    loop {
        tokio::time::sleep(deadline).await;
        match check_progress(&state, before) {
            Some(written) => before = written,
            None => return,
        }
    }
}

/// The bytes that the client has taken. `None`: the result is complete or expired.
fn check_progress(state: &Mutex<State>, before: u64) -> Option<u64> {
    let mut state = state.lock();
    let State::Unread(writer) = &*state else {
        return None;
    };
    let written = writer.written;
    if written - before >= MIN_PROGRESS {
        return Some(written);
    }
    metrics::limit_reached("write_timeout");
    *state = State::Expired;
    None
}

/// Builds the answer. `session` is held until its client has read it.
pub(super) fn response(
    gateway: &Gateway,
    session: OpenSession,
    collected: Collected,
    encoding: OutputEncoding,
) -> Response {
    let output = collected.stdout.length() + collected.stderr.length();
    let mut writer = Writer::new(collected, encoding);
    let left = (output <= ONE_PIECE).then(|| writer.join());
    let state = Arc::new(Mutex::new(State::Unread(writer)));
    let watched = CancellationToken::new();
    let watch = watch_progress(Arc::clone(&state), gateway.config.write_timeout());
    let dropped = watched.clone();
    gateway.results_in_flight.spawn(async move {
        tokio::select! {
            () = dropped.cancelled() => {}
            () = watch => {}
        }
    });
    let body = ResultBody {
        state,
        left,
        _watched: watched.drop_guard(),
        _session: session,
    };
    let mut response = AxumBody::new(body).into_response();
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::exec::Exit;
    use agentbox_contracts::ids::UserId;

    use super::super::output::BLOCK;
    use super::*;
    use crate::shares::Shares;

    fn writer(results: &Shares<UserId>, stdout: &[u8], encoding: OutputEncoding) -> Writer {
        let mut memory = ResultMemory::reserve(results, &UserId::random()).unwrap();
        memory.grow(stdout.len()).unwrap();
        let mut collected = Collected {
            stdout: Output::new(stdout.len()),
            stderr: Output::new(0),
            result: ExecResult {
                exit: Exit {
                    exit_code: 3,
                    duration_ms: 125,
                    ..Exit::default()
                },
                stdout_truncated: true,
                ..ExecResult::default()
            },
            memory,
        };
        collected.stdout.push(stdout).unwrap();
        Writer::new(collected, encoding)
    }

    fn written(stdout: &[u8], encoding: OutputEncoding) -> ExecReply {
        let results = Shares::new(1 << 30, 1 << 30);
        let mut pieces = writer(&results, stdout, encoding);
        let mut text = String::new();
        while let Some(piece) = pieces.take() {
            assert!(piece.len() <= BLOCK * 6 + 64, "{}", piece.len());
            text.push_str(&piece);
        }
        let mut joined = writer(&results, stdout, encoding);
        assert_eq!(joined.join(), text.len() as u64);
        assert!(joined.take().unwrap() == text);
        assert!(joined.take().is_none());
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn pieces_form_the_documented_reply() {
        let reply = written(b"Hello, World!\n", OutputEncoding::Utf8);
        let expected = ExecReply {
            stdout: "Hello, World!\n".to_owned(),
            exit_code: 3,
            duration_ms: 125,
            stdout_truncated: true,
            ..ExecReply::default()
        };
        assert_eq!(reply, expected);
    }

    #[test]
    fn output_of_any_length_is_text_or_base64() {
        let mut bytes = "€\u{1}\"\\\u{7f}".as_bytes().repeat(BLOCK / 4);
        bytes.extend(b"a\xff\0b\xe2\x82");
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, bytes.len()] {
            let bytes = &bytes[bytes.len() - length..];
            let text = written(bytes, OutputEncoding::Utf8).stdout;
            assert!(text == String::from_utf8_lossy(bytes), "{length}");
            let base64 = written(bytes, OutputEncoding::Base64).stdout;
            assert!(STANDARD.decode(base64).unwrap() == bytes, "{length}");
        }
    }

    #[test]
    fn result_that_is_not_read_in_time_is_dropped() {
        let results = Shares::new(1 << 30, 8 << 20);
        let bytes = vec![1; 6 << 20];
        let writer = writer(&results, &bytes, OutputEncoding::Utf8);
        let state = Mutex::new(State::Unread(writer));
        let user = UserId::random();
        let written = || {
            let mut state = state.lock();
            match &mut *state {
                State::Unread(writer) => writer.take().map(|_| writer.written),
                State::Complete | State::Expired => None,
            }
        };
        while written().unwrap() < MIN_PROGRESS {}
        let written = check_progress(&state, 0).unwrap();
        assert!(written >= MIN_PROGRESS);
        assert!(results.take(&user, 4 << 20).is_err());
        assert_eq!(check_progress(&state, written), None);
        assert!(matches!(*state.lock(), State::Expired));
        assert!(results.take(&user, 8 << 20).is_ok());
    }
}
