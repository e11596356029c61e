//! Moves a command's output from its pipe or terminal to where it is kept.
//!
//! Invariants:
//! * I1. Nothing is read for which there is no room: a full sink blocks the command.
//! * I2. What the command wrote before it ended is read, however slow the reader.
//! * I3. Who holds the pipe open after the command's end delays it by [`GRACE`] at most.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::unix::pipe;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::terminal::Terminal;

/// How long children that outlive the command may still add to its output.
pub const GRACE: Duration = Duration::from_millis(100);
const BUFFER_BYTES: usize = 32 * 1024;
/// More than a terminal's buffers hold; how much they do cannot be asked.
const TERMINAL_OWES: usize = 128 * 1024;

pub enum Source {
    Pipe(pipe::Receiver),
    Terminal(Arc<Terminal>),
}

/// Where output goes.
pub trait Sink: Sync {
    /// Lets `read` fill as much of `buffer` as there is room for and keeps it; `None`
    /// when there is no room.
    fn fill(
        &self,
        buffer: &mut [u8],
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>>;

    /// Returns when there may be room.
    fn room(&self) -> impl Future<Output = ()> + Send;
}

enum Step {
    Read(usize),
    Empty,
    Full,
    Ended,
}

impl Source {
    fn step(&self, sink: &impl Sink, buffer: &mut [u8]) -> Step {
        let filled = sink.fill(buffer, |room| match self {
            Self::Pipe(pipe) => pipe.try_read(room),
            Self::Terminal(terminal) => terminal.try_read(room),
        });
        match filled {
            None => Step::Full,
            Some(Ok(0)) => Step::Ended,
            Some(Ok(read)) => Step::Read(read),
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Step::Empty,
            Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => Step::Read(0),
            Some(Err(_)) => Step::Ended,
        }
    }

    async fn readable(&self) {
        // An error shows again, and is handled, at the read.
        let _ = match self {
            Self::Pipe(pipe) => pipe.readable().await,
            Self::Terminal(terminal) => terminal.readable().await,
        };
    }

    /// Bytes written and not read yet.
    fn owed(&self) -> usize {
        match self {
            Self::Pipe(pipe) => rustix::io::ioctl_fionread(pipe)
                .ok()
                .and_then(|bytes| usize::try_from(bytes).ok())
                .unwrap_or(0),
            Self::Terminal(_) => TERMINAL_OWES,
        }
    }
}

/// Moves all of `source`; when `command_ended` is cancelled, what remains. Waits for
/// room without a deadline: dropped by who knows that nobody reads any more.
pub async fn pump(source: Source, sink: &impl Sink, command_ended: CancellationToken) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while !command_ended.is_cancelled() {
        match source.step(sink, &mut buffer) {
            Step::Ended => return,
            Step::Read(_) => consume_budget().await,
            Step::Full => {
                tokio::select! { () = sink.room() => {} () = command_ended.cancelled() => {} }
            }
            Step::Empty => {
                tokio::select! { () = source.readable() => {} () = command_ended.cancelled() => {} }
            }
        }
    }
    drain(&source, sink, &mut buffer).await;
}

async fn drain(source: &Source, sink: &impl Sink, buffer: &mut [u8]) {
    let deadline = Instant::now() + GRACE;
    let mut owed = source.owed();
    loop {
        let late = Instant::now() >= deadline;
        let wanted = if late {
            owed.min(buffer.len())
        } else {
            buffer.len()
        };
        let Some(buffer) = buffer.get_mut(..wanted).filter(|buffer| !buffer.is_empty()) else {
            return;
        };
        match source.step(sink, buffer) {
            Step::Ended => return,
            Step::Read(read) => {
                owed = owed.saturating_sub(read);
                consume_budget().await;
            }
            Step::Full => sink.room().await,
            Step::Empty if late => return,
            Step::Empty => {
                // At the deadline the next round sees that it is late.
                let _ = timeout_at(deadline, source.readable()).await;
            }
        }
    }
}
