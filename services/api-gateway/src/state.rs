//! What every handler is given.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::{Bus, RouteMirror};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::principal::signature::Signatures;
use crate::principal::whose::WhoseToken;
use crate::rate_limit::{Limiter, Limits};

/// How long auth may take to answer; a password is checked within it.
pub(crate) const AUTH_DEADLINE: Duration = Duration::from_secs(3);
/// How long the scheduler may take to answer.
pub(crate) const SCHEDULER_DEADLINE: Duration = Duration::from_secs(5);

/// Clones share one state.
#[derive(Clone)]
pub(crate) struct Gateway {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub config: Config,
    pub bus: Bus,
    pub routes: RouteMirror,
    pub limiter: Limiter,
    pub signatures: Signatures,
    pub whose: WhoseToken,
    /// When it is cancelled, clients are told to come back on another connection.
    pub leaving: CancellationToken,
    /// Streams end when it is cancelled.
    pub shutdown: CancellationToken,
    /// WebSockets, which outlive the connection's own future.
    pub sockets: TaskTracker,
}

impl Gateway {
    pub(crate) fn new(
        config: Config,
        bus: Bus,
        routes: RouteMirror,
        leaving: CancellationToken,
        shutdown: CancellationToken,
    ) -> Self {
        let limiter = Limiter::new(bus.clone(), Limits::from(&config));
        Self {
            inner: Arc::new(Inner {
                config,
                bus,
                routes,
                limiter,
                signatures: Signatures::default(),
                whose: WhoseToken::default(),
                leaving,
                shutdown,
                sockets: TaskTracker::new(),
            }),
        }
    }
}

impl Deref for Gateway {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.inner
    }
}
