//! The tasks of a service: owned, named, and awaited before the service ends.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::panics;

/// Spawns tasks and waits for them. Clones share the same tasks.
#[derive(Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    shutdown: CancellationToken,
    /// The first failure, once there is one.
    failure: Arc<watch::Sender<Option<String>>>,
}

impl Tasks {
    pub(crate) fn new(shutdown: CancellationToken) -> Self {
        Self {
            tracker: TaskTracker::new(),
            shutdown,
            failure: Arc::new(watch::Sender::new(None)),
        }
    }

    /// Runs `future`, which must end soon after the shutdown token is cancelled. An error or a
    /// panic before that stops the whole service.
    pub fn spawn(
        &self,
        name: &'static str,
        future: impl Future<Output = Result<(), anyhow::Error>> + Send + 'static,
    ) {
        let tasks = self.clone();
        // No span: it would be the parent of every span that the task ever creates.
        let watched = async move {
            let failure = match AssertUnwindSafe(future).catch_unwind().await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("task {name}: {error:#}")),
                Err(panic) => Some(format!(
                    "task {name} panicked: {}",
                    panics::panic_message(&*panic)
                )),
            };
            match failure {
                Some(failure) if tasks.shutdown.is_cancelled() => {
                    tracing::warn!(task = name, failure, "task failed while stopping");
                }
                Some(failure) => {
                    tasks.failure.send_if_modified(|first| {
                        let is_first = first.is_none();
                        first.get_or_insert(failure);
                        is_first
                    });
                }
                None => tracing::debug!(task = name, "task ended"),
            }
        };
        self.tracker
            .spawn(watched.instrument(tracing::Span::none()));
    }

    /// Resolves at the first failure.
    pub(crate) async fn failed(&self) -> anyhow::Error {
        let mut failure = self.failure.subscribe();
        match failure.wait_for(Option::is_some).await {
            Ok(text) => anyhow::anyhow!(text.clone().unwrap_or_default()),
            // `self` owns the sender, so it is never dropped first.
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits for all tasks, for at most `grace`.
    pub(crate) async fn finish(&self, grace: Duration) {
        self.tracker.close();
        if tokio::time::timeout(grace, self.tracker.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                tasks = self.tracker.len(),
                grace_s = grace.as_secs(),
                "tasks dropped: they did not end within the grace period"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn panicking_task_is_reported_as_failure() {
        let shutdown = CancellationToken::new();
        let tasks = Tasks::new(shutdown.clone());
        tasks.spawn("panics", async { panic!("on purpose") });
        let failure = tasks.failed().await.to_string();
        assert!(
            failure.contains("panics") && failure.contains("on purpose"),
            "{failure}"
        );
    }

    #[tokio::test]
    async fn finish_waits_for_tasks_up_to_the_grace() {
        let shutdown = CancellationToken::new();
        let tasks = Tasks::new(shutdown.clone());
        let done = CancellationToken::new();
        let (stop, mark) = (shutdown.clone(), done.clone());
        tasks.spawn("orderly", async move {
            stop.cancelled().await;
            mark.cancel();
            Ok(())
        });
        shutdown.cancel();
        tasks.finish(Duration::from_secs(5)).await;
        assert!(done.is_cancelled());

        // A stall of the machine delays one of them at most.
        let mut fastest = Duration::MAX;
        for _ in 0..3 {
            let stuck = Tasks::new(CancellationToken::new());
            stuck.spawn("stuck", std::future::pending());
            let started_at = std::time::Instant::now();
            stuck.finish(Duration::from_millis(50)).await;
            fastest = fastest.min(started_at.elapsed());
        }
        assert!(fastest < Duration::from_secs(2), "{fastest:?}");
    }
}
