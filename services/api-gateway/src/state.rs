//! What every handler is given.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::{Bus, RouteMirror};
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// How long each service may take to answer.
pub(crate) const AUTH_DEADLINE: Duration = Duration::from_secs(3);
pub(crate) const SCHEDULER_DEADLINE: Duration = Duration::from_secs(8);

/// Clones share one state.
#[derive(Clone)]
pub(crate) struct Gateway {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub config: Config,
    pub bus: Bus,
    pub routes: RouteMirror,
    /// Streams end when it is cancelled.
    pub shutdown: CancellationToken,
}

impl Gateway {
    pub(crate) fn new(
        config: Config,
        bus: Bus,
        routes: RouteMirror,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                bus,
                routes,
                shutdown,
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
