//! Copies the log to boxd's own stdout, where operators (`kubectl logs`) and the driver for
//! Kubernetes read it.
//!
//! Each entry is one line with its sequence and stream ([`agentbox_box_protocol::output::text`]).
//! Both streams go to stdout, so that the entries stay in order.
//!
//! A write waits at most [`WRITE_TIMEOUT`] for the reader, and not again until it reads. Entries that
//! it does not take stay in the log, and are copied by a later write, at the latest when the main
//! command has ended ([`super::Log::copy_rest`]). The sequences of those that the log has dropped
//! meanwhile are missing.
//!
//! The records of executions are lines between them ([`agentbox_box_protocol::output::execution_text`]).
//! A record that the reader does not take is not written again.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use agentbox_box_protocol::output::{NewEntry, Output, execution_text, text};
use agentbox_contracts::executions::Execution;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write as write_fd;

/// The number of bytes that a writable pipe accepts without blocking (PIPE_BUF).
const ATOMIC_BYTES: usize = 4096;
/// The approximate size of one read from the log.
const READ_BYTES: usize = 16 * 1024;
/// How long the entries of one write may wait. One read of the command's output may become more
/// text than a pipe holds, so a reader that reads must be waited for.
const WRITE_TIMEOUT: Duration = Duration::from_millis(100);

pub struct Tee {
    text: Vec<u8>,
    /// The first sequence that is not copied.
    next_sequence: u64,
    /// The last line may be incomplete.
    is_cut: bool,
}

impl Tee {
    pub const fn new(next_sequence: u64) -> Self {
        Self {
            text: Vec::new(),
            next_sequence,
            is_cut: false,
        }
    }

    /// Copies entries that were appended to `output`; the first has the sequence `first`.
    pub fn write(&mut self, output: &Output, first: u64, entries: &[NewEntry<'_>]) {
        if self.next_sequence < first {
            self.copy(output, Instant::now());
        } else {
            let entries = (first..).zip(entries.iter().copied());
            // Without a reader the entries stay in the log.
            let _ = self.write_entries(entries, Instant::now() + WRITE_TIMEOUT);
        }
    }

    /// Writes the record of an execution.
    pub fn write_execution(&mut self, execution: &Execution) {
        execution_text::encode(&mut self.text, execution);
        // The journal has the record too.
        let _ = self.flush(Instant::now() + WRITE_TIMEOUT);
    }

    /// Writes that an execution was forgotten.
    pub fn write_forgotten(&mut self, id: &str) {
        execution_text::encode_forgotten(&mut self.text, id);
        // As for a record.
        let _ = self.flush(Instant::now() + WRITE_TIMEOUT);
    }

    /// Copies the entries of `output` that are not copied yet. Returns `false` at the deadline, and
    /// `true` when none is left, or the log cannot be read or stdout not be written.
    pub fn copy(&mut self, output: &Output, deadline: Instant) -> bool {
        while self.next_sequence < output.next_sequence() {
            if !is_writable(std::io::stdout().as_fd(), deadline) {
                return false;
            }
            let Ok(batch) = output.read(self.next_sequence, READ_BYTES) else {
                return true;
            };
            let entries = batch.entries.iter().map(|entry| {
                let new = NewEntry {
                    stream: entry.stream,
                    partial: entry.partial,
                    line: &entry.line,
                };
                (entry.sequence, new)
            });
            match self.write_entries(entries, deadline) {
                Ok(true) => self.next_sequence = batch.next_sequence,
                Ok(false) => return false,
                Err(_) => return true,
            }
        }
        true
    }

    /// Whether all were written before the deadline.
    fn write_entries<'a>(
        &mut self,
        entries: impl Iterator<Item = (u64, NewEntry<'a>)>,
        deadline: Instant,
    ) -> nix::Result<bool> {
        for (sequence, entry) in entries {
            text::encode(&mut self.text, sequence, &entry);
            if self.text.len() >= ATOMIC_BYTES && !self.flush(deadline)? {
                return Ok(false);
            }
        }
        self.flush(deadline)
    }

    /// Writes the text and clears it. Returns whether all was written.
    fn flush(&mut self, deadline: Instant) -> nix::Result<bool> {
        let is_written = self.write_text(deadline);
        self.text.clear();
        is_written
    }

    /// Returns whether all was written; a line of which a part was written is copied again.
    fn write_text(&mut self, deadline: Instant) -> nix::Result<bool> {
        let stdout = std::io::stdout();
        let stdout = stdout.as_fd();
        if self.is_cut && write_some(stdout, b"\n", deadline)? == 0 {
            return Ok(false);
        }
        let written = write_some(stdout, &self.text, deadline)?;
        let is_written = written == self.text.len();
        self.text.truncate(written);
        let mut lines = self.text.rsplit(|byte| *byte == b'\n');
        self.is_cut = lines.next().is_some_and(|rest| !rest.is_empty());
        if let Some((sequence, _)) = lines.next().and_then(text::decode) {
            self.next_sequence = sequence + 1;
        }
        Ok(is_written)
    }
}

/// Writes until the deadline; returns the number of bytes written. An error after some bytes is that
/// of the next call.
fn write_some(fd: BorrowedFd<'_>, bytes: &[u8], deadline: Instant) -> nix::Result<usize> {
    let mut total = 0;
    for chunk in bytes.chunks(ATOMIC_BYTES) {
        if !is_writable(fd, deadline) {
            break;
        }
        let written = match write_fd(fd, chunk) {
            Err(error) if total == 0 => return Err(error),
            written => written.unwrap_or(0),
        };
        total += written;
        if written < chunk.len() {
            break;
        }
    }
    Ok(total)
}

fn is_writable(fd: BorrowedFd<'_>, deadline: Instant) -> bool {
    loop {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(remaining).unwrap_or(PollTimeout::ZERO);
        let mut polled = [PollFd::new(fd, PollFlags::POLLOUT)];
        match poll(&mut polled, timeout) {
            // A signal: a process of the box has ended.
            Err(Errno::EINTR) => {}
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
    }
}
