//! Copies the log to boxd's own stdout, where operators (`kubectl logs`) and the driver for
//! Kubernetes read it.
//!
//! Each entry is one line with its sequence and stream ([`agentbox_box_protocol::output::text`]).
//! Both streams go to stdout, so that the entries stay in order.
//!
//! Waits at most [`WRITE_TIMEOUT`] for a reader, and not again until it reads. Entries that would
//! wait longer are dropped here, and their sequences are missing. The log has them anyway.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use agentbox_box_protocol::output::{NewEntry, text};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write as write_fd;

/// The number of bytes that a writable pipe accepts without blocking (PIPE_BUF).
const ATOMIC_BYTES: usize = 4096;
/// How long the entries of one write may wait. One read of the command's output may become more
/// text than a pipe holds, so a reader that reads must be waited for.
const WRITE_TIMEOUT: Duration = Duration::from_millis(100);

#[derive(Default)]
pub struct Tee {
    text: Vec<u8>,
    /// The last line may be incomplete.
    is_cut: bool,
}

impl Tee {
    /// Writes entries; the first has the sequence `first`.
    pub fn write(&mut self, first: u64, entries: &[NewEntry<'_>]) {
        if entries.is_empty() {
            return;
        }
        let timeout = if self.is_cut {
            Duration::ZERO
        } else {
            WRITE_TIMEOUT
        };
        let deadline = Instant::now() + timeout;
        if self.is_cut {
            self.text.push(b'\n');
        }
        for (sequence, entry) in (first..).zip(entries) {
            text::encode(&mut self.text, sequence, entry);
            if self.text.len() >= ATOMIC_BYTES && !self.flush(deadline) {
                return;
            }
        }
        self.flush(deadline);
    }

    /// Whether the text was written; it is dropped otherwise.
    fn flush(&mut self, deadline: Instant) -> bool {
        self.is_cut = !write_all(std::io::stdout().as_fd(), &self.text, deadline);
        self.text.clear();
        !self.is_cut
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
