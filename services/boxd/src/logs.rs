//! The log: the main command's output, stored and streamed.
//!
//! Owns the two segments (see [`agentbox_box_protocol::output`]), the unfinished line of each
//! stream, and the copy on boxd's stdout. Invariants:
//! * I1. Writing never waits for a reader of the log.
//! * I2. A reader gets each entry once, in order, or the number of entries it missed.
//! * I3. A follower's stream ends after the last entry once the main command has ended.
//! * I4. An unfinished line is stored at once. Readers get it after [`UNFINISHED_AFTER`].

mod lines;
mod tee;

use std::sync::Arc;
use std::time::Duration;

use agentbox_box_protocol::output::{Batch, NewEntry, Output, Tail, WriteError};
use agentbox_box_protocol::proto::{self, logs_reply};
use agentbox_contracts::executions::Execution;
use agentbox_contracts::logs::{LogEntry, OutputStream};
use chrono::Utc;
use futures::Stream;
use futures::stream::unfold;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use crate::logs::lines::{Cut, Lines};
use crate::logs::tee::Tee;
use crate::settings::Settings;

/// The approximate size of one reply, in bytes.
const REPLY_BYTES: usize = 128 * 1024;

/// How long a line may be unfinished before it is shown as a piece.
const UNFINISHED_AFTER: Duration = Duration::from_millis(500);

/// How long [`Log::copy_rest`] waits for the reader of boxd's stdout.
const COPY_TIMEOUT: Duration = Duration::from_secs(5);

/// How long [`Log::copy_rest`] holds the lock at a time. Readers of the log wait meanwhile.
const COPY_LOCK_TIME: Duration = Duration::from_millis(50);

pub struct Log {
    state: Mutex<State>,
    /// Notified at each write to stdout, and to stderr.
    written: [Notify; 2],
    progress: watch::Sender<Progress>,
}

struct State {
    output: Output,
    /// The unfinished lines of stdout and stderr.
    lines: [Lines; 2],
    tee: Tee,
}

#[derive(Clone, Copy)]
struct Progress {
    next_sequence: u64,
    ended: bool,
}

impl Log {
    /// # Errors
    /// [`WriteError::Open`].
    pub fn open(settings: &Settings) -> Result<Self, WriteError> {
        let output = match &settings.output_dir {
            Some(directory) => Output::in_directory(directory, settings.segment_bytes)?,
            None => Output::in_memory(settings.segment_bytes)?,
        };
        let progress = Progress {
            next_sequence: output.next_sequence(),
            ended: false,
        };
        let tee = Tee::new(progress.next_sequence);
        Ok(Self {
            state: Mutex::new(State {
                output,
                lines: Default::default(),
                tee,
            }),
            written: Default::default(),
            progress: watch::Sender::new(progress),
        })
    }

    /// Writes bytes of one stream: appends the lines that they finish, and stores the rest.
    pub fn write(&self, stream: OutputStream, bytes: &[u8]) {
        let mut state = self.state.lock();
        state.lines[stream as usize].push(bytes, Instant::now());
        self.append(state, stream, Lines::finished);
        self.written[stream as usize].notify_one();
    }

    /// Appends the unfinished line of a stream that has ended.
    pub fn finish(&self, stream: OutputStream) {
        self.append(self.state.lock(), stream, Lines::last);
    }

    /// Appends each line of `stream` that is unfinished for [`UNFINISHED_AFTER`], as a piece.
    /// Never returns.
    pub async fn append_unfinished(&self, stream: OutputStream) {
        loop {
            let since = self.state.lock().lines[stream as usize].unfinished_since();
            let Some(since) = since else {
                self.written[stream as usize].notified().await;
                continue;
            };
            sleep_until(since + UNFINISHED_AFTER).await;
            let state = self.state.lock();
            if state.lines[stream as usize].unfinished_since() == Some(since) {
                self.append(state, stream, Lines::unfinished);
            }
        }
    }

    /// Appends the pieces that `cut` finds. Entries that cannot be written, because other files
    /// fill the directory, are lost: readers see the gap in the sequences.
    fn append(
        &self,
        mut state: MutexGuard<'_, State>,
        stream: OutputStream,
        cut: impl Fn(&Lines) -> Cut<'_>,
    ) {
        let State { output, lines, tee } = &mut *state;
        let held = &*lines;
        let Cut { pieces, length } = cut(&held[stream as usize]);
        let entries: Vec<NewEntry<'_>> = pieces
            .into_iter()
            .map(|(partial, line)| NewEntry {
                stream,
                partial,
                line,
            })
            .collect();
        let unfinished: Vec<NewEntry<'_>> = [OutputStream::Stdout, OutputStream::Stderr]
            .into_iter()
            .map(|of| NewEntry {
                stream: of,
                partial: true,
                line: held[of as usize].rest(if of == stream { length } else { 0 }),
            })
            .filter(|unfinished| !unfinished.line.is_empty())
            .collect();
        let first = output.next_sequence();
        let now = Utc::now().timestamp_nanos_opt().unwrap_or(i64::MAX);
        // Readers notice lost entries as a gap in the sequences.
        let _ = output.append(now, &entries, &unfinished);
        let next_sequence = output.next_sequence();
        tee.write(output, first, &entries);
        lines[stream as usize].remove(length, Instant::now());
        drop(state);
        if next_sequence > first {
            // The other stream may have reported a later sequence meanwhile.
            self.progress.send_modify(|progress| {
                progress.next_sequence = progress.next_sequence.max(next_sequence);
            });
        }
    }

    /// Writes the record of an execution to boxd's stdout, for a driver that cannot read the journal.
    pub fn write_execution(&self, execution: &Execution) {
        self.state.lock().tee.write_execution(execution);
    }

    /// Writes there that an execution was forgotten.
    pub fn forget_execution(&self, id: &str) {
        self.state.lock().tee.write_forgotten(id);
    }

    /// Copies the rest of the log to boxd's stdout. Gives up after [`COPY_TIMEOUT`].
    pub async fn copy_rest(&self) {
        let deadline = Instant::now() + COPY_TIMEOUT;
        while !self.copy_some() && Instant::now() < deadline {
            tokio::task::yield_now().await;
        }
    }

    /// Copies for [`COPY_LOCK_TIME`]. Returns whether all is copied.
    fn copy_some(&self) -> bool {
        let mut state = self.state.lock();
        let State { output, tee, .. } = &mut *state;
        tee.copy(output, std::time::Instant::now() + COPY_LOCK_TIME)
    }

    /// Marks the log as ended.
    pub fn end(&self) {
        self.progress.send_modify(|progress| progress.ended = true);
    }

    /// Streams the entries that `request` selects; others may be appended meanwhile.
    ///
    /// # Errors
    /// `DATA_LOSS` when the output cannot be read.
    pub fn stream(
        self: &Arc<Self>,
        request: &proto::LogsRequest,
    ) -> Result<impl Stream<Item = Result<proto::LogsReply, Status>> + use<>, Status> {
        let state = self.state.lock();
        let next = state.output.next_sequence();
        let tail = request
            .tail
            .map(|count| state.output.tail(count))
            .transpose()
            .map_err(data_loss)?;
        drop(state);
        let (sequence, lost) = first_to_send(request.from_sequence, tail);
        let cursor = Cursor {
            log: Arc::clone(self),
            progress: self.progress.subscribe(),
            sequence,
            until: if request.follow { u64::MAX } else { next },
            since: request.since_unix_nanos,
            lost,
        };
        Ok(unfold(cursor, |mut cursor| async move {
            let reply = cursor.next().await?;
            Some((reply, cursor))
        }))
    }
}

fn data_loss(error: WriteError) -> Status {
    Status::data_loss(error.to_string())
}

/// The first sequence to send, and the number of lost lines before it. A reader that resumes has
/// the lines before `from`.
fn first_to_send(from: u64, tail: Option<Tail>) -> (u64, u64) {
    let from = from.max(1);
    match tail {
        Some(tail) if tail.sequence >= from => (tail.sequence, tail.lost),
        _ => (from, 0),
    }
}

struct Cursor {
    log: Arc<Log>,
    progress: watch::Receiver<Progress>,
    sequence: u64,
    /// The first sequence that is not sent.
    until: u64,
    since: Option<i64>,
    /// The number of lost entries that were not reported yet.
    lost: u64,
}

impl Cursor {
    async fn next(&mut self) -> Option<Result<proto::LogsReply, Status>> {
        loop {
            let progress = *self.progress.borrow_and_update();
            let has_entry = self.sequence < progress.next_sequence;
            if self.sequence >= self.until || !has_entry {
                if let Some(lost) = self.take_lost() {
                    return Some(Ok(lost));
                }
                if self.sequence >= self.until || progress.ended {
                    return None;
                }
                self.progress.changed().await.ok()?;
                continue;
            }
            let batch = self
                .log
                .state
                .lock()
                .output
                .read(self.sequence, REPLY_BYTES);
            match batch {
                Ok(batch) => {
                    if let Some(reply) = self.reply(batch) {
                        return Some(Ok(reply));
                    }
                }
                Err(error) => {
                    self.until = 0;
                    return Some(Err(data_loss(error)));
                }
            }
        }
    }

    /// Reports lost entries first; the entries after them follow in the next reply.
    fn reply(&mut self, batch: Batch) -> Option<proto::LogsReply> {
        let first = batch.entries.first();
        let resumes = first.map_or(batch.next_sequence, |entry| entry.sequence);
        self.lost += resumes.min(self.until).saturating_sub(self.sequence);
        self.sequence = self.sequence.max(resumes);
        if first.is_some_and(|entry| !self.selects(entry)) {
            // Lost entries are older than the entry after them.
            self.lost = 0;
        }
        if let Some(lost) = self.take_lost() {
            return Some(lost);
        }
        // A gap within the batch starts the next reply.
        let mut selected = Vec::with_capacity(batch.entries.len());
        for entry in batch.entries {
            if entry.sequence != self.sequence || entry.sequence >= self.until {
                break;
            }
            self.sequence += 1;
            if self.selects(&entry) {
                selected.push(entry.into());
            }
        }
        (!selected.is_empty()).then_some(proto::LogsReply {
            reply: Some(logs_reply::Reply::Batch(proto::LogBatch {
                entries: selected,
            })),
        })
    }

    /// Whether the entry is as new as asked.
    fn selects(&self, entry: &LogEntry) -> bool {
        let nanos = entry.timestamp.timestamp_nanos_opt().unwrap_or(i64::MAX);
        self.since.is_none_or(|since| nanos >= since)
    }

    fn take_lost(&mut self) -> Option<proto::LogsReply> {
        let lost = std::mem::take(&mut self.lost);
        (lost > 0).then_some(proto::LogsReply {
            reply: Some(logs_reply::Reply::LostEntries(lost)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_entry_follows_from_sequence_and_tail() {
        // Entries 10..20 are kept; four lines before them belong to the larger tail.
        let newest = Tail {
            sequence: 17,
            lost: 0,
        };
        let all = Tail {
            sequence: 10,
            lost: 4,
        };
        for (from, tail, expected) in [
            (0, None, (1, 0)),
            (1, None, (1, 0)),
            (2, None, (2, 0)),
            (25, None, (25, 0)),
            (0, Some(newest), (17, 0)),
            (18, Some(newest), (18, 0)),
            (0, Some(all), (10, 4)),
            (2, Some(all), (10, 4)),
            (11, Some(all), (11, 0)),
        ] {
            assert_eq!(first_to_send(from, tail), expected, "{from} {tail:?}");
        }
    }
}
