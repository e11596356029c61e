//! Writes to boxd's own stdout and stderr, which operators read (`kubectl logs`).
//!
//! Never waits: output that would block is dropped here. The log has it anyway.

use std::os::fd::{AsFd, BorrowedFd};

use agentbox_contracts::logs::OutputStream;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write as write_fd;

/// The number of bytes that a writable pipe accepts without blocking (PIPE_BUF).
const ATOMIC_BYTES: usize = 4096;

pub fn write(stream: OutputStream, bytes: &[u8]) {
    match stream {
        OutputStream::Stdout => write_to(std::io::stdout().as_fd(), bytes),
        OutputStream::Stderr => write_to(std::io::stderr().as_fd(), bytes),
    }
}

/// Writes a line of boxd's own to its stderr. Unlike `eprintln`, which panics when nobody reads
/// stderr any more, it drops a line that cannot be written.
pub fn line(text: &str) {
    write(OutputStream::Stderr, format!("{text}\n").as_bytes());
}

fn write_to(fd: BorrowedFd<'_>, bytes: &[u8]) {
    for chunk in bytes.chunks(ATOMIC_BYTES) {
        let mut polled = [PollFd::new(fd, PollFlags::POLLOUT)];
        let ready = poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
        if !ready || write_fd(fd, chunk).is_err() {
            return;
        }
    }
}
