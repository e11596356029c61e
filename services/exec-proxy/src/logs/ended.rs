//! Logs of a box that does not answer: it has ended, or the connection to it is lost.

use std::time::Duration;

use agentbox_box_protocol::proto;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::logs::LogEntry;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::archive::ARCHIVE_BYTES;
use crate::boxes::trace::{call_span, traced};
use crate::boxes::{BoxError, Lease};
use crate::logs::cursor::LogCursor;
use crate::logs::{LogsSession, Stop, send_kept};
use crate::target::Target;

/// How long a follower waits for the archive, or for the box to answer again. An ended box
/// is archived within a second unless the scheduler is down.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long one attempt to reach the box again may take.
const REACH_DEADLINE: Duration = Duration::from_secs(1);

/// The state of a box after the connection to its boxd was lost.
pub enum Resolution {
    /// The box answers again.
    Reachable,
    /// All remaining entries were sent.
    Sent { ended: bool },
}

/// Sends the stored entries of an ended box. Returns whether the environment has ended.
pub async fn send_ended(
    session: &mut LogsSession,
    target: &Target<'_>,
    cursor: &mut LogCursor,
) -> Result<bool, Stop> {
    if send_archive(session, target, cursor).await? {
        return Ok(true);
    }
    // Not archived yet, or the archive has expired.
    send_last_output(session, target, cursor).await?;
    Ok(target.status.is_ended())
}

/// Waits until the archive exists or the box answers again, and sends the entries that are
/// stored meanwhile.
pub async fn resolve_lost(
    session: &mut LogsSession,
    lease: &Lease,
    target: &Target<'_>,
    cursor: &mut LogCursor,
    lost: &BoxError,
    stopping: &CancellationToken,
) -> Result<Resolution, Stop> {
    let deadline = Instant::now() + RESOLVE_TIMEOUT;
    let mut pause = FIRST_PAUSE;
    let mut output_sent = false;
    loop {
        if send_archive(session, target, cursor).await? {
            return Ok(Resolution::Sent { ended: true });
        }
        if is_reachable(lease).await {
            return Ok(Resolution::Reachable);
        }
        if !output_sent {
            let sent = send_last_output(session, target, cursor).await?;
            if !cursor.follow {
                return match sent {
                    true => Ok(Resolution::Sent { ended: false }),
                    false => Err(Stop::Failed(lost.public())),
                };
            }
            output_sent = true;
        }
        if Instant::now() >= deadline {
            return Err(Stop::Failed(Error::new(
                ErrorCode::BoxLost,
                "the connection to the environment's box was lost; whether it has ended is not known yet",
            )));
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            () = session.closed() => return Err(Stop::PeerGone),
            () = stopping.cancelled() => return Err(Stop::Stopping),
        }
    }
}

/// Sends the archive. `true` when there is one: then the environment has ended.
async fn send_archive(
    session: &mut LogsSession,
    target: &Target<'_>,
    cursor: &mut LogCursor,
) -> Result<bool, Stop> {
    match target.archive.get(&target.environment).await {
        Ok(Some(entries)) => send_kept(session, cursor, entries).await.map(|()| true),
        Ok(None) => Ok(false),
        Err(error) => {
            tracing::warn!(
                error = %ErrorChain(&error),
                "reading the archive failed"
            );
            if target.status.is_ended() {
                let error = Error::new(ErrorCode::Unavailable, "the output archive cannot be read");
                return Err(Stop::Failed(error));
            }
            Ok(false)
        }
    }
}

/// Sends the output that the driver still has. `true` when there is some.
async fn send_last_output(
    session: &mut LogsSession,
    target: &Target<'_>,
    cursor: &mut LogCursor,
) -> Result<bool, Stop> {
    let connector = target.cluster.boxes.connector();
    match connector
        .last_output(&target.environment, ARCHIVE_BYTES)
        .await
    {
        Ok(mut entries) => {
            let found = !entries.is_empty();
            if cursor.follow && !target.status.is_ended() {
                drop_unfinished(&mut entries);
            }
            send_kept(session, cursor, entries).await.map(|()| found)
        }
        Err(error) => {
            tracing::info!(error = %ErrorChain(&error), "reading the last output failed");
            Ok(false)
        }
    }
}

/// Removes the pieces at the end. They may grow while the box runs; the follower gets them from
/// boxd or from the archive.
fn drop_unfinished(entries: &mut Vec<LogEntry>) {
    while entries.last().is_some_and(|last| last.partial) {
        entries.pop();
    }
}

async fn is_reachable(lease: &Lease) -> bool {
    let asked = async {
        let span = call_span("Status");
        let mut connection = lease.connection().instrument(span.clone()).await?;
        let request = traced(&span, proto::StatusRequest {});
        match connection.client.status(request).instrument(span).await {
            Ok(_) => Ok(()),
            Err(status) => {
                lease.mark_lost(connection.number);
                Err(BoxError::from_status(status))
            }
        }
    };
    matches!(
        tokio::time::timeout(REACH_DEADLINE, asked).await,
        Ok(Ok(()))
    )
}
