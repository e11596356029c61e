//! What one cluster has, refreshed in the background.
//!
//! * I1. Reading never waits for the cluster.
//! * I2. What is older than [`STALE_AFTER`] is not told: the cluster counts as gone.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agentbox_runtime::{Capacity, Runtime};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const REFRESH_EVERY: Duration = Duration::from_secs(1);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const STALE_AFTER: Duration = Duration::from_secs(4);

/// The newest answer. Clones are made of the value, not of the cache.
#[derive(Default)]
pub struct CapacityCache(Mutex<Option<(Instant, Capacity)>>);

impl CapacityCache {
    /// `None` while the cluster does not answer.
    #[must_use]
    pub fn current(&self) -> Option<Capacity> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref()
            .filter(|(at, _)| at.elapsed() < STALE_AFTER)
            .map(|(_, capacity)| capacity.clone())
    }

    fn set(&self, capacity: Option<Capacity>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *held = capacity.map(|capacity| (Instant::now(), capacity));
    }

    /// Asks once.
    pub async fn refresh(&self, cluster: &str, runtime: &dyn Runtime) {
        let was_there = self.current().is_some();
        match tokio::time::timeout(ANSWER_WITHIN, runtime.capacity()).await {
            Ok(Ok(capacity)) => {
                if !was_there {
                    tracing::info!(cluster, version = capacity.version, "the cluster answers");
                }
                self.set(Some(capacity));
            }
            Ok(Err(error)) => {
                if was_there {
                    tracing::warn!(cluster, %error, "the cluster does not answer");
                }
                self.set(None);
            }
            Err(_) => {
                if was_there {
                    tracing::warn!(cluster, "the cluster does not answer in time");
                }
                self.set(None);
            }
        }
    }

    /// Refreshes until shutdown; calls `refreshed` after each time.
    pub async fn keep_fresh(
        &self,
        cluster: &str,
        runtime: &dyn Runtime,
        shutdown: CancellationToken,
        refreshed: impl Fn(),
    ) {
        loop {
            self.refresh(cluster, runtime).await;
            refreshed();
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(REFRESH_EVERY) => {}
            }
        }
    }
}
