//! Copies the log to boxd's own stdout, where operators (`kubectl logs`) and the driver for
//! Kubernetes read it.
//!
//! Each entry is one line with its sequence and stream ([`agentbox_box_protocol::output::text`]).
//! Both streams go to stdout, so that the entries stay in order.
//!
//! A write waits at most [`WRITE_TIMEOUT`] for the reader, and not again until it reads. Entries that
//! it does not take stay in the log, and are copied by a later write, at the latest when the main
//! command has ended ([`super::Log::end_copy`]). The sequences of those that the log has dropped
//! meanwhile are missing.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use agentbox_box_protocol::output::{NewEntry, Output, text};
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
            self.write_entries(entries, Instant::now() + WRITE_TIMEOUT);
        }
    }

    /// Copies the entries of `output` that are not copied yet. Returns whether it has copied all
    /// that can be read before the deadline.
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
            if !self.write_entries(entries, deadline) {
                return false;
            }
            self.next_sequence = batch.next_sequence;
        }
        true
    }

    /// Whether all were written before the deadline.
    fn write_entries<'a>(
        &mut self,
        entries: impl Iterator<Item = (u64, NewEntry<'a>)>,
        deadline: Instant,
    ) -> bool {
        let mut next_sequence = self.next_sequence;
        for (sequence, entry) in entries {
            text::encode(&mut self.text, sequence, &entry);
            next_sequence = sequence + 1;
            if self.text.len() >= ATOMIC_BYTES && !self.flush(next_sequence, deadline) {
                return false;
            }
        }
        self.flush(next_sequence, deadline)
    }

    /// Writes the text, which ends before `next_sequence`. Returns whether all was written; a line
    /// of which a part was written is copied again.
    fn flush(&mut self, next_sequence: u64, deadline: Instant) -> bool {
        let stdout = std::io::stdout();
        let stdout = stdout.as_fd();
        let is_written = (!self.is_cut || write_all(stdout, b"\n", deadline))
            && write_all(stdout, &self.text, deadline);
        self.text.clear();
        self.is_cut = !is_written;
        if is_written {
            self.next_sequence = next_sequence;
        }
        is_written
    }
}

/// Whether all bytes were written before the deadline.
fn write_all(fd: BorrowedFd<'_>, bytes: &[u8], deadline: Instant) -> bool {
    bytes.chunks(ATOMIC_BYTES).all(|chunk| {
        is_writable(fd, deadline) && write_fd(fd, chunk).is_ok_and(|written| written == chunk.len())
    })
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
