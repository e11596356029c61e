//! Logs from a boxd that answers.

use std::time::Duration;

use agentbox_box_protocol::proto;
use agentbox_contracts::exec::FromBox;
use agentbox_contracts::logs::LogEntry;
use futures::FutureExt as _;
use proto::logs_reply::Reply;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::Instrument as _;

use crate::boxes::trace::{call_span, traced};
use crate::boxes::{BoxError, Lease};
use crate::logs::batch::Batches;
use crate::logs::wanted::Wanted;
use crate::logs::{LogsSession, Stop, send};
use crate::metrics;

/// A follower that was given nothing for so long began where nothing was kept.
const QUIET_MEANS_EMPTY: Duration = Duration::from_secs(1);

/// How a stream from boxd ended.
pub enum Ended {
    /// All that was wanted came; of a follower's, the main command has ended.
    Complete,
    /// The box did not answer, or not any more.
    Lost(BoxError),
}

/// Sends what is wanted until boxd ends the stream or is lost.
pub async fn stream(
    session: &mut LogsSession,
    lease: &Lease,
    wanted: &mut Wanted,
    stopping: &CancellationToken,
) -> Result<Ended, Stop> {
    if wanted.is_only_the_future() {
        match last_sequence(lease).await {
            Ok(last) => wanted.begin_after(last),
            Err(lost) => return lost_or_refused(lost),
        }
    }
    let opened = tokio::select! {
        opened = open(lease, wanted.request()) => opened,
        () = session.closed() => return Err(Stop::PeerGone),
    };
    let (mut replies, number) = match opened {
        Ok(opened) => opened,
        Err(error) => return lost_or_refused(error),
    };
    let opened_at = Instant::now();
    let mut batches = Batches::default();
    loop {
        // What is there already goes into the same message.
        let reply = match replies.message().now_or_never() {
            Some(reply) => reply,
            None => {
                flush(session, wanted, &mut batches).await?;
                tokio::select! {
                    reply = replies.message() => reply,
                    () = session.closed() => return Err(Stop::PeerGone),
                    () = stopping.cancelled() => return Err(Stop::Stopping),
                }
            }
        };
        match reply {
            Ok(Some(reply)) => take(session, wanted, &mut batches, reply).await?,
            Ok(None) => {
                flush(session, wanted, &mut batches).await?;
                return Ok(Ended::Complete);
            }
            Err(status) => {
                flush(session, wanted, &mut batches).await?;
                lease.lost(number).await;
                if opened_at.elapsed() >= QUIET_MEANS_EMPTY {
                    wanted.nothing_was_there();
                }
                return lost_or_refused(BoxError::from_status(status));
            }
        }
    }
}

/// All that is kept of what is wanted, and no more.
///
/// # Errors
/// As the connection's, and boxd's.
pub async fn kept(lease: &Lease, wanted: &Wanted) -> Result<Vec<LogEntry>, BoxError> {
    let request = proto::LogsRequest {
        follow: false,
        ..wanted.request()
    };
    let (mut replies, number) = open(lease, request).await?;
    let mut entries = Vec::new();
    loop {
        match replies.message().await {
            Ok(Some(reply)) => {
                if let Some(Reply::Batch(batch)) = reply.reply {
                    entries.extend(batch.entries.into_iter().map(LogEntry::from));
                }
            }
            Ok(None) => return Ok(entries),
            Err(status) => {
                lease.lost(number).await;
                return Err(BoxError::from_status(status));
            }
        }
    }
}

async fn last_sequence(lease: &Lease) -> Result<u64, BoxError> {
    let last = Wanted::new(&agentbox_contracts::exec::LogsRequest {
        tail: Some(1),
        ..Default::default()
    });
    Ok(kept(lease, &last)
        .await?
        .last()
        .map_or(0, |entry| entry.sequence))
}

fn lost_or_refused(error: BoxError) -> Result<Ended, Stop> {
    match error {
        BoxError::Lost(_) | BoxError::Unreachable(_) | BoxError::Cluster(_) => {
            Ok(Ended::Lost(error))
        }
        refused => {
            tracing::warn!(error = %refused, "boxd does not give its logs");
            Err(Stop::Failed(refused.public()))
        }
    }
}

/// A stream, and the number of the connection it is on.
async fn open(
    lease: &Lease,
    request: proto::LogsRequest,
) -> Result<(Streaming<proto::LogsReply>, u64), BoxError> {
    match open_once(lease, request).await {
        // A kept connection may have died unnoticed; reading again is harmless.
        Err(BoxError::Lost(_)) => open_once(lease, request).await,
        other => other,
    }
}

async fn open_once(
    lease: &Lease,
    request: proto::LogsRequest,
) -> Result<(Streaming<proto::LogsReply>, u64), BoxError> {
    let span = call_span("Logs");
    let mut connection = lease.connection().instrument(span.clone()).await?;
    let request = traced(&span, request);
    match connection.client.logs(request).instrument(span).await {
        Ok(response) => Ok((response.into_inner(), connection.number)),
        Err(status) => Err(gave_up(lease, connection.number, status).await),
    }
}

async fn gave_up(lease: &Lease, number: u64, status: Status) -> BoxError {
    let error = BoxError::from_status(status);
    if matches!(error, BoxError::Lost(_)) {
        lease.lost(number).await;
    }
    error
}

async fn take(
    session: &mut LogsSession,
    wanted: &mut Wanted,
    batches: &mut Batches,
    reply: proto::LogsReply,
) -> Result<(), Stop> {
    match reply.reply {
        Some(Reply::Batch(batch)) => {
            for entry in batch.entries {
                if let Some(full) = batches.push(LogEntry::from(entry)) {
                    give(session, wanted, full).await?;
                }
            }
        }
        Some(Reply::LostEntries(count)) => {
            flush(session, wanted, batches).await?;
            send(session, FromBox::LogsLost(count)).await?;
        }
        None => {}
    }
    Ok(())
}

async fn flush(
    session: &mut LogsSession,
    wanted: &mut Wanted,
    batches: &mut Batches,
) -> Result<(), Stop> {
    match batches.take() {
        Some(entries) => give(session, wanted, entries).await,
        None => Ok(()),
    }
}

async fn give(
    session: &mut LogsSession,
    wanted: &mut Wanted,
    entries: Vec<LogEntry>,
) -> Result<(), Stop> {
    let last = entries.last().map_or(0, |entry| entry.sequence);
    metrics::bytes_out(entries.iter().map(|entry| entry.line.len()).sum());
    send(session, FromBox::Logs(entries)).await?;
    wanted.passed(last);
    Ok(())
}
