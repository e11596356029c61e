//! The state that every handler shares.

use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::{Bus, RouteTable};
use agentbox_contracts::ids::UserId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::exec::memory;
use crate::principal::signature::Signatures;
use crate::principal::token_subject::TokenSubjectCache;
use crate::rate_limit::{Limiter, Limits};
use crate::shares::Shares;

/// How long auth may take to answer. It includes the check of a password, which is slow.
pub(crate) const AUTH_DEADLINE: Duration = Duration::from_secs(3);
/// How long the scheduler may take to answer.
pub(crate) const SCHEDULER_DEADLINE: Duration = Duration::from_secs(5);

/// How long open streams continue after draining has begun. By then load balancers have seen that
/// this replica is not ready, so a client that reconnects reaches another one.
const DRAIN_NOTICE: Duration = Duration::from_secs(3);

/// The state as handlers receive it: clones share it.
pub(crate) type Gateway = Arc<AppState>;

pub(crate) struct AppState {
    pub config: Config,
    pub bus: Bus,
    pub routes: RouteTable,
    pub limiter: Limiter,
    pub signatures: Signatures,
    pub token_subjects: TokenSubjectCache,
    /// Cancelled when this replica stops taking new connections.
    pub draining: CancellationToken,
    /// Cancelled [`DRAIN_NOTICE`] after `draining`; ends streams that were opened before it.
    draining_streams: CancellationToken,
    /// Cancelled when this replica stops; ends all streams.
    pub shutdown: CancellationToken,
    /// Open WebSockets. Their tasks continue after the task of their HTTP connection.
    pub sockets: TaskTracker,
    /// The bytes of results that are in memory.
    pub results: Shares<UserId>,
    /// The watches of clients that read results.
    pub results_in_flight: TaskTracker,
}

impl AppState {
    pub(crate) fn new(
        config: Config,
        bus: Bus,
        routes: RouteTable,
        draining: CancellationToken,
        shutdown: CancellationToken,
    ) -> Gateway {
        let limiter = Limiter::new(bus.clone(), Limits::from(&config));
        let results = memory::results(&config);
        Arc::new(Self {
            config,
            bus,
            routes,
            limiter,
            signatures: Signatures::default(),
            token_subjects: TokenSubjectCache::default(),
            draining_streams: shutdown.child_token(),
            draining,
            shutdown,
            sockets: TaskTracker::new(),
            results,
            results_in_flight: TaskTracker::new(),
        })
    }

    /// The token that ends a stream opened at this moment.
    ///
    /// A client may reconnect on the connection that carried its stream, so an earlier stream
    /// ends while that connection is still served. A stream that is opened during draining is
    /// the last answer on its connection.
    pub(crate) fn stream_stop_token(&self) -> CancellationToken {
        match self.draining.is_cancelled() {
            true => self.shutdown.clone(),
            false => self.draining_streams.clone(),
        }
    }

    /// Ends streams that were opened before draining began, [`DRAIN_NOTICE`] later.
    pub(crate) async fn end_draining_streams(self: Arc<Self>) -> Result<(), anyhow::Error> {
        self.draining.cancelled().await;
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = tokio::time::sleep(DRAIN_NOTICE) => self.draining_streams.cancel(),
        }
        Ok(())
    }
}
