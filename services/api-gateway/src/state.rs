//! The state that every handler shares.

use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::{Bus, RouteTable};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::Principal;
use agentbox_contracts::ids::UserId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::environments::usage::UsageCache;
use crate::exec;
use crate::lookup::reads::Reads;
use crate::memory::{
    self, MAX_BODY_BYTES, MAX_BODY_BYTES_PER_USER, MAX_STORED_EVENTS, MAX_STORED_EVENTS_PER_USER,
    SESSION_MEMORY, SessionKind,
};
use crate::metrics;
use crate::ports::rate::ByteRates;
use crate::previews::visits::Visits;
use crate::principal::confirmed::ConfirmedTokens;
use crate::principal::signature::Signatures;
use crate::rate_limit::{Limiter, Limits};
use crate::shares::{Exceeded, Share, Shares};

/// How long auth may take to answer. It includes the check of a password, which is slow.
pub(crate) const AUTH_DEADLINE: Duration = Duration::from_secs(3);
/// How long auth may take to change a credential. It also waits, for at most 2 s, until no gateway repeats what
/// auth has confirmed before.
pub(crate) const CREDENTIAL_CHANGE_DEADLINE: Duration = Duration::from_secs(5);
/// How long the scheduler may take to answer.
pub(crate) const SCHEDULER_DEADLINE: Duration = Duration::from_secs(5);
/// How long webhooks may take to answer.
pub(crate) const WEBHOOKS_DEADLINE: Duration = Duration::from_secs(5);
/// How long the scheduler may take to change a network policy, which it also applies. It waits for
/// the cluster for at most 8 seconds.
pub(crate) const NETWORK_POLICY_DEADLINE: Duration = Duration::from_secs(12);

/// How long open streams continue after draining has begun. By then load balancers have seen that
/// this replica is not ready, so a client that reconnects reaches another one.
const DRAIN_NOTICE: Duration = Duration::from_secs(3);

/// When a user with too many sessions should try again, in seconds.
const SESSION_RETRY_S: u32 = 5;

/// A command, a terminal or a stream of one user until it is dropped.
pub(crate) struct OpenSession {
    _place: Share<UserId>,
    _memory: Share<UserId>,
}

/// The state as handlers receive it: clones share it.
pub(crate) type Gateway = Arc<AppState>;

pub(crate) struct AppState {
    pub config: Config,
    pub bus: Bus,
    pub routes: RouteTable,
    pub limiter: Limiter,
    pub signatures: Signatures,
    pub confirmed_tokens: ConfirmedTokens,
    pub usage: UsageCache,
    /// The reads of environments from the scheduler.
    pub reads: Reads<Bus>,
    /// Cancelled when this replica stops taking new connections.
    pub draining: CancellationToken,
    /// Cancelled [`DRAIN_NOTICE`] after `draining`; ends streams that were opened before it.
    draining_streams: CancellationToken,
    /// Cancelled when this replica stops; ends all streams.
    pub shutdown: CancellationToken,
    /// Open WebSockets, and connections to ports. Their tasks continue after the task of their HTTP
    /// connection.
    pub sockets: TaskTracker,
    /// The rates of the users' connections to ports.
    pub port_rates: ByteRates,
    /// The visits of public previews that are in the audit trail.
    pub visits: Visits,
    /// Commands, terminals, streams and connections to ports that are open.
    sessions: Shares<UserId>,
    /// The bytes that these may take.
    session_memory: Shares<UserId>,
    /// The bytes of results that are in memory.
    pub results: Shares<UserId>,
    /// The bytes of request bodies that are in memory.
    pub bodies: Shares<UserId>,
    /// The number of stored events that are in memory.
    pub stored_events: Shares<UserId>,
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
        let reads = Reads::new(bus.clone());
        // A session has a connection, or shares one over HTTP/2.
        let max_sessions = config.max_connections as u64;
        let sessions = Shares::new(config.max_sessions_per_user, max_sessions);
        let session_bytes = memory::session_bytes(&config);
        let session_memory = Shares::fair(session_bytes, session_bytes);
        let results = exec::memory::results(&config);
        tracing::info!(
            memory_limit = config.memory_limit,
            session_bytes,
            "the bounds of this replica's memory were set"
        );
        let port_rates = ByteRates::new(config.port_bytes_per_second);
        Arc::new(Self {
            config,
            bus,
            routes,
            limiter,
            signatures: Signatures::default(),
            confirmed_tokens: ConfirmedTokens::default(),
            usage: UsageCache::default(),
            reads,
            draining_streams: shutdown.child_token(),
            draining,
            shutdown,
            sockets: TaskTracker::new(),
            port_rates,
            visits: Visits::default(),
            sessions,
            session_memory,
            results,
            bodies: Shares::fair(MAX_BODY_BYTES_PER_USER, MAX_BODY_BYTES),
            stored_events: Shares::fair(MAX_STORED_EVENTS_PER_USER, MAX_STORED_EVENTS),
            results_in_flight: TaskTracker::new(),
        })
    }

    /// Counts a command, a terminal, a read of logs or followed events, and reserves the memory that
    /// it may take, until it ends.
    ///
    /// # Errors
    /// [`ErrorCode::RateLimited`] when the user has too many of them; [`ErrorCode::Unavailable`] when
    /// this replica has, or when their memory is in use.
    pub(crate) fn begin_session(
        &self,
        principal: &Principal,
        kind: SessionKind,
    ) -> Result<OpenSession, Error> {
        let user = &principal.user;
        let most = principal.limits.sessions;
        let most = most.unwrap_or(self.config.max_sessions_per_user);
        let place = self.sessions.take_within(user, 1, most);
        let memory = self.session_memory.take(user, kind.bytes());
        Ok(OpenSession {
            _place: place.map_err(|exceeded| too_many_sessions(exceeded, most))?,
            _memory: memory.map_err(|exceeded| SESSION_MEMORY.unavailable(exceeded))?,
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

/// The error when a user has `most` sessions, or this replica all that it may have.
fn too_many_sessions(exceeded: Exceeded, most: u64) -> Error {
    match exceeded {
        Exceeded::PerHolder => {
            metrics::limit_reached("sessions_per_user");
            let mut error = Error::new(
                ErrorCode::RateLimited,
                format!(
                    "you have {most} commands, terminals and streams open, the most that one user \
                     may have; end some, or try again in {SESSION_RETRY_S} s"
                ),
            );
            error.retry_after_s = Some(SESSION_RETRY_S);
            error
        }
        Exceeded::Total => {
            metrics::limit_reached("sessions");
            Error::new(
                ErrorCode::Unavailable,
                "too many commands, terminals and streams are open; try again",
            )
        }
    }
}
