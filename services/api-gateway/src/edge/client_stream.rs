//! The bytes of one client's connection.
//!
//! * I1. A request whose head hyper refuses is answered in the shape of every error. hyper answers
//!   it without the service, with an empty body, and has no option for it: the stream replaces
//!   that answer. Every other answer has a trace id, by which the stream distinguishes them.
//! * I2. A connection is closed in stages (RFC 9112, section 9.6). If the client still sends when the
//!   connection is closed, the kernel resets it, and the client may lose the last answer. So what
//!   the client sends after the last answer is read and dropped, at most for [`LINGER`]. After a change
//!   of the protocol only the output is ended: its user still reads the input.
//! * I3. When the connection's time is over and a part of a head has arrived, the client gets 408.
//! * I4. A write that waits for the client for longer than the write timeout ends the connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use agentbox_api::error::ErrorBody;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::activity::Activity;
use super::{headers, trace};
use crate::metrics;

/// How long the client of a connection that is being closed may still send.
const LINGER: Duration = Duration::from_secs(2);

/// The largest head of a request over HTTP/1, in bytes. It is in memory before the request has a
/// credential, so it is not much larger than the longest path and query.
pub(super) const MAX_HTTP1_HEAD: usize = 128 * 1024;

/// The first bytes of HTTP/2. No method of HTTP/1 begins with them.
const HTTP2_BEGIN: &[u8; 3] = b"PRI";

pub(super) struct ClientStream {
    stream: TcpStream,
    activity: Arc<Activity>,
    write_timeout: Duration,
    /// The first bytes that were read, and their number.
    first_bytes: [u8; HTTP2_BEGIN.len()],
    first_bytes_length: usize,
    /// Something was read after the last write.
    has_unanswered_bytes: bool,
    /// The answer that replaces the one that hyper is writing.
    refusal: Option<Refusal>,
    /// Runs while a write waits for the client.
    stall: Option<Pin<Box<Sleep>>>,
    linger: Option<Pin<Box<Sleep>>>,
}

impl ClientStream {
    pub(super) fn new(stream: TcpStream, activity: Arc<Activity>, write_timeout: Duration) -> Self {
        Self {
            stream,
            activity,
            write_timeout,
            first_bytes: [0; HTTP2_BEGIN.len()],
            first_bytes_length: 0,
            has_unanswered_bytes: false,
            refusal: None,
            stall: None,
            linger: None,
        }
    }

    fn record_read(&mut self, bytes: &[u8]) {
        self.has_unanswered_bytes |= !bytes.is_empty();
        let room = self.first_bytes.len() - self.first_bytes_length;
        for byte in bytes.iter().take(room) {
            self.first_bytes[self.first_bytes_length] = *byte;
            self.first_bytes_length += 1;
        }
        if room > 0 && self.first_bytes == *HTTP2_BEGIN {
            self.activity.set_http2();
        }
    }

    /// Ends the input. If a part of a head has arrived, its client first gets 408 (I3).
    fn poll_expire(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let first_bytes = &self.first_bytes[..self.first_bytes_length];
        if self.has_unanswered_bytes && !HTTP2_BEGIN.starts_with(first_bytes) {
            self.has_unanswered_bytes = false;
            let error = Error::new(
                ErrorCode::RequestTimeout,
                "the head of the request did not arrive in time",
            );
            self.refusal = Some(Refusal::new("HTTP/1.1 408 Request Timeout", None, &error));
        }
        if let Some(refusal) = &mut self.refusal {
            ready!(refusal.poll_write(&mut self.stream, cx))?;
            self.refusal = None;
        }
        Poll::Ready(Ok(()))
    }

    /// Records a write, or limits how long it waits for the client.
    fn watch_write(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stall = None;
            self.has_unanswered_bytes = false;
            self.activity.record_write();
            return written;
        }
        // The client of a terminal may stop its command by not reading.
        if self.activity.is_upgraded() {
            return Poll::Pending;
        }
        let write_timeout = self.write_timeout;
        let stall = self
            .stall
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(write_timeout)));
        ready!(stall.as_mut().poll(cx));
        metrics::limit_reached("write_timeout");
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Answers a connection that is closed at once. The kernel sends the answer if it has room for it,
/// which is so for the first bytes.
pub(super) fn refuse(stream: &TcpStream, error: &Error) {
    let refusal = Refusal::new("HTTP/1.1 429 Too Many Requests", None, error);
    if let Err(error) = SockRef::from(stream).send(&refusal.answer) {
        tracing::debug!(error = %ErrorChain(&error), "a refused connection could not be answered");
    }
}

/// An answer that is written without hyper.
struct Refusal {
    answer: Vec<u8>,
    written: usize,
}

impl Refusal {
    /// Replaces an answer of hyper. `None`: `bytes` are something else.
    fn replacing(bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(b"HTTP/1.1 4") || !bytes.ends_with(b"\r\n\r\n") {
            return None;
        }
        let head = std::str::from_utf8(bytes).ok()?;
        let lines: Vec<&str> = head.trim_end().split("\r\n").collect();
        let has = |name: &str| lines.iter().any(|line| line.starts_with(name));
        if has("x-trace-id:") || !has("content-length: 0") || lines.contains(&"") {
            return None;
        }
        let status_line = lines.first()?;
        let error = match status_line.get(9..12)? {
            "414" => Error::new(
                ErrorCode::UriTooLong,
                "the path and query must be at most 65534 bytes, are longer",
            ),
            "431" => Error::new(
                ErrorCode::HeadersTooLarge,
                format!(
                    "the head of a request must have at most 100 headers and {MAX_HTTP1_HEAD} \
                     bytes, has more"
                ),
            ),
            "400" => Error::new(
                ErrorCode::BadRequest,
                "the head of the request must be HTTP/1.1 (RFC 9112), is not",
            ),
            _ => return None,
        };
        let date = lines.iter().find(|line| line.starts_with("date:"));
        Some(Self::new(status_line, date.copied(), &error))
    }

    fn new(status_line: &str, date: Option<&str>, error: &Error) -> Self {
        let trace_id = trace::random_id();
        let status = error.code.status();
        metrics::record_request("OTHER", "unmatched", status, Duration::ZERO);
        tracing::debug!(%trace_id, status, "a request was refused before its head was complete");
        // Plain data with string keys always serializes.
        let body = serde_json::to_string(&ErrorBody::from(error)).unwrap_or_default();
        let date = date.map(|date| format!("{date}\r\n")).unwrap_or_default();
        let retry_after = error.retry_after_s;
        let retry_after = retry_after
            .map(|seconds| format!("retry-after: {seconds}\r\n"))
            .unwrap_or_default();
        let answer = format!(
            "{status_line}\r\n\
             content-type: application/json\r\n\
             content-length: {length}\r\n\
             {common}\
             x-trace-id: {trace_id}\r\n\
             connection: close\r\n\
             {retry_after}{date}\r\n\
             {body}",
            length = body.len(),
            common = headers::common_lines(),
        );
        Self {
            answer: answer.into_bytes(),
            written: 0,
        }
    }

    fn poll_write(&mut self, stream: &mut TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.answer.len() {
            let left = &self.answer[self.written..];
            match ready!(Pin::new(&mut *stream).poll_write(cx, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if read.is_ready() {
            this.record_read(&buffer.filled()[before..]);
        } else if this.activity.is_input_over() {
            return this.poll_expire(cx);
        }
        read
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.refusal.is_none() && !this.activity.is_upgraded() {
            this.refusal = Refusal::replacing(bytes);
        }
        let Some(refusal) = &mut this.refusal else {
            let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
            return this.watch_write(cx, written);
        };
        ready!(refusal.poll_write(&mut this.stream, cx))?;
        this.refusal = None;
        // hyper's whole answer was replaced.
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match slices {
            // An answer without a body.
            [only] => self.poll_write(cx, only),
            _ => {
                let this = self.get_mut();
                let written = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
                this.watch_write(cx, written)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        if this.activity.is_upgraded() {
            return Poll::Ready(Ok(()));
        }
        let linger = this
            .linger
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut bytes = [0; 8 * 1024];
        while linger.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                // The client has closed the connection.
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_of_hyper_is_replaced() {
        let own = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n\
                    content-length: 0\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n";
        let answer = Refusal::replacing(own).unwrap().answer;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let begin = "HTTP/1.1 431 Request Header Fields Too Large\r\n";
        assert!(head.starts_with(begin), "{head}");
        assert!(head.contains("\r\ndate: Thu, 01 Jan"), "{head}");
        assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())));
        assert_eq!(head.matches("connection: close").count(), 1);
        assert!(head.contains("\r\nx-trace-id: "));
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"], "headers_too_large");
        assert_eq!(body["code"], 431);
        for other in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 404 Not Found\r\nx-trace-id: 00\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n",
            "{\"a\":1}",
            "",
        ] {
            assert!(Refusal::replacing(other.as_bytes()).is_none(), "{other}");
        }
    }
}
