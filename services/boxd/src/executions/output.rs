//! The kept output of one execution, for any number of readers.
//!
//! * I1. The offset of a byte counts the bytes that the command wrote to its stream before it. A
//!   reader gets each byte from its position on once, in order, or a gap that counts it.
//! * I2. With `drop` the command never waits; the newest `keep_bytes` of each stream are kept.
//! * I3. With `block` the command waits while `keep_bytes` of a stream were given to no follower.
//!   With several followers the slowest one counts; without one, the furthest position that
//!   they reached. A reader that does not follow neither holds nor frees output.
//! * I4. With `block` the last bytes that were given to followers are kept too, 1.5 to 4 MiB of each
//!   stream ([`KeptOutput::in_flight_bytes`]). They may be lost on their way with a connection, an
//!   exec-proxy or a gateway: a window of HTTP/2 (128 KiB) and what fills the next one, the window of
//!   the session (16 messages of 32 KiB), and what the gateway has not sent yet (320 KiB). The rest is
//!   for what a client has received and not read when it loses its connection. So the only follower of an
//!   execution may be lost at any time, and resumes at what its client has read, without a gap, unless
//!   the client's receive buffer is larger than the rest.
//! * I5. When the command has ended, the rest of its output always has space: its end does not
//!   depend on a reader.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use agentbox_contracts::exec::MAX_CHUNK;
use agentbox_contracts::executions::{Offsets, OnFull, OutputGap, OutputPiece, execution_output};
use agentbox_contracts::logs::OutputStream;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::kept::{KeptOutput, MIN_KEPT};
use crate::process::{OutputStore, Ring};

/// With `block`: the space for output that is still in the pipe when the command ends. A pipe
/// of an unprivileged process holds at most so much.
const LAST_BYTES: usize = 1024 * 1024;
/// How much a terminal's next client gets.
const SCREEN_BYTES: u64 = 64 * 1024;

/// The offset of the next byte in each stream that a reader wants.
pub type Positions = [Option<u64>; 2];

/// Where a reader begins.
#[derive(Clone, Copy)]
pub enum Begin {
    /// At the oldest kept byte.
    Oldest,
    At(Offsets),
    /// At the last screenful, if there was a follower before; else at the oldest kept byte.
    LastScreen,
}

/// A reader's position is after the end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("from: must be at most {end}, the end of {stream}, is {from}")]
pub struct AfterEnd {
    stream: &'static str,
    end: u64,
    from: u64,
}

/// A follower that has been added.
pub struct Added {
    pub number: u64,
    pub positions: Positions,
    /// It begins at the last screenful.
    pub is_screen: bool,
}

pub struct Output {
    on_full: OnFull,
    keep_bytes: usize,
    kept: Arc<KeptOutput>,
    state: Mutex<State>,
    /// Incremented when there is something for readers.
    changed: watch::Sender<u64>,
    /// Incremented when there may be space again.
    space_freed: watch::Sender<u64>,
    /// Since when there is no follower; `None` while there is one.
    unread_since: watch::Sender<Option<Instant>>,
}

struct State {
    /// Of stdout and stderr.
    rings: [Ring; 2],
    /// The furthest offset up to which the slowest follower was given each stream.
    received: [u64; 2],
    followers: HashMap<u64, Positions>,
    next_follower: u64,
    command_ended: bool,
    /// With `block`: what is kept since the output is complete.
    complete_bytes: usize,
}

impl Output {
    #[must_use]
    pub fn new(on_full: OnFull, keep_bytes: usize, kept: Arc<KeptOutput>) -> Self {
        if on_full == OnFull::Block {
            kept.blocking_started();
        }
        Self {
            on_full,
            keep_bytes,
            kept,
            state: Mutex::new(State {
                rings: [Ring::new(keep_bytes), Ring::new(keep_bytes)],
                received: [0; 2],
                followers: HashMap::new(),
                next_follower: 0,
                command_ended: false,
                complete_bytes: 0,
            }),
            changed: watch::Sender::new(0),
            space_freed: watch::Sender::new(0),
            unread_since: watch::Sender::new(Some(Instant::now())),
        }
    }

    /// All that the command has written to stdout and stderr.
    #[must_use]
    pub fn ends(&self) -> [u64; 2] {
        self.state.lock().ends()
    }

    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The positions of a reader of `streams` that begins at `begin`.
    ///
    /// # Errors
    /// [`AfterEnd`].
    pub fn positions(&self, streams: [bool; 2], begin: Begin) -> Result<Positions, AfterEnd> {
        self.state.lock().positions(streams, begin)
    }

    /// Adds a follower of `streams`.
    ///
    /// # Errors
    /// [`AfterEnd`].
    pub fn follow(&self, streams: [bool; 2], begin: Begin) -> Result<Added, AfterEnd> {
        let mut state = self.state.lock();
        let positions = state.positions(streams, begin)?;
        let number = state.next_follower;
        state.next_follower += 1;
        state.followers.insert(number, positions);
        self.unread_since.send_replace(None);
        Ok(Added {
            number,
            positions,
            is_screen: number > 0 && matches!(begin, Begin::LastScreen),
        })
    }

    pub fn unfollow(&self, number: u64) {
        let mut state = self.state.lock();
        state.update_received();
        state.followers.remove(&number);
        if state.followers.is_empty() {
            self.unread_since.send_replace(Some(Instant::now()));
        }
        drop(state);
        self.space_freed.send_modify(|count| *count += 1);
    }

    /// The next output of `stream` at the reader's position, before `until`; advances the
    /// position, also that of the follower of this number.
    pub fn next(
        &self,
        stream: usize,
        positions: &mut Positions,
        until: [u64; 2],
        follower: Option<u64>,
    ) -> Option<execution_output::Output> {
        let mut state = self.state.lock();
        let position = positions[stream]?;
        let ring = &state.rings[stream];
        let until = until[stream].min(ring.end());
        let stderr = stream == OutputStream::Stderr as usize;
        if position >= until {
            return None;
        }
        let (output, next) = if position < ring.start() {
            let next = ring.start().min(until);
            let gap = OutputGap {
                stderr,
                offset: position,
                bytes: next - position,
            };
            (execution_output::Output::Gap(gap), next)
        } else {
            let wanted = usize::try_from(until - position).unwrap_or(usize::MAX);
            let (_, data) = ring.read(position, wanted.min(MAX_CHUNK))?;
            let next = position + data.len() as u64;
            let piece = OutputPiece {
                stderr,
                offset: position,
                data,
            };
            (execution_output::Output::Output(piece), next)
        };
        positions[stream] = Some(next);
        if let Some(number) = follower {
            state.followers.insert(number, *positions);
            state.update_received();
            drop(state);
            self.space_freed.send_modify(|count| *count += 1);
        }
        Some(output)
    }

    /// The rest of the output has space from now on.
    pub fn command_ended(&self) {
        let has_ended = std::mem::replace(&mut self.state.lock().command_ended, true);
        if !has_ended && self.on_full == OnFull::Block {
            self.kept.blocking_ended();
        }
        self.space_freed.send_modify(|count| *count += 1);
    }

    /// The output is complete: memory that it does not need is returned.
    pub fn complete(&self) {
        let mut state = self.state.lock();
        state.rings.iter_mut().for_each(Ring::shrink);
        if self.on_full == OnFull::Block {
            state.forget_complete(&self.kept);
            state.complete_bytes = state.rings.iter().map(Ring::len).sum();
            self.kept.complete_added(state.complete_bytes);
        }
    }

    /// With `block`: whether a follower is to get every byte.
    #[must_use]
    pub fn must_be_delivered(&self) -> bool {
        self.on_full == OnFull::Block && !self.state.lock().followers.is_empty()
    }

    /// Drops all kept output; readers get a gap.
    pub fn drop_kept(&self) {
        let mut state = self.state.lock();
        for ring in &mut state.rings {
            let before = ring.len();
            ring.discard(before);
            ring.shrink();
            self.kept.resized(before, 0);
        }
        state.forget_complete(&self.kept);
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }

    fn space(&self, state: &State, stream: usize) -> usize {
        match self.on_full {
            // The ring drops its oldest bytes.
            OnFull::Drop => usize::MAX,
            OnFull::Block => {
                let held = state.rings[stream].end() - state.floor(stream);
                let held = usize::try_from(held).unwrap_or(usize::MAX);
                self.bound(state.command_ended).saturating_sub(held)
            }
        }
    }

    /// With `block`: how much output that was given to no follower is kept.
    fn bound(&self, command_ended: bool) -> usize {
        self.keep_bytes + if command_ended { LAST_BYTES } else { 0 }
    }
}

impl State {
    fn ends(&self) -> [u64; 2] {
        [self.rings[0].end(), self.rings[1].end()]
    }

    /// Bytes before this offset were given to all followers.
    fn floor(&self, stream: usize) -> u64 {
        let positions = self.followers.values();
        let slowest = positions.filter_map(|positions| positions[stream]).min();
        slowest.unwrap_or(self.received[stream])
    }

    /// The output keeps nothing of what it kept when it was complete.
    fn forget_complete(&mut self, kept: &KeptOutput) {
        kept.complete_dropped(std::mem::take(&mut self.complete_bytes));
    }

    fn update_received(&mut self) {
        for stream in 0..2 {
            self.received[stream] = self.received[stream].max(self.floor(stream));
        }
    }

    fn positions(&self, streams: [bool; 2], begin: Begin) -> Result<Positions, AfterEnd> {
        let mut positions = [None; 2];
        for (stream, name) in ["stdout", "stderr"].into_iter().enumerate() {
            if !streams[stream] {
                continue;
            }
            let ring = &self.rings[stream];
            let position = match begin {
                Begin::At(from) => [from.stdout, from.stderr][stream],
                Begin::LastScreen if self.next_follower > 0 => last_screen(ring),
                Begin::LastScreen | Begin::Oldest => ring.start(),
            };
            if position > ring.end() {
                return Err(AfterEnd {
                    stream: name,
                    end: ring.end(),
                    from: position,
                });
            }
            positions[stream] = Some(position);
        }
        Ok(positions)
    }
}

/// The start of the first line in the newest [`SCREEN_BYTES`].
fn last_screen(ring: &Ring) -> u64 {
    let begin = ring.end().saturating_sub(SCREEN_BYTES).max(ring.start());
    if begin == 0 {
        return 0;
    }
    let line = ring.find_after(begin, b'\n');
    line.filter(|line| *line < ring.end()).unwrap_or(begin)
}

impl OutputStore for Output {
    fn read_into(
        &self,
        stream: OutputStream,
        buffer: &mut [u8],
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Option<io::Result<usize>> {
        let has_room = self.kept.make_room(buffer.len());
        let mut state = self.state.lock();
        let space = self.space(&state, stream as usize).min(buffer.len());
        if space == 0 {
            // Only a process that outlives the command can write so much after its end.
            let is_over = state.command_ended;
            return is_over.then(|| Err(io::ErrorKind::BrokenPipe.into()));
        }
        let result = read(&mut buffer[..space]);
        if let Ok(count @ 1..) = result {
            let is_last = state.command_ended;
            let ring = &mut state.rings[stream as usize];
            let before = ring.len();
            if self.on_full == OnFull::Block {
                ring.set_capacity(self.bound(is_last) + self.kept.in_flight_bytes());
            }
            ring.push(stream, &buffer[..count]);
            if !has_room && self.on_full == OnFull::Drop {
                let surplus = ring.len().saturating_sub(before.max(MIN_KEPT));
                ring.discard(surplus);
            }
            self.kept.resized(before, ring.len());
            drop(state);
            self.changed.send_modify(|count| *count += 1);
        }
        Some(result)
    }

    async fn writable(&self, stream: OutputStream) {
        let mut changes = self.space_freed.subscribe();
        loop {
            let has_space = {
                let state = self.state.lock();
                state.command_ended || self.space(&state, stream as usize) > 0
            };
            if has_space || changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn unread_since(&self) -> watch::Receiver<Option<Instant>> {
        self.unread_since.subscribe()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        for ring in &state.rings {
            self.kept.resized(ring.len(), 0);
        }
        state.forget_complete(&self.kept);
        if !state.command_ended && self.on_full == OnFull::Block {
            self.kept.blocking_ended();
        }
    }
}

#[cfg(test)]
mod tests;
