//! A run: a command that a caller started in the box.
//!
//! Owns its output (a bounded [`ring`]), its stdin and its terminal. Invariants:
//! * I1. Output bytes are in order and numbered over both streams; lost bytes are reported
//!   as a gap.
//! * I2. At most the ring's capacity is buffered for the reader; then the command blocks.
//! * I3. A run has one reader at a time, the newest. A command without a reader for the
//!   orphan grace is killed.
//! * I4. The exit follows all output, and is always the kernel's.

mod input;
mod reader;
mod registry;
mod ring;
mod spec;
mod start;
mod supervise;

use std::io;
use std::sync::Arc;

use agentbox_box_protocol::proto::{self, run_output};
use agentbox_contracts::logs::OutputStream;
use bytes::Bytes;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use parking_lot::Mutex;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use input::apply_inputs;
pub use reader::Reader;
pub use registry::{Registry, RegistryError};
pub use spec::{InvalidRunSpec, RunId, RunSpec, arguments, variables};
pub use start::{Started, Starter, output_pipe};

use crate::reaper::Reaper;
use crate::terminal::{Size, Terminal};
use ring::Ring;

/// The limit for the output in one message, in bytes.
const MAX_MESSAGE_OUTPUT: usize = 32 * 1024;

enum Stdin {
    Pipe(pipe::Sender),
    Terminal(Arc<Terminal>),
}

pub struct Run {
    id: RunId,
    leader: Pid,
    reaper: Arc<Reaper>,
    state: Mutex<State>,
    /// Incremented when there is something for the reader.
    output_changed: watch::Sender<u64>,
    /// Incremented when ring space may have become free.
    space_freed: watch::Sender<u64>,
    /// Since when there is no reader; `None` while there is one.
    unread_since: watch::Sender<Option<Instant>>,
    stdin: tokio::sync::Mutex<Option<Stdin>>,
    terminal: Mutex<Option<Arc<Terminal>>>,
    /// Cancelled when the command has ended; its output may not be complete yet.
    command_ended: CancellationToken,
}

struct State {
    ring: Ring,
    /// The sequence of the next byte for the reader.
    sent: u64,
    acked: u64,
    /// Whether sent bytes are kept until they are acked.
    acks: bool,
    /// The number of the current reader; rises with each new one.
    reader: u64,
    exited: Option<proto::Exited>,
    /// Ended without an exit of its own: the box shut down, or output was lost.
    aborted: bool,
}

impl State {
    /// Bytes before this sequence may be dropped.
    fn floor(&self) -> u64 {
        if self.acks { self.acked } else { self.sent }
    }
}

/// The result of [`Run::next_output`].
enum NextOutput {
    Output(proto::RunOutput),
    Exited(proto::RunOutput),
    /// The run ended without an exit of its own.
    Aborted,
    Nothing,
    /// Another reader has attached.
    Superseded,
}

impl Run {
    #[must_use]
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// Sends SIGKILL to the command's process group and to the groups of its jobs.
    pub fn kill(&self) {
        self.reaper.kill_session(self.leader);
    }

    /// Sends SIGKILL to the command's process group only. Used when the box shuts down:
    /// with hundreds of runs, searching for jobs would take longer than the box's grace.
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

    /// Resizes the terminal. Does nothing for a run without one, or after its end.
    ///
    /// # Errors
    /// As `ioctl(2)`.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        let terminal = self.terminal.lock().clone();
        terminal.map_or(Ok(()), |terminal| terminal.resize(size))
    }

    /// Marks the bytes before `sequence` as received, at most those that were sent.
    pub fn ack(&self, sequence: u64) {
        let mut state = self.state.lock();
        state.acked = state.acked.max(sequence.min(state.sent));
        drop(state);
        self.space_freed.send_modify(|count| *count += 1);
    }

    /// Writes to stdin; waits while the command does not read. Drops the bytes when stdin
    /// is closed.
    async fn write_stdin(&self, bytes: &[u8]) {
        let mut stdin = self.stdin.lock().await;
        let written = match stdin.as_mut() {
            Some(Stdin::Pipe(pipe)) => tokio::io::AsyncWriteExt::write_all(pipe, bytes).await,
            Some(Stdin::Terminal(terminal)) => terminal.write_all(bytes).await,
            None => Ok(()),
        };
        if written.is_err() {
            *stdin = None;
        }
    }

    /// Ends stdin.
    async fn end_stdin(&self) {
        let mut stdin = self.stdin.lock().await;
        if let Some(Stdin::Terminal(terminal)) = stdin.as_ref() {
            // The terminal stays open for programs that continue to read. An error means that
            // it is already closed.
            let _ = terminal.end_input().await;
        } else {
            *stdin = None;
        }
    }

    /// Attaches a new reader at byte `from`; returns its number, or the end of the output
    /// when `from` is after it.
    fn attach(&self, from: Option<u64>) -> Result<u64, u64> {
        let mut state = self.state.lock();
        if let Some(from) = from {
            let end = state.ring.end();
            if from > end {
                return Err(end);
            }
            state.sent = from;
            state.acked = state.acked.max(from);
        }
        state.reader += 1;
        let reader = state.reader;
        self.unread_since.send_replace(None);
        drop(state);
        self.output_changed.send_modify(|count| *count += 1);
        self.space_freed.send_modify(|count| *count += 1);
        Ok(reader)
    }

    fn detach(&self, reader: u64) {
        let state = self.state.lock();
        if state.reader == reader {
            self.unread_since.send_replace(Some(Instant::now()));
        }
    }

    fn next_output(&self, reader: u64) -> NextOutput {
        let mut state = self.state.lock();
        if state.reader != reader {
            return NextOutput::Superseded;
        }
        let sequence = state.sent;
        let kept = state.ring.start();
        if sequence < kept {
            state.sent = kept;
            let gap = proto::Gap {
                lost_bytes: kept - sequence,
            };
            return NextOutput::Output(output(sequence, run_output::Output::Gap(gap)));
        }
        if let Some((stream, bytes)) = state.ring.read(sequence, MAX_MESSAGE_OUTPUT) {
            state.sent += bytes.len() as u64;
            drop(state);
            self.space_freed.send_modify(|count| *count += 1);
            return NextOutput::Output(data(sequence, stream, bytes));
        }
        match &state.exited {
            Some(exited) => {
                let exited = run_output::Output::Exited(exited.clone());
                NextOutput::Exited(output(sequence, exited))
            }
            None if state.aborted => NextOutput::Aborted,
            None => NextOutput::Nothing,
        }
    }

    /// The number of bytes in the ring.
    fn buffered_bytes(&self) -> usize {
        self.state.lock().ring.len()
    }
}

fn output(sequence: u64, output: run_output::Output) -> proto::RunOutput {
    proto::RunOutput {
        sequence,
        output: Some(output),
    }
}

fn data(sequence: u64, stream: OutputStream, bytes: Bytes) -> proto::RunOutput {
    let bytes = match stream {
        OutputStream::Stdout => run_output::Output::Stdout(bytes),
        OutputStream::Stderr => run_output::Output::Stderr(bytes),
    };
    output(sequence, bytes)
}
