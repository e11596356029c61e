//! What one cluster has, refreshed in the background.
//!
//! * I1. Reading never waits for the cluster.
//! * I2. What is older than [`STALE_AFTER`] is not told: the cluster counts as away. One that
//!   fails to answer once does not.

use std::time::Duration;

use agentbox_runtime::{Capacity, Runtime, RuntimeError};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// After one that failed.
const RETRY_AFTER: Duration = Duration::from_millis(250);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const STALE_AFTER: Duration = Duration::from_secs(4);

/// An answer, and when it came.
type Answer = Option<(Instant, Capacity)>;

fn fresh(answer: &Answer) -> Option<&Capacity> {
    let (at, capacity) = answer.as_ref()?;
    (at.elapsed() < STALE_AFTER).then_some(capacity)
}

/// The newest answer. Clones are made of the value, not of the cache.
#[derive(Default)]
pub struct CapacityCache(watch::Sender<Answer>);

impl CapacityCache {
    /// `None` while the cluster does not answer.
    #[must_use]
    pub fn current(&self) -> Option<Capacity> {
        fresh(&self.0.borrow()).cloned()
    }

    /// Returns when there is something to read: at once, or at the next answer.
    pub async fn known(&self) {
        let mut answers = self.0.subscribe();
        // It ends with the cache only, which we hold.
        let _ = answers.wait_for(|answer| fresh(answer).is_some()).await;
    }

    /// Asks once.
    async fn refresh(&self, runtime: &dyn Runtime) -> Result<String, RuntimeError> {
        let capacity = tokio::time::timeout(ANSWER_WITHIN, runtime.capacity())
            .await
            .unwrap_or(Err(RuntimeError::Deadline(ANSWER_WITHIN)))?;
        let version = capacity.version.clone();
        self.0.send_replace(Some((Instant::now(), capacity)));
        Ok(version)
    }

    /// Refreshes until shutdown; calls `refreshed` after each time.
    pub async fn keep_fresh(
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
                    tracing::info!(cluster, version, "the cluster answers");
                }
                Err(error) if answered != Some(false) => {
                    tracing::warn!(cluster, %error, "the cluster does not answer");
                }
                _ => {}
            }
            answered = Some(outcome.is_ok());
            refreshed();
            let pause = match outcome {
                Ok(_) => REFRESH_EVERY,
                Err(_) => RETRY_AFTER,
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}
