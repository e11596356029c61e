//! Log sessions: the main command's output, while the box runs and after its end.
//!
//! There are three sources: boxd while it runs, then the files that outlive the box, which
//! the driver reads, then the archive. All use the same numbers for the entries. A reader has
//! one position in these numbers ([`cursor::LogCursor`]) and moves from source to source.
//!
//! * I1. No entry is sent twice, and every missing entry is counted by
//!   [`FromBox::LogsLost`].
//! * I2. `ended` is sent only when the environment has ended: boxd reported the main
//!   command's end, or an archive exists.
//! * I3. A batch is bounded, and is sent as soon as no more entries are available.

mod batch;
mod cursor;
mod ended;
mod live;

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_bus::{Incoming, Session};
use agentbox_contracts::environment::Status;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::rpc::BoxSession;
use agentbox_contracts::exec::{FromBox, LogsRequest, ToBox};
use agentbox_contracts::logs::LogEntry;
use tokio_util::sync::CancellationToken;

use crate::boxes::Lease;
use crate::logs::batch::Batches;
use crate::logs::cursor::LogCursor;
use crate::outcome::{Outcome, refuse, stopping_error};
use crate::target::Target;

const RETRY_PAUSE: Duration = Duration::from_millis(50);

type LogsSession = Session<FromBox, ToBox>;

/// The first source of a session's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstSource {
    /// The environment has no box yet.
    Pending,
    Live(SocketAddr),
    /// The box is gone, or its address is unknown.
    Stored,
}

const fn first_source(status: Status, address: Option<SocketAddr>) -> FirstSource {
    match (status, address) {
        (Status::Pending, _) => FirstSource::Pending,
        (Status::Running | Status::Terminating, Some(address)) => FirstSource::Live(address),
        (Status::Running | Status::Terminating, None) => FirstSource::Stored,
        (Status::Terminated | Status::Failed, _) => FirstSource::Stored,
    }
}

/// Why sending stopped before the end of the logs.
enum Stop {
    PeerGone,
    Stopping,
    Failed(Error),
}

/// Serves `request` on the session that `incoming` opens.
pub async fn serve(
    incoming: Incoming<BoxSession>,
    target: Target<'_>,
    request: LogsRequest,
    stopping: CancellationToken,
) -> Outcome {
    let mut cursor = LogCursor::new(&request);
    let lease = match first_source(target.status, target.address) {
        FirstSource::Pending if request.follow => {
            let error = Error::new(ErrorCode::NotRunning, "the environment is not running yet");
            return refuse(incoming, error).await;
        }
        FirstSource::Pending => {
            let session: LogsSession = incoming.accept();
            return finish(session, false).await;
        }
        FirstSource::Live(address) => match target
            .cluster
            .boxes
            .lease_session(&target.environment, address)
        {
            Ok(lease) => Some(lease),
            Err(error) => return refuse(incoming, error.public()).await,
        },
        FirstSource::Stored => None,
    };
    let mut session: LogsSession = incoming.accept();
    let ended = match lease {
        Some(lease) => stream_live(&mut session, lease, &target, &mut cursor, &stopping).await,
        None => ended::send_ended(&mut session, &target, &mut cursor).await,
    };
    match ended {
        Ok(ended) => finish(session, ended).await,
        Err(Stop::PeerGone) => Outcome::PeerGone,
        Err(Stop::Stopping) => fail(session, stopping_error()).await,
        Err(Stop::Failed(error)) => fail(session, error).await,
    }
}

/// Sends from boxd while it answers, then from the stored output. Returns whether the
/// environment has ended.
async fn stream_live(
    session: &mut LogsSession,
    lease: Lease,
    target: &Target<'_>,
    cursor: &mut LogCursor,
    stopping: &CancellationToken,
) -> Result<bool, Stop> {
    loop {
        let lost = match live::stream(session, &lease, cursor, stopping).await? {
            live::Ended::Complete => return Ok(cursor.follow),
            live::Ended::Lost(lost) => lost,
        };
        tracing::debug!(%lost, "boxd was lost; looking for its stored output");
        match ended::resolve_lost(session, &lease, target, cursor, &lost, stopping).await? {
            // Pauses, so that a box that answers but loses each log stream is not flooded.
            ended::Resolution::Reachable => tokio::time::sleep(RETRY_PAUSE).await,
            ended::Resolution::Sent { ended } => return Ok(ended),
        }
    }
}

async fn finish(session: LogsSession, ended: bool) -> Outcome {
    match session.finish(FromBox::LogsEnd { ended }).await {
        Ok(()) => Outcome::Finished,
        Err(_) => Outcome::PeerGone,
    }
}

async fn fail(session: LogsSession, error: Error) -> Outcome {
    let code = error.code;
    session.fail(error).await;
    Outcome::Failed(code)
}

/// Sends the entries of `kept`, all that a source has, that the cursor selects.
async fn send_kept(
    session: &mut LogsSession,
    cursor: &mut LogCursor,
    kept: Vec<LogEntry>,
) -> Result<(), Stop> {
    let selection = cursor.select(kept);
    if selection.lost > 0 {
        send(session, FromBox::LogsLost(selection.lost)).await?;
    }
    let mut batches = Batches::default();
    for entry in selection.entries {
        if let Some(full) = batches.push(entry) {
            send(session, FromBox::Logs(full)).await?;
        }
    }
    if let Some(rest) = batches.take() {
        send(session, FromBox::Logs(rest)).await?;
    }
    Ok(())
}

/// The number of lost entries and the entries that a reader's first request selects from `kept`, for
/// the fuzz targets in `loadtest/fuzz`.
#[cfg(fuzzing)]
#[must_use]
pub fn select(request: &LogsRequest, kept: Vec<LogEntry>) -> (u64, Vec<LogEntry>) {
    let selection = LogCursor::new(request).select(kept);
    (selection.lost, selection.entries)
}

async fn send(session: &mut LogsSession, message: FromBox) -> Result<(), Stop> {
    session.send(message).await.map_err(|_| Stop::PeerGone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_source_follows_from_status_and_address() {
        let socket = SocketAddr::from(([10, 0, 0, 2], 10_777));
        let address = Some(socket);
        for (status, given, expected) in [
            (Status::Pending, None, FirstSource::Pending),
            (Status::Pending, address, FirstSource::Pending),
            (Status::Running, address, FirstSource::Live(socket)),
            (Status::Terminating, address, FirstSource::Live(socket)),
            (Status::Terminating, None, FirstSource::Stored),
            (Status::Terminated, address, FirstSource::Stored),
            (Status::Failed, None, FirstSource::Stored),
        ] {
            assert_eq!(
                first_source(status, given),
                expected,
                "{status:?} {given:?}"
            );
        }
    }
}
