//! The main command's output: kept, followed, and after the box is gone.
//!
//! Entries carry sequence numbers of one space, whoever gives them: boxd while it runs,
//! the driver from what outlives the box, the archive afterwards. A reader is at one
//! position in that space ([`wanted::Wanted`]) and goes from source to source.
//!
//! * I1. No entry is given twice, and none is left out without [`FromBox::LogsLost`].
//! * I2. `ended` is said only of an environment that has ended: boxd said that the main
//!   command has, or there is an archive.
//! * I3. A batch is bounded, and leaves as soon as nothing more is there.

mod after;
mod batch;
mod live;
mod wanted;

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_bus::{Incoming, Session};
use agentbox_contracts::environment::Status;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::rpc::BoxSession;
use agentbox_contracts::exec::{FromBox, LogsRequest, ToBox};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::logs::LogEntry;
use tokio_util::sync::CancellationToken;

use crate::archive::Archive;
use crate::boxes::{BoxError, Boxes, Lease};
use crate::clusters::Cluster;
use crate::logs::batch::Batches;
use crate::logs::wanted::Wanted;
use crate::session::{Outcome, refuse};

/// Where an environment's output can be.
pub struct Source<'a> {
    pub cluster: &'a Cluster,
    pub archive: &'a Archive,
    pub environment: EnvironmentId,
    pub address: Option<SocketAddr>,
    pub status: Status,
}

const AGAIN_PAUSE: Duration = Duration::from_millis(50);

type LogsSession = Session<FromBox, ToBox>;

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    /// It has no box yet.
    Nothing,
    Live(SocketAddr),
    /// Its box is gone, or is nowhere that we know.
    Gone,
}

const fn begin(status: Status, address: Option<SocketAddr>) -> Begin {
    match (status, address) {
        (Status::Pending, _) => Begin::Nothing,
        (Status::Running | Status::Terminating, Some(address)) => Begin::Live(address),
        (Status::Running | Status::Terminating, None) => Begin::Gone,
        (Status::Terminated | Status::Failed, _) => Begin::Gone,
    }
}

/// Why a part of the flow stopped before the end of the logs.
enum Stop {
    PeerGone,
    Stopping,
    Failed(Error),
}

/// Serves `request` on the session that `incoming` opens.
pub async fn serve(
    incoming: Incoming<BoxSession>,
    source: Source<'_>,
    request: LogsRequest,
    stopping: CancellationToken,
) -> Outcome {
    let mut wanted = Wanted::new(&request);
    let lease = match begin(source.status, source.address) {
        Begin::Nothing if request.follow => {
            let error = Error::new(ErrorCode::NotRunning, "the environment is not running yet");
            return refuse(incoming, error).await;
        }
        Begin::Nothing => {
            let session: LogsSession = incoming.accept();
            return finish(session, false).await;
        }
        Begin::Live(address) => match source.cluster.boxes.lease(&source.environment, address) {
            Ok(lease) => Some(lease),
            Err(error) => return refuse(incoming, error.public()).await,
        },
        Begin::Gone => None,
    };
    let mut session: LogsSession = incoming.accept();
    let ended = match lease {
        Some(lease) => while_it_lives(&mut session, lease, &source, &mut wanted, &stopping).await,
        None => after::gone(&mut session, &source, &mut wanted).await,
    };
    match ended {
        Ok(ended) => finish(session, ended).await,
        Err(Stop::PeerGone) => Outcome::PeerGone,
        Err(Stop::Stopping) => {
            fail(
                session,
                Error::new(ErrorCode::BoxLost, "the exec-proxy is shutting down"),
            )
            .await
        }
        Err(Stop::Failed(error)) => fail(session, error).await,
    }
}

/// From boxd for as long as it answers, then from what it left. Returns whether the
/// environment has ended.
async fn while_it_lives(
    session: &mut LogsSession,
    lease: Lease,
    source: &Source<'_>,
    wanted: &mut Wanted,
    stopping: &CancellationToken,
) -> Result<bool, Stop> {
    loop {
        let lost = match live::stream(session, &lease, wanted, stopping).await? {
            live::Ended::Complete => return Ok(wanted.follow),
            live::Ended::Lost(lost) => lost,
        };
        tracing::debug!(%lost, "boxd is gone; looking for what it left");
        match after::lost(session, &lease, source, wanted, &lost, stopping).await? {
            // A box that answers and whose logs are lost again and again is not hurried.
            after::Found::Box => tokio::time::sleep(AGAIN_PAUSE).await,
            after::Found::Rest { ended } => return Ok(ended),
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

/// Sends what the reader wants of `kept`, which is all that a source has.
async fn send_kept(
    session: &mut LogsSession,
    wanted: &mut Wanted,
    kept: Vec<LogEntry>,
) -> Result<(), Stop> {
    let selection = wanted.select(kept);
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

async fn send(session: &mut LogsSession, message: FromBox) -> Result<(), Stop> {
    session.send(message).await.map_err(|_| Stop::PeerGone)
}

/// All that a running box's boxd keeps, oldest first.
///
/// # Errors
/// As the connection's, and boxd's.
pub async fn kept_by_boxd(
    boxes: &Boxes,
    id: &EnvironmentId,
    address: SocketAddr,
) -> Result<Vec<LogEntry>, BoxError> {
    let lease = boxes.borrow(id, address)?;
    live::kept(&lease, &Wanted::new(&LogsRequest::default())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_logs_begin_follows_from_status_and_address() {
        let socket = SocketAddr::from(([10, 0, 0, 2], 10_777));
        let address = Some(socket);
        for (status, given, expected) in [
            (Status::Pending, None, Begin::Nothing),
            (Status::Pending, address, Begin::Nothing),
            (Status::Running, address, Begin::Live(socket)),
            (Status::Terminating, address, Begin::Live(socket)),
            (Status::Terminating, None, Begin::Gone),
            (Status::Terminated, address, Begin::Gone),
            (Status::Failed, None, Begin::Gone),
        ] {
            assert_eq!(begin(status, given), expected, "{status:?} {given:?}");
        }
    }
}
