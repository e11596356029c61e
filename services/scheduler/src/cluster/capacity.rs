//! The capacity of one cluster, refreshed in the background.
//!
//! * I1. Reading never waits for the cluster.
//! * I2. A capacity older than [`STALE_AFTER`] is not returned, and the cluster counts as
//!   unreachable. One failed refresh alone does not make it unreachable.

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_runtime::{Capacity, Runtime, RuntimeError};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// The pause after a refresh that failed.
const RETRY_AFTER: Duration = Duration::from_millis(250);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const STALE_AFTER: Duration = Duration::from_secs(4);

/// The time of an answer, and the capacity in it.
type Answer = Option<(Instant, Capacity)>;

fn fresh(answer: &Answer) -> Option<&Capacity> {
    let (at, capacity) = answer.as_ref()?;
    (at.elapsed() < STALE_AFTER).then_some(capacity)
}

/// The newest answer of one cluster.
#[derive(Default)]
pub struct CapacityCache(watch::Sender<Answer>);

impl CapacityCache {
    /// `None` while the cluster does not answer.
    #[must_use]
    pub fn current(&self) -> Option<Capacity> {
        fresh(&self.0.borrow()).cloned()
    }

    /// Returns when [`Self::current`] has a capacity: at once, or at the next answer.
    pub async fn wait_known(&self) {
        let mut answers = self.0.subscribe();
        // The sender is in `self`, so this cannot fail.
        let _ = answers.wait_for(|answer| fresh(answer).is_some()).await;
    }

    /// Asks the cluster once; returns its version.
    async fn refresh(&self, runtime: &dyn Runtime) -> Result<String, RuntimeError> {
        let capacity = tokio::time::timeout(ANSWER_TIMEOUT, runtime.capacity())
            .await
            .unwrap_or(Err(RuntimeError::Deadline(ANSWER_TIMEOUT)))?;
        let version = capacity.version.clone();
        self.0.send_replace(Some((Instant::now(), capacity)));
        Ok(version)
    }

    /// Refreshes until shutdown; calls `refreshed` after each attempt.
    pub async fn run_refresh(
        &self,
        cluster: &str,
        runtime: &dyn Runtime,
        shutdown: CancellationToken,
        refreshed: impl Fn(),
    ) {
        let mut answered = None;
        loop {
            let outcome = self.refresh(runtime).await;
            match &outcome {
                Ok(version) if answered != Some(true) => {
                    tracing::info!(cluster, version, "cluster reachable");
                }
                Err(error) if answered != Some(false) => {
                    tracing::warn!(cluster, error = %ErrorChain(error), "cluster unreachable");
                }
                _ => {}
            }
            answered = Some(outcome.is_ok());
            refreshed();
            let pause = match outcome {
                Ok(_) => REFRESH_INTERVAL,
                Err(_) => RETRY_AFTER,
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}
