//! The sessions of one cluster: accepts them from the bus, limits them, and passes each to
//! `exec`, `logs`, `files`, `executions` or `ports`.
//!
//! Owns the tasks of the sessions in flight.
//!
//! * I1. A session over a limit is refused at once, with an error that names the limit. One owner
//!   cannot use up the sessions ([`FairShare`]).
//! * I2. On shutdown, sessions that are already on the way are still accepted; sessions
//!   that last longer than the grace end with an error. No session is dropped silently.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agentbox_bus::{Bus, BusError, Incoming};
use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::rpc::BoxSession;
use agentbox_contracts::exec::{Open, OpenKind};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::archive::Archive;
use crate::clusters::Cluster;
use crate::config::{Limits, SERVICE};
use crate::fair_share::FairShare;
use crate::metrics::OpenSession;
use crate::outcome::{Outcome, refuse};
use crate::target::Target;
use crate::{exec, executions, files, logs, metrics, ports};

/// How long cancelled sessions may take to end.
const CANCEL_DEADLINE: Duration = Duration::from_secs(4);

/// Accepts sessions until shutdown, then drains them.
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
    let share = FairShare::new(limits.sessions);
    let mut sessions = JoinSet::new();
    let mut is_open = true;
    loop {
        let incoming = tokio::select! {
            // Leaves the queue group. Sessions already on the way here are still served: no
            // other process gets them.
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
            let error = Error::new(
                ErrorCode::Unavailable,
                "the exec-proxy serves too many sessions; try again",
            );
            metrics::limit_reached("sessions");
            metrics::failed("open", error.code);
            incoming.refuse(error).await;
            continue;
        }
        let span = incoming.span.clone();
        let (cluster, archive) = (Arc::clone(&cluster), archive.clone());
        let share = Arc::clone(&share);
        let served = serve_one(incoming, cluster, archive, share, stopping.clone());
        sessions.spawn(served.instrument(span));
    }
    drain(sessions, limits.session_grace, &stopping).await;
    Ok(())
}

async fn drain(mut sessions: JoinSet<()>, grace: Duration, stopping: &CancellationToken) {
    for within in [grace, CANCEL_DEADLINE] {
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
                "the shutdown grace has passed; ending open sessions"
            );
        }
        stopping.cancel();
    }
    tracing::warn!(
        sessions = sessions.len(),
        "sessions did not end in time and were dropped"
    );
    sessions.shutdown().await;
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(error = %ErrorChain(&error), "a session panicked");
    }
}

async fn serve_one(
    mut incoming: Incoming<BoxSession>,
    cluster: Arc<Cluster>,
    archive: Archive,
    share: Arc<FairShare>,
    stopping: CancellationToken,
) {
    let open = match incoming.open().await {
        Ok(open) => open,
        Err(error) => {
            tracing::warn!(error = %ErrorChain(&error), "receiving a session's open request failed");
            let error = error.public();
            metrics::failed("open", error.code);
            incoming.refuse(error).await;
            return;
        }
    };
    let kind = match &open.kind {
        OpenKind::Exec(_) => "exec",
        OpenKind::Logs(_) => "logs",
        OpenKind::Files(_) => "files",
        OpenKind::Execution(_) => "executions",
        OpenKind::Port(_) => "port",
        OpenKind::Ports => "ports",
    };
    // An older gateway does not send the owner.
    let owner_share = open.owner.as_ref().map(|owner| share.begin(owner));
    if matches!(owner_share, Some(None)) {
        let error = Error::new(
            ErrorCode::Unavailable,
            "the owner of the environment has more sessions than are free; end some, or try again",
        );
        metrics::limit_reached("sessions_per_owner");
        metrics::failed(kind, error.code);
        incoming.refuse(error).await;
        return;
    }
    let _counted = OpenSession::new(kind);
    let begun = Instant::now();
    let span =
        tracing::info_span!("session", otel.name = kind, kind, environment.id = %open.environment);
    let outcome = dispatch(incoming, open, &cluster, &archive, stopping)
        .instrument(span)
        .await;
    drop(owner_share);
    metrics::session_ended(kind, outcome, begun.elapsed());
    match outcome {
        Outcome::Finished => tracing::debug!(kind, "session finished"),
        Outcome::PeerGone => tracing::info!(kind, "the gateway closed the session"),
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
    let target = Target {
        cluster,
        archive,
        environment: open.environment,
        address: open.address,
        status: open.status,
    };
    match open.kind {
        OpenKind::Logs(request) => Box::pin(logs::serve(incoming, target, request, stopping)).await,
        OpenKind::Execution(request) => {
            Box::pin(executions::serve(incoming, target, request, stopping)).await
        }
        OpenKind::Exec(request) => match target.lease_running() {
            Ok(lease) => {
                // The stdin that follows must not wait for output.
                let session = match request.stdin_follows {
                    true => incoming.accept_to_receive(),
                    false => incoming.accept(),
                };
                Box::pin(exec::serve(session, lease, request, stopping)).await
            }
            Err(error) => refuse(incoming, error).await,
        },
        // Here and below the box speaks first: the gateway sends nothing before its first output.
        OpenKind::Files(request) => match target.lease_running() {
            Ok(lease) => Box::pin(files::serve(incoming.accept(), lease, request, stopping)).await,
            Err(error) => refuse(incoming, error).await,
        },
        OpenKind::Port(request) => match target.lease_running() {
            Ok(lease) => {
                Box::pin(ports::connect(incoming.accept(), lease, request, stopping)).await
            }
            Err(error) => refuse(incoming, error).await,
        },
        OpenKind::Ports => match target.lease_running() {
            Ok(lease) => Box::pin(ports::list(incoming.accept(), lease, stopping)).await,
            Err(error) => refuse(incoming, error).await,
        },
    }
}
