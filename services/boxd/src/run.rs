//! A run: a command that a caller started in the box.
//!
//! Owns its output, a bounded [`Ring`] for one reader; [`crate::process`] owns the rest. Invariants:
//! * I1. Output bytes are in order and numbered over both streams; lost bytes are reported
//!   as a gap.
//! * I2. At most the ring's capacity is buffered for the reader; then the command blocks.
//! * I3. A run has one reader at a time, the newest. A command without a reader for the
//!   orphan grace is killed.
//! * I4. The exit follows all output, and is always the kernel's.

mod input;
mod reader;
mod registry;
mod runs;
mod spec;

use std::io;
use std::sync::Arc;

use agentbox_box_protocol::proto::{self, run_output};
use agentbox_contracts::logs::OutputStream;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

pub use input::apply_inputs;
pub use reader::Reader;
pub use registry::{Registry, RegistryError};
pub use runs::{Runs, Started};
pub use spec::{RunId, RunSpec};

use crate::process::{Launched, OutputStore, Process, Ring};

/// The limit for the output in one message, in bytes.
const MAX_MESSAGE_OUTPUT: usize = 32 * 1024;

pub struct Run {
    id: RunId,
    process: Arc<Process>,
    state: Mutex<State>,
    /// Incremented when there is something for the reader.
    output_changed: watch::Sender<u64>,
    /// Incremented when ring space may have become free.
    space_freed: watch::Sender<u64>,
    /// Since when there is no reader; `None` while there is one.
    unread_since: watch::Sender<Option<Instant>>,
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
    fn new(id: RunId, launched: &Launched, ring_bytes: usize, acks: bool) -> Self {
        Self {
            id,
            process: Arc::clone(&launched.process),
            state: Mutex::new(State {
                ring: Ring::new(ring_bytes),
                sent: 0,
                acked: 0,
                acks,
                reader: 0,
                exited: None,
                aborted: false,
            }),
            output_changed: watch::Sender::new(0),
            space_freed: watch::Sender::new(0),
            unread_since: watch::Sender::new(Some(launched.started_at)),
        }
    }

    #[must_use]
    pub fn id(&self) -> &RunId {
        &self.id
    }

    /// Marks the bytes before `sequence` as received, at most those that were sent.
    pub fn ack(&self, sequence: u64) {
        let mut state = self.state.lock();
        state.acked = state.acked.max(sequence.min(state.sent));
        drop(state);
        self.space_freed.send_modify(|count| *count += 1);
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

    fn finish(&self, exited: proto::Exited) {
        self.state.lock().exited = Some(exited);
        self.output_changed.send_modify(|count| *count += 1);
    }

    /// Ends the run without an exit: its reader gets the remaining output, then an error.
    fn abort(&self) {
        self.state.lock().aborted = true;
        self.output_changed.send_modify(|count| *count += 1);
    }

    fn has_space(&self) -> bool {
        let state = self.state.lock();
        state.ring.free_space(state.floor()) > 0
    }
}

impl OutputStore for Run {
    fn read_into(
        &self,
        stream: OutputStream,
        buffer: &mut [u8],
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        let mut state = self.state.lock();
        let space = state.ring.free_space(state.floor()).min(buffer.len());
        let buffer = buffer
            .get_mut(..space)
            .filter(|buffer| !buffer.is_empty())?;
        let result = read(buffer);
        if let Ok(count @ 1..) = result {
            state.ring.push(stream, &buffer[..count]);
            drop(state);
            self.output_changed.send_modify(|count| *count += 1);
        }
        Some(result)
    }

    async fn writable(&self, _: OutputStream) {
        let mut changes = self.space_freed.subscribe();
        while !self.has_space() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn unread_since(&self) -> watch::Receiver<Option<Instant>> {
        self.unread_since.subscribe()
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
