//! A command that a caller started: its process, stdin and terminal.
//!
//! [`Starter`] is the one place that starts commands of callers. [`supervise()`] awaits their end
//! and moves their output into an [`OutputStore`]: that of a [`crate::run`] has one reader, that
//! of an execution ([`crate::executions`]) any number.
//!
//! * I1. A command that runs or starts holds one of the box's [`Slots`].
//! * I2. A process group is signalled only while its leader is not reaped ([`Reaper`]).

mod ring;
mod slots;
mod spec;
mod start;
mod supervise;

use std::io;
use std::sync::Arc;

use agentbox_contracts::logs::OutputStream;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use parking_lot::Mutex;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use ring::Ring;
pub use slots::{NoSlot, Slot, Slots};
pub use spec::{
    InvalidCommand, MAX_DURATION, ProcessSpec, arguments, size, variables, working_dir,
};
pub use start::{Launched, Prepared, Starter, output_pipe};
pub use supervise::{Limits, ProcessEnd, supervise};

use crate::reaper::Reaper;
use crate::terminal::{Size, Terminal};

/// Holds the output of a process for its readers.
pub trait OutputStore: Send + Sync {
    /// Lets `read` fill as much of `buffer` as there is space for, and stores it; `None` when
    /// there is no space.
    fn read_into(
        &self,
        stream: OutputStream,
        buffer: &mut [u8],
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>>;

    /// Returns when there may be space.
    fn writable(&self, stream: OutputStream) -> impl Future<Output = ()> + Send;

    /// Since when there is no reader; `None` while there is one.
    fn unread_since(&self) -> watch::Receiver<Option<Instant>>;
}

/// Stdin is closed: by a caller, by the command, or because the process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StdinClosed;

enum Stdin {
    Pipe(pipe::Sender),
    Terminal(Arc<Terminal>),
}

pub struct Process {
    leader: Pid,
    reaper: Arc<Reaper>,
    stdin: tokio::sync::Mutex<Option<Stdin>>,
    terminal: Mutex<Option<Arc<Terminal>>>,
    /// Cancelled when the command has ended; its output may not be complete yet.
    ended: CancellationToken,
}

impl Process {
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.leader.as_raw().unsigned_abs()
    }

    /// Cancelled when the command has ended; its output may not be complete yet.
    #[must_use]
    pub fn ended(&self) -> &CancellationToken {
        &self.ended
    }

    /// Sends SIGKILL to the command's process group and to the groups of its jobs.
    pub fn kill(&self) {
        self.reaper.kill_session(self.leader);
    }

    /// Sends SIGKILL to the command's process group only. Used when the box shuts down:
    /// with hundreds of commands, searching for jobs would take longer than the box's grace.
    fn kill_group(&self) {
        self.reaper.signal_group(self.leader, Signal::SIGKILL);
    }

    /// Signals the terminal's foreground group, or the command's group.
    pub fn signal(&self, signal: Signal) {
        let terminal = self.terminal.lock().clone();
        if signal != Signal::SIGKILL
            && let Some(terminal) = terminal
            && terminal.signal_foreground(signal)
        {
            return;
        }
        self.reaper.signal_group(self.leader, signal);
    }

    /// Resizes the terminal. Does nothing for a process without one, or after its end.
    ///
    /// # Errors
    /// As `ioctl(2)`.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        let terminal = self.terminal.lock().clone();
        terminal.map_or(Ok(()), |terminal| terminal.resize(size))
    }

    /// Writes to stdin; waits while the command runs and does not read.
    ///
    /// # Errors
    /// [`StdinClosed`]; then bytes are lost.
    pub async fn write_stdin(&self, bytes: &[u8]) -> Result<(), StdinClosed> {
        let written = async {
            let mut stdin = self.stdin.lock().await;
            let written = match stdin.as_mut() {
                Some(Stdin::Pipe(pipe)) => tokio::io::AsyncWriteExt::write_all(pipe, bytes).await,
                Some(Stdin::Terminal(terminal)) => terminal.write_all(bytes).await,
                None => return Err(StdinClosed),
            };
            written.map_err(|_| {
                *stdin = None;
                StdinClosed
            })
        };
        self.unless_ended(written).await
    }

    /// Ends stdin. The stdin of a terminal stays open for programs that continue to read.
    ///
    /// # Errors
    /// [`StdinClosed`] when it is closed already.
    pub async fn end_stdin(&self) -> Result<(), StdinClosed> {
        let ended = async {
            let mut stdin = self.stdin.lock().await;
            if let Some(Stdin::Terminal(terminal)) = stdin.as_ref() {
                return terminal.end_input().await.map_err(|_| StdinClosed);
            }
            stdin.take().map(drop).ok_or(StdinClosed)
        };
        self.unless_ended(ended).await
    }

    /// No process reads stdin after the end of the command.
    async fn unless_ended(
        &self,
        input: impl Future<Output = Result<(), StdinClosed>>,
    ) -> Result<(), StdinClosed> {
        tokio::select! {
            () = self.ended.cancelled() => Err(StdinClosed),
            result = input => result,
        }
    }

    /// Closes stdin and the terminal of a process that has ended. The kernel sends SIGHUP to
    /// processes that still use the terminal.
    async fn close(&self) {
        self.terminal.lock().take();
        *self.stdin.lock().await = None;
    }
}
