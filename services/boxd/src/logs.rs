//! The log: the main command's output, stored and streamed.
//!
//! Owns the two segments (see [`agentbox_box_protocol::output`]). Invariants:
//! * I1. Writing never waits for a reader.
//! * I2. A reader gets each entry once, in order, or the number of entries it missed.
//! * I3. A follower's stream ends after the last entry once the main command has ended.

use std::sync::Arc;

use agentbox_box_protocol::output::{Batch, NewEntry, Output, WriteError};
use agentbox_box_protocol::proto::{self, logs_reply};
use chrono::Utc;
use futures::Stream;
use futures::stream::unfold;
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::Status;

use crate::settings::Settings;

/// The approximate size of one reply, in bytes.
const REPLY_BYTES: usize = 128 * 1024;

pub struct Log {
    output: Mutex<Output>,
    progress: watch::Sender<Progress>,
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
        Ok(Self {
            output: Mutex::new(output),
            progress: watch::Sender::new(progress),
        })
    }

    /// Appends entries. Entries that cannot be written, because other files fill the
    /// directory, are lost: readers see the gap in the sequences.
    pub fn append(&self, entries: &[NewEntry<'_>]) {
        if entries.is_empty() {
            return;
        }
        let now = Utc::now().timestamp_nanos_opt().unwrap_or(i64::MAX);
        let mut output = self.output.lock();
        // Readers notice lost entries as a gap in the sequences.
        let _ = output.append(now, entries);
        let next_sequence = output.next_sequence();
        drop(output);
        self.progress
            .send_modify(|progress| progress.next_sequence = next_sequence);
    }

    /// Marks the log as ended.
    pub fn end(&self) {
        self.progress.send_modify(|progress| progress.ended = true);
    }

    /// Streams the entries that `request` selects; others may be appended meanwhile.
    pub fn stream(
        self: &Arc<Self>,
        request: &proto::LogsRequest,
    ) -> impl Stream<Item = Result<proto::LogsReply, Status>> + use<> {
        let output = self.output.lock();
        let (kept, next) = (output.first_sequence(), output.next_sequence());
        drop(output);
        let cursor = Cursor {
            log: Arc::clone(self),
            progress: self.progress.subscribe(),
            sequence: first_sequence_to_send(request, kept, next),
            until: if request.follow { u64::MAX } else { next },
            since: request.since_unix_nanos,
        };
        unfold(cursor, |mut cursor| async move {
            let reply = cursor.next().await?;
            Some((reply, cursor))
        })
    }
}

/// The first sequence to send when entries `kept..next` exist.
fn first_sequence_to_send(request: &proto::LogsRequest, kept: u64, next: u64) -> u64 {
    // 0 and 1 select the oldest kept entry, so no entry counts as lost.
    let from = if request.from_sequence <= 1 {
        kept
    } else {
        request.from_sequence
    };
    match request.tail {
        Some(tail) => from.max(next.saturating_sub(tail)).max(kept),
        None => from,
    }
}

struct Cursor {
    log: Arc<Log>,
    progress: watch::Receiver<Progress>,
    sequence: u64,
    /// The first sequence that is not sent.
    until: u64,
    since: Option<i64>,
}

impl Cursor {
    async fn next(&mut self) -> Option<Result<proto::LogsReply, Status>> {
        loop {
            let progress = *self.progress.borrow_and_update();
            if self.sequence >= self.until {
                return None;
            }
            if self.sequence >= progress.next_sequence {
                if progress.ended {
                    return None;
                }
                self.progress.changed().await.ok()?;
                continue;
            }
            let batch = self.log.output.lock().read(self.sequence, REPLY_BYTES);
            match batch {
                Ok(batch) => {
                    if let Some(reply) = self.reply(batch) {
                        return Some(Ok(reply));
                    }
                }
                Err(error) => {
                    self.until = 0;
                    return Some(Err(Status::data_loss(error.to_string())));
                }
            }
        }
    }

    /// Reports lost entries first; the entries after them follow in the next reply.
    fn reply(&mut self, batch: Batch) -> Option<proto::LogsReply> {
        if let Some(first) = batch.entries.first()
            && first.sequence == self.sequence
        {
            // A gap within the batch starts the next reply.
            let mut selected = Vec::with_capacity(batch.entries.len());
            for entry in batch.entries {
                if entry.sequence != self.sequence || entry.sequence >= self.until {
                    break;
                }
                self.sequence += 1;
                let nanos = entry.timestamp.timestamp_nanos_opt().unwrap_or(i64::MAX);
                if self.since.is_none_or(|since| nanos >= since) {
                    selected.push(entry.into());
                }
            }
            let batch = logs_reply::Reply::Batch(proto::LogBatch { entries: selected });
            let empty =
                matches!(&batch, logs_reply::Reply::Batch(batch) if batch.entries.is_empty());
            return (!empty).then_some(proto::LogsReply { reply: Some(batch) });
        }
        let resumes = batch
            .entries
            .first()
            .map_or(batch.next_sequence, |entry| entry.sequence);
        let lost = resumes.min(self.until).saturating_sub(self.sequence);
        self.sequence = resumes;
        (lost > 0).then_some(proto::LogsReply {
            reply: Some(logs_reply::Reply::LostEntries(lost)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_sequence_follows_from_sequence_and_tail() {
        // Entries 10..20 are kept.
        for (from, tail, expected) in [
            (0, None, 10),
            (1, None, 10),
            (2, None, 2),
            (15, None, 15),
            (25, None, 25),
            (0, Some(3), 17),
            (0, Some(0), 20),
            (0, Some(100), 10),
            (2, Some(100), 10),
            (18, Some(5), 18),
        ] {
            let request = proto::LogsRequest {
                from_sequence: from,
                tail,
                ..Default::default()
            };
            assert_eq!(
                first_sequence_to_send(&request, 10, 20),
                expected,
                "from {from} tail {tail:?}"
            );
        }
    }
}
