//! Sessions of one cluster: taken from the bus, bounded, handed to exec, attach or logs.
//!
//! Owns the tasks of the sessions in flight.
//!
//! * I1. What is over a bound is refused at once, with a word that says so.
//! * I2. On shutdown what is on its way is still taken, what is short finishes within the
//!   grace, and what is longer is ended with an error: no session is dropped without a word.

pub mod outcome;

use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::{Bus, BusError, Incoming};
use agentbox_contracts::environment::Status;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::rpc::BoxSession;
use agentbox_contracts::exec::{Open, OpenKind};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub use outcome::Outcome;

use crate::archive::Archive;
use crate::boxes::Lease;
use crate::clusters::Cluster;
use crate::config::Limits;
use crate::metrics::OpenSession;
use crate::{SERVICE, attach, exec, logs, metrics};

/// How long sessions that were told to end may take.
const END_DEADLINE: Duration = Duration::from_secs(4);

/// Takes sessions until shutdown, then sees them off.
///
/// # Errors
/// When the bus refuses the subscription or ends it.
pub async fn serve(
    bus: Bus,
    cluster: Arc<Cluster>,
    archive: Archive,
    limits: Limits,
    shutdown: CancellationToken,
) -> Result<(), BusError> {
    let mut acceptor = bus
        .accept_sessions::<BoxSession>(&cluster.name, SERVICE)
        .await?;
    let stopping = CancellationToken::new();
    let mut sessions = JoinSet::new();
    let mut is_open = true;
    loop {
        let incoming = tokio::select! {
            // Leaves the queue group. Who is on the way here by then is served all the same:
            // nobody else will.
            () = shutdown.cancelled(), if is_open => {
                acceptor.stop().await;
                is_open = false;
                continue;
            }
            Some(ended) = sessions.join_next() => {
                log_panic(ended);
                continue;
            }
            incoming = acceptor.next() => incoming,
        };
        let Some(incoming) = incoming else { break };
        if sessions.len() >= limits.sessions {
            let error = Error::new(ErrorCode::Unavailable, "too many sessions; try again");
            metrics::failed("open", error.code);
            incoming.refuse(error).await;
            continue;
        }
        let span = incoming.span.clone();
        let (cluster, archive) = (Arc::clone(&cluster), archive.clone());
        sessions.spawn(one(incoming, cluster, archive, stopping.clone()).instrument(span));
    }
    see_off(sessions, limits.session_grace, &stopping).await;
    Ok(())
}

async fn see_off(mut sessions: JoinSet<()>, grace: Duration, stopping: &CancellationToken) {
    for within in [grace, END_DEADLINE] {
        let all_ended = async {
            while let Some(ended) = sessions.join_next().await {
                log_panic(ended);
            }
        };
        if tokio::time::timeout(within, all_ended).await.is_ok() {
            return;
        }
        if !stopping.is_cancelled() {
            tracing::info!(
                sessions = sessions.len(),
                "ending the sessions that are still open"
            );
        }
        stopping.cancel();
    }
    tracing::warn!(
        sessions = sessions.len(),
        "sessions did not end in time and are dropped"
    );
    sessions.shutdown().await;
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a session panicked");
    }
}

async fn one(
    incoming: Incoming<BoxSession>,
    cluster: Arc<Cluster>,
    archive: Archive,
    stopping: CancellationToken,
) {
    let open = match incoming.open() {
        Ok(open) => open,
        Err(error) => {
            tracing::warn!(%error, "a session was opened with what cannot be read");
            metrics::failed("open", ErrorCode::BadRequest);
            let error = Error::new(
                ErrorCode::BadRequest,
                "the session's opening cannot be read",
            );
            incoming.refuse(error).await;
            return;
        }
    };
    let kind = match &open.kind {
        OpenKind::Exec(_) => "exec",
        OpenKind::Attach(_) => "attach",
        OpenKind::Logs(_) => "logs",
    };
    let _open = OpenSession::new(kind);
    let span =
        tracing::info_span!("session", otel.name = kind, kind, environment = %open.environment);
    let outcome = dispatch(incoming, open, &cluster, &archive, stopping)
        .instrument(span)
        .await;
    match outcome {
        Outcome::Finished => tracing::debug!(kind, "finished"),
        Outcome::PeerGone => tracing::info!(kind, "the other end is gone"),
        Outcome::Failed(code) => metrics::failed(kind, code),
    }
}

async fn dispatch(
    incoming: Incoming<BoxSession>,
    open: Open,
    cluster: &Cluster,
    archive: &Archive,
    stopping: CancellationToken,
) -> Outcome {
    match open.kind {
        OpenKind::Exec(request) => {
            match into_box(cluster, &open.environment, open.address, open.status) {
                Ok(lease) => {
                    Box::pin(exec::serve(incoming.accept(), lease, request, stopping)).await
                }
                Err(error) => refuse(incoming, error).await,
            }
        }
        OpenKind::Attach(request) => {
            match into_box(cluster, &open.environment, open.address, open.status) {
                Ok(lease) => {
                    Box::pin(attach::serve(incoming.accept(), lease, request, stopping)).await
                }
                Err(error) => refuse(incoming, error).await,
            }
        }
        OpenKind::Logs(request) => {
            let source = logs::Source {
                cluster,
                archive,
                environment: open.environment,
                address: open.address,
                status: open.status,
            };
            Box::pin(logs::serve(incoming, source, request, stopping)).await
        }
    }
}

fn into_box(
    cluster: &Cluster,
    environment: &agentbox_contracts::ids::EnvironmentId,
    address: Option<std::net::SocketAddr>,
    status: Status,
) -> Result<Lease, Error> {
    let address = address
        .filter(|_| status == Status::Running)
        .ok_or_else(|| {
            let status = status.as_str();
            Error::new(
                ErrorCode::NotRunning,
                format!("the environment is not running: it is {status}"),
            )
        })?;
    cluster
        .boxes
        .lease(environment, address)
        .map_err(|error| error.public())
}

pub async fn refuse(incoming: Incoming<BoxSession>, error: Error) -> Outcome {
    let code = error.code;
    incoming.refuse(error).await;
    Outcome::Failed(code)
}
