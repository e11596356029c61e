//! A command that a caller started in the box, from its start until nobody asks for it.
//!
//! Owns its output (a bounded [`ring`]), its stdin and its terminal. Invariants:
//! * I1. Bytes come in order, numbered over both streams; what is lost is told.
//! * I2. At most the ring's capacity waits for the reader; then the command blocks.
//! * I3. One reader at a time, the newest; without one for the grace the command dies.
//! * I4. The exit is given after all output, and only when the kernel said so.

mod feed;
mod id;
mod reader;
mod registry;
mod ring;
mod start;
mod supervise;
mod wish;

use std::io;
use std::sync::{Arc, Mutex};

use agentbox_box_protocol::proto::{self, run_output};
use agentbox_contracts::logs::OutputStream;
use bytes::Bytes;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use feed::feed;
pub use id::RunId;
pub use reader::Reader;
pub use registry::{Registry, RegistryError};
pub use start::{Started, Starter, output_pipe};
pub use wish::{InvalidWish, Wish, arguments, variables};

use crate::lock::lock;
use crate::reaper::Reaper;
use crate::terminal::{END_OF_INPUT, Size, Terminal};
use ring::Ring;

/// Output in one message, at most.
const MESSAGE_BYTES: usize = 32 * 1024;

enum Stdin {
    Pipe(pipe::Sender),
    Terminal(Arc<Terminal>),
}

pub struct Run {
    id: RunId,
    leader: Pid,
    reaper: Arc<Reaper>,
    state: Mutex<State>,
    /// Rises when there is something for a reader.
    news: watch::Sender<u64>,
    /// Rises when room may have become free.
    room: watch::Sender<u64>,
    /// Since when nobody reads.
    unread_since: watch::Sender<Option<Instant>>,
    stdin: tokio::sync::Mutex<Option<Stdin>>,
    terminal: Mutex<Option<Arc<Terminal>>>,
    /// Cancelled when the command itself has ended; its output may still be on its way.
    command_ended: CancellationToken,
}

struct State {
    ring: Ring,
    /// The next byte for the reader.
    sent: u64,
    acked: u64,
    /// Whether what was sent is kept until it is acked.
    acks: bool,
    /// Counts readers; the last is the one that is served.
    reader: u64,
    exited: Option<proto::Exited>,
    /// The box ended under it: there is no exit of its own to tell.
    cut: bool,
}

impl State {
    /// Everything before it may be forgotten.
    fn floor(&self) -> u64 {
        if self.acks { self.acked } else { self.sent }
    }
}

/// What [`Run::take`] has for a reader.
enum Taken {
    Output(proto::RunOutput),
    Exited(proto::RunOutput),
    /// The box ends, and the run with it.
    Cut,
    Nothing,
    /// Another reader came.
    Superseded,
}

impl Run {
    #[must_use]
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// SIGKILL to the command's whole group, and to the groups of its jobs.
    pub fn kill(&self) {
        self.reaper.kill_session(self.leader);
    }

    /// The same without a search for jobs, when the box ends and takes them along: with
    /// hundreds of runs the searches would outlast the box's grace.
    fn kill_group(&self) {
        self.reaper.signal_group(self.leader, Signal::SIGKILL);
    }

    /// To the terminal's foreground group, or to the command's group.
    pub fn signal(&self, signal: Signal) {
        let terminal = lock(&self.terminal).clone();
        if signal != Signal::SIGKILL
            && let Some(terminal) = terminal
            && terminal.signal_foreground(signal)
        {
            return;
        }
        self.reaper.signal_group(self.leader, signal);
    }

    /// Nothing for a run without a terminal, or after its end.
    ///
    /// # Errors
    /// As `ioctl(2)`.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        let terminal = lock(&self.terminal).clone();
        terminal.map_or(Ok(()), |terminal| terminal.resize(size))
    }

    /// The reader has what is before `sequence`. Beyond what was sent it means all of that.
    pub fn ack(&self, sequence: u64) {
        let mut state = lock(&self.state);
        state.acked = state.acked.max(sequence.min(state.sent));
        drop(state);
        self.room.send_modify(|count| *count += 1);
    }

    /// Waits while the command does not read; forgets the bytes once it never will.
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

    /// No more input will come.
    async fn end_stdin(&self) {
        let mut stdin = self.stdin.lock().await;
        if let Some(Stdin::Terminal(terminal)) = stdin.as_ref() {
            // A terminal has no end; its line discipline makes one of Ctrl-D. It stays
            // open, for programs that read on. That it is gone already is as good.
            let _ = terminal.write_all(&[END_OF_INPUT]).await;
        } else {
            *stdin = None;
        }
    }

    /// Lets a new reader begin at byte `from`.
    fn attach(&self, from: Option<u64>) -> Result<u64, u64> {
        let mut state = lock(&self.state);
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
        self.news.send_modify(|count| *count += 1);
        self.room.send_modify(|count| *count += 1);
        Ok(reader)
    }

    fn detach(&self, reader: u64) {
        let state = lock(&self.state);
        if state.reader == reader {
            self.unread_since.send_replace(Some(Instant::now()));
        }
    }

    fn take(&self, reader: u64) -> Taken {
        let mut state = lock(&self.state);
        if state.reader != reader {
            return Taken::Superseded;
        }
        let sequence = state.sent;
        let kept = state.ring.start();
        if sequence < kept {
            state.sent = kept;
            let gap = proto::Gap {
                lost_bytes: kept - sequence,
            };
            return Taken::Output(output(sequence, run_output::Output::Gap(gap)));
        }
        if let Some((stream, bytes)) = state.ring.read(sequence, MESSAGE_BYTES) {
            state.sent += bytes.len() as u64;
            drop(state);
            self.room.send_modify(|count| *count += 1);
            return Taken::Output(data(sequence, stream, bytes));
        }
        match &state.exited {
            Some(exited) => {
                let exited = run_output::Output::Exited(exited.clone());
                Taken::Exited(output(sequence, exited))
            }
            None if state.cut => Taken::Cut,
            None => Taken::Nothing,
        }
    }

    /// Bytes that the ring holds.
    fn held(&self) -> usize {
        lock(&self.state).ring.len()
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
