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

/// By then whoever sends requests has heard that this gateway leaves: a client whose stream
/// ends finds another one.
const HEARD: Duration = Duration::from_secs(3);

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
    /// A while after `leaving`: when streams end that were begun before it.
    old_streams: CancellationToken,
    /// All streams end when it is cancelled.
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
                old_streams: shutdown.child_token(),
                leaving,
                shutdown,
                sockets: TaskTracker::new(),
            }),
        }
    }

    /// When a stream ends that begins now. A client may ask again on the connection that its
    /// stream was on, so an old stream ends while that connection is still served; a
    /// stream that is begun after the order to stop is its connection's last answer.
    pub(crate) fn end_of_streams(&self) -> CancellationToken {
        match self.leaving.is_cancelled() {
            true => self.shutdown.clone(),
            false => self.old_streams.clone(),
        }
    }

    /// Ends old streams once the gateway leaves.
    pub(crate) async fn end_old_streams(self) -> Result<(), anyhow::Error> {
        self.leaving.cancelled().await;
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = tokio::time::sleep(HEARD) => self.old_streams.cancel(),
        }
        Ok(())
    }
}

impl Deref for Gateway {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.inner
    }
}
