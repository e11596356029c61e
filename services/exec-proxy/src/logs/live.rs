//! Logs from a running boxd.

use std::time::Duration;

use agentbox_box_protocol::proto;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::exec::{FromBox, LogsRequest};
use agentbox_contracts::logs::LogEntry;
use futures::FutureExt as _;
use proto::logs_reply::Reply;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::boxes::{self, BoxError, Lease};
use crate::logs::batch::Batches;
use crate::logs::cursor::LogCursor;
use crate::logs::{LogsSession, Stop, send};
use crate::metrics;

/// A follower that got no entry for this long started where no entry was kept.
const EMPTY_AFTER: Duration = Duration::from_secs(1);

/// How a stream from boxd ended.
pub enum Ended {
    /// All selected entries were sent; for a follower, the main command has ended.
    Complete,
    /// The box does not answer, or the connection was lost.
    Lost(BoxError),
}

/// Sends the entries that `cursor` selects until boxd ends the stream or is lost.
pub async fn stream(
    session: &mut LogsSession,
    lease: &Lease,
    cursor: &mut LogCursor,
    stopping: &CancellationToken,
) -> Result<Ended, Stop> {
    if cursor.is_tail_only() {
        match last_sequence(lease).await {
            Ok(last) => cursor.seek_after(last),
            Err(error) => return ended_or_failed(error),
        }
    }
    let opened = tokio::select! {
        opened = boxes::logs::open(lease, cursor.request()) => opened,
        () = session.closed() => return Err(Stop::PeerGone),
    };
    let (mut replies, number) = match opened {
        Ok(opened) => opened,
        Err(error) => return ended_or_failed(error),
    };
    let opened_at = Instant::now();
    let mut batches = Batches::default();
    loop {
        // Replies that have already arrived go into the same message.
        let reply = match replies.message().now_or_never() {
            Some(reply) => reply,
            None => {
                flush(session, cursor, &mut batches).await?;
                tokio::select! {
                    reply = replies.message() => reply,
                    () = session.closed() => return Err(Stop::PeerGone),
                    () = stopping.cancelled() => return Err(Stop::Stopping),
                }
            }
        };
        match reply {
            Ok(Some(reply)) => handle_reply(session, cursor, &mut batches, reply).await?,
            Ok(None) => {
                flush(session, cursor, &mut batches).await?;
                return Ok(Ended::Complete);
            }
            Err(status) => {
                flush(session, cursor, &mut batches).await?;
                lease.mark_lost(number);
                if opened_at.elapsed() >= EMPTY_AFTER {
                    cursor.clear_tail();
                }
                return ended_or_failed(BoxError::from_status(status));
            }
        }
    }
}

async fn last_sequence(lease: &Lease) -> Result<u64, BoxError> {
    let last = LogCursor::new(&LogsRequest {
        tail: Some(1),
        ..Default::default()
    });
    let entries = boxes::logs::read_kept(lease, last.request()).await?;
    Ok(entries.last().map_or(0, |entry| entry.sequence))
}

fn ended_or_failed(error: BoxError) -> Result<Ended, Stop> {
    match error {
        BoxError::Lost(_) | BoxError::Unreachable(_) | BoxError::Cluster(_) => {
            Ok(Ended::Lost(error))
        }
        error => {
            tracing::warn!(error = %ErrorChain(&error), "boxd refused to send its logs");
            Err(Stop::Failed(error.public()))
        }
    }
}

async fn handle_reply(
    session: &mut LogsSession,
    cursor: &mut LogCursor,
    batches: &mut Batches,
    reply: proto::LogsReply,
) -> Result<(), Stop> {
    match reply.reply {
        Some(Reply::Batch(batch)) => {
            for entry in batch.entries {
                if let Some(full) = batches.push(LogEntry::from(entry)) {
                    send_batch(session, cursor, full).await?;
                }
            }
        }
        Some(Reply::LostEntries(count)) => {
            flush(session, cursor, batches).await?;
            send(session, FromBox::LogsLost(count)).await?;
        }
        None => {}
    }
    Ok(())
}

async fn flush(
    session: &mut LogsSession,
    cursor: &mut LogCursor,
    batches: &mut Batches,
) -> Result<(), Stop> {
    match batches.take() {
        Some(entries) => send_batch(session, cursor, entries).await,
        None => Ok(()),
    }
}

async fn send_batch(
    session: &mut LogsSession,
    cursor: &mut LogCursor,
    entries: Vec<LogEntry>,
) -> Result<(), Stop> {
    let last = entries.last().map_or(0, |entry| entry.sequence);
    let bytes: usize = entries.iter().map(|entry| entry.line.len()).sum();
    metrics::bytes_out("logs", bytes);
    send(session, FromBox::Logs(entries)).await?;
    cursor.advance_to(last);
    Ok(())
}
