//! boxd's own stderr, which operators read.

use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::write;

/// Writes a line of boxd's own.
///
/// Unlike `eprintln`, which panics when nobody reads stderr any more, it drops a line that cannot be
/// written at once.
pub fn line(text: &str) {
    let stderr = std::io::stderr();
    let mut polled = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
        // Nobody is left to tell.
        let _ = write(stderr.as_fd(), format!("{text}\n").as_bytes());
    }
}
