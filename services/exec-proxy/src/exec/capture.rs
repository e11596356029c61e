//! Applies the output caps, and decides between an inline result and streaming. Pure.

use agentbox_contracts::exec::{ExecResult, Exit, FromBox, MAX_CHUNK, MAX_INLINE_RESULT};
use agentbox_contracts::logs::OutputStream;
use bytes::Bytes;

/// Collects output while it fits an inline result; then streams it.
pub struct Capture {
    stdout: Stream,
    stderr: Stream,
    /// The output is too large for an inline result and is streamed.
    streaming: bool,
}

struct Stream {
    held: Vec<u8>,
    remaining: u64,
    truncated: bool,
}

impl Stream {
    fn new(cap: u64) -> Self {
        Self {
            held: Vec::new(),
            remaining: cap,
            truncated: false,
        }
    }

    /// The part of `bytes` within the cap.
    fn truncate_to_cap(&mut self, mut bytes: Bytes) -> Bytes {
        let remaining = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        if bytes.len() > remaining {
            bytes.truncate(remaining);
            self.truncated = true;
        }
        self.remaining -= bytes.len() as u64;
        bytes
    }
}

impl Capture {
    /// Keeps at most `cap` bytes of each of stdout and stderr.
    #[must_use]
    pub fn new(cap: u64) -> Self {
        Self {
            stdout: Stream::new(cap),
            stderr: Stream::new(cap),
            streaming: false,
        }
    }

    /// Adds output; returns the messages to send now.
    pub fn take(&mut self, stream: OutputStream, bytes: Bytes) -> Vec<FromBox> {
        let into = match stream {
            OutputStream::Stdout => &mut self.stdout,
            OutputStream::Stderr => &mut self.stderr,
        };
        let bytes = into.truncate_to_cap(bytes);
        if self.streaming {
            return messages(stream, bytes);
        }
        into.held.extend_from_slice(&bytes);
        if self.stdout.held.len() + self.stderr.held.len() <= MAX_INLINE_RESULT {
            return Vec::new();
        }
        self.streaming = true;
        let stdout = Bytes::from(std::mem::take(&mut self.stdout.held));
        let stderr = Bytes::from(std::mem::take(&mut self.stderr.held));
        let mut out = messages(OutputStream::Stdout, stdout);
        out.extend(messages(OutputStream::Stderr, stderr));
        out
    }

    /// The result for the last message.
    #[must_use]
    pub fn finish(self, exit: Exit) -> ExecResult {
        ExecResult {
            stdout: self.stdout.held,
            stderr: self.stderr.held,
            stdout_truncated: self.stdout.truncated,
            stderr_truncated: self.stderr.truncated,
            exit,
        }
    }
}

/// `bytes` as messages of at most [`MAX_CHUNK`] each.
pub fn messages(stream: OutputStream, mut bytes: Bytes) -> Vec<FromBox> {
    let mut out = Vec::with_capacity(bytes.len().div_ceil(MAX_CHUNK));
    while !bytes.is_empty() {
        let chunk = bytes.split_to(bytes.len().min(MAX_CHUNK));
        out.push(match stream {
            OutputStream::Stdout => FromBox::Stdout(chunk),
            OutputStream::Stderr => FromBox::Stderr(chunk),
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use OutputStream::{Stderr, Stdout};

    use super::*;

    fn joined(messages: &[FromBox], of: OutputStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        for message in messages {
            match (message, of) {
                (FromBox::Stdout(chunk), Stdout) | (FromBox::Stderr(chunk), Stderr) => {
                    assert!(chunk.len() <= MAX_CHUNK && !chunk.is_empty());
                    bytes.extend_from_slice(chunk);
                }
                _ => {}
            }
        }
        bytes
    }

    #[test]
    fn small_output_is_returned_inline() {
        let mut capture = Capture::new(100);
        assert!(capture.take(Stdout, Bytes::from_static(b"out")).is_empty());
        assert!(capture.take(Stderr, Bytes::from_static(b"err")).is_empty());
        let result = capture.finish(Exit {
            exit_code: 3,
            ..Exit::default()
        });
        assert_eq!(
            (result.stdout.as_slice(), result.stderr.as_slice()),
            (&b"out"[..], &b"err"[..])
        );
        assert_eq!(result.exit.exit_code, 3);
        assert!(!result.stdout_truncated && !result.stderr_truncated);
    }

    #[test]
    fn cap_truncates_own_stream_exactly_and_sets_flag() {
        for (cap, printed, kept, truncated) in [
            (5, 5, 5, false),
            (5, 6, 5, true),
            (0, 1, 0, true),
            (0, 0, 0, false),
        ] {
            let mut capture = Capture::new(cap);
            for _ in 0..printed {
                capture.take(Stdout, Bytes::from_static(b"x"));
            }
            let result = capture.finish(Exit::default());
            assert_eq!(
                (result.stdout.len(), result.stdout_truncated),
                (kept, truncated)
            );
            assert!(!result.stderr_truncated);
        }
    }

    #[test]
    fn large_output_is_sent_in_chunks_complete_and_in_order() {
        let mut capture = Capture::new(u64::MAX);
        let out: Vec<u8> = (0..MAX_INLINE_RESULT + 70_000)
            .map(|n| (n % 251) as u8)
            .collect();
        let mut sent = capture.take(Stderr, Bytes::from_static(b"first"));
        for part in out.chunks(50_000) {
            sent.extend(capture.take(Stdout, Bytes::copy_from_slice(part)));
        }
        assert_eq!(joined(&sent, Stdout), out);
        assert_eq!(joined(&sent, Stderr), b"first");
        let result = capture.finish(Exit::default());
        assert!(result.stdout.is_empty() && result.stderr.is_empty());
    }

    #[test]
    fn cap_above_inline_size_applies_to_streamed_output() {
        let cap = MAX_INLINE_RESULT + 10;
        let mut capture = Capture::new(cap as u64);
        let mut sent = Vec::new();
        for _ in 0..20 {
            sent.extend(capture.take(Stdout, Bytes::from(vec![7; 40_000])));
        }
        assert_eq!(joined(&sent, Stdout).len(), cap);
        assert!(capture.finish(Exit::default()).stdout_truncated);
    }
}
