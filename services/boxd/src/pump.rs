//! Moves a command's output from its pipe or terminal into a sink.
//!
//! Invariants:
//! * I1. Bytes are read only when the sink has space: a full sink blocks the command.
//! * I2. All bytes that the command wrote before it ended are read, however slow the
//!   reader.
//! * I3. A process that holds the pipe open after the command's end delays the end by at
//!   most [`GRACE`]. What it writes later is not output of the command.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::terminal::Terminal;

/// How long processes that outlive the command may still add to its output.
pub const GRACE: Duration = Duration::from_millis(100);
const BUFFER_BYTES: usize = 32 * 1024;
/// More than a terminal's buffers hold; the kernel does not report their fill level.
const TERMINAL_BUFFER_BYTES: usize = 128 * 1024;

pub enum Source {
    Pipe(pipe::Receiver),
    Terminal(Arc<Terminal>),
}

/// The destination of output.
pub trait Sink: Sync {
    /// Lets `read` fill as much of `buffer` as the sink has space for, and stores it;
    /// `None` when there is no space.
    fn read_into(
        &self,
        buffer: &mut [u8],
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>>;

    /// Returns when there may be space.
    fn writable(&self) -> impl Future<Output = ()> + Send;
}

/// The result of one read from a source into a sink.
enum Step {
    Read(usize),
    /// The source has no bytes now.
    Empty,
    /// The sink has no space now.
    Full,
    /// The source has ended.
    Closed,
}

impl Source {
    fn step(&self, sink: &impl Sink, buffer: &mut [u8]) -> Step {
        let filled = sink.read_into(buffer, |space| match self {
            Self::Pipe(pipe) => pipe.try_read(space),
            Self::Terminal(terminal) => terminal.try_read(space),
        });
        match filled {
            None => Step::Full,
            Some(Ok(0)) => Step::Closed,
            Some(Ok(read)) => Step::Read(read),
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Step::Empty,
            Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => Step::Read(0),
            Some(Err(_)) => Step::Closed,
        }
    }

    async fn readable(&self) {
        // An error occurs again at the read, and is handled there.
        let _ = match self {
            Self::Pipe(pipe) => pipe.readable().await,
            Self::Terminal(terminal) => terminal.readable().await,
        };
    }

    /// The number of bytes that were written and not read yet.
    fn unread_bytes(&self) -> usize {
        match self {
            Self::Pipe(pipe) => rustix::io::ioctl_fionread(pipe)
                .ok()
                .and_then(|bytes| usize::try_from(bytes).ok())
                .unwrap_or(0),
            Self::Terminal(_) => TERMINAL_BUFFER_BYTES,
        }
    }
}

/// Moves all output of `source`; after `command_ended` is cancelled, the remaining output.
/// Waits for space without a deadline: the caller drops it when no reader is left.
pub async fn pump(source: &Source, sink: &impl Sink, command_ended: CancellationToken) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while !command_ended.is_cancelled() {
        match source.step(sink, &mut buffer) {
            Step::Closed => return,
            Step::Read(_) => consume_budget().await,
            Step::Full => {
                tokio::select! { () = sink.writable() => {} () = command_ended.cancelled() => {} }
            }
            Step::Empty => {
                tokio::select! { () = source.readable() => {} () = command_ended.cancelled() => {} }
            }
        }
    }
    drain(source, sink, &mut buffer).await;
}

async fn drain(source: &Source, sink: &impl Sink, buffer: &mut [u8]) {
    let deadline = Instant::now() + GRACE;
    let mut unread = source.unread_bytes();
    loop {
        let overdue = Instant::now() >= deadline;
        let limit = if overdue {
            unread.min(buffer.len())
        } else {
            buffer.len()
        };
        let Some(buffer) = buffer.get_mut(..limit).filter(|buffer| !buffer.is_empty()) else {
            return;
        };
        match source.step(sink, buffer) {
            Step::Closed => return,
            Step::Read(read) => {
                unread = unread.saturating_sub(read);
                consume_budget().await;
            }
            Step::Full => sink.writable().await,
            Step::Empty if overdue => return,
            Step::Empty => {
                // After the deadline the next round is overdue.
                let _ = timeout_at(deadline, source.readable()).await;
            }
        }
    }
}
