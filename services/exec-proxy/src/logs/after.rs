//! Logs of a box that does not answer: it has ended, or the way to it is lost.

use std::time::Duration;

use agentbox_box_protocol::proto;
use agentbox_contracts::error::{Error, ErrorCode};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::archive::ARCHIVE_BYTES;
use crate::boxes::trace::{call_span, traced};
use crate::boxes::{BoxError, Lease};
use crate::logs::wanted::Wanted;
use crate::logs::{LogsSession, Source, Stop, send_kept};

/// So long a follower waits for the archive, or for the box to come back: an ended box is
/// archived within a second of its end, unless the scheduler is away.
const SETTLE_WITHIN: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long one attempt to reach the box again may take.
const REACH_DEADLINE: Duration = Duration::from_secs(1);

/// What became of a box whose boxd was lost.
pub enum Found {
    /// It answers again.
    Box,
    /// All that is left was sent.
    Rest { ended: bool },
}

/// Sends what is kept of a box that has ended.
pub async fn gone(
    session: &mut LogsSession,
    source: &Source<'_>,
    wanted: &mut Wanted,
) -> Result<bool, Stop> {
    if send_archive(session, source, wanted).await? {
        return Ok(true);
    }
    // Not archived, or no longer kept.
    send_last_output(session, source, wanted).await?;
    Ok(source.status.is_ended())
}

/// Finds out what became of the box, sending what it left meanwhile.
pub async fn lost(
    session: &mut LogsSession,
    lease: &Lease,
    source: &Source<'_>,
    wanted: &mut Wanted,
    lost: &BoxError,
    stopping: &CancellationToken,
) -> Result<Found, Stop> {
    let give_up = Instant::now() + SETTLE_WITHIN;
    let mut pause = FIRST_PAUSE;
    let mut output_sent = false;
    loop {
        if send_archive(session, source, wanted).await? {
            return Ok(Found::Rest { ended: true });
        }
        if answers_again(lease).await {
            return Ok(Found::Box);
        }
        if !output_sent {
            let sent = send_last_output(session, source, wanted).await?;
            if !wanted.follow {
                return match sent {
                    true => Ok(Found::Rest { ended: false }),
                    false => Err(Stop::Failed(lost.public())),
                };
            }
            output_sent = true;
        }
        if Instant::now() >= give_up {
            return Err(Stop::Failed(Error::new(
                ErrorCode::BoxLost,
                "the environment's box was lost, and whether it has ended is not known yet",
            )));
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            () = session.closed() => return Err(Stop::PeerGone),
            () = stopping.cancelled() => return Err(Stop::Stopping),
        }
    }
}

/// `true` when there is an archive: the environment has ended.
async fn send_archive(
    session: &mut LogsSession,
    source: &Source<'_>,
    wanted: &mut Wanted,
) -> Result<bool, Stop> {
    match source.archive.get(&source.environment).await {
        Ok(Some(entries)) => send_kept(session, wanted, entries).await.map(|()| true),
        Ok(None) => Ok(false),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the archive cannot be read"
            );
            if source.status.is_ended() {
                let error = Error::new(ErrorCode::Unavailable, "the output archive cannot be read");
                return Err(Stop::Failed(error));
            }
            Ok(false)
        }
    }
}

/// `true` when the driver has something of it.
async fn send_last_output(
    session: &mut LogsSession,
    source: &Source<'_>,
    wanted: &mut Wanted,
) -> Result<bool, Stop> {
    let connector = source.cluster.boxes.connector();
    match connector
        .last_output(&source.environment, ARCHIVE_BYTES)
        .await
    {
        Ok(entries) => {
            let found = !entries.is_empty();
            send_kept(session, wanted, entries).await.map(|()| found)
        }
        Err(error) => {
            tracing::info!(%error, "the last output cannot be read");
            Ok(false)
        }
    }
}

async fn answers_again(lease: &Lease) -> bool {
    let asked = async {
        let span = call_span("Status");
        let mut connection = lease.connection().instrument(span.clone()).await?;
        let request = traced(&span, proto::StatusRequest {});
        match connection.client.status(request).instrument(span).await {
            Ok(_) => Ok(()),
            Err(status) => {
                lease.lost(connection.number).await;
                Err(BoxError::from_status(status))
            }
        }
    };
    matches!(
        tokio::time::timeout(REACH_DEADLINE, asked).await,
        Ok(Ok(()))
    )
}
