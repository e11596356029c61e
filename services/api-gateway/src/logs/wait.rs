//! Waits for the start and the end of an environment, by notifications of the route mirror.
//!
//! * I1. While no notification arrives, the scheduler is asked at most once in
//!   [`Waiting::recheck`]: a notification may have been lost.

use std::time::Duration;

use agentbox_bus::RouteWatch;
use agentbox_contracts::environment::Environment;
use agentbox_contracts::error::{Error, ErrorCode};
use tokio::time::{Instant, timeout};

/// The intervals and timeouts of waiting.
#[derive(Clone, Copy)]
pub(super) struct Waiting {
    /// How often the scheduler is asked without a notification.
    recheck: Duration,
    /// How long the scheduler may take to record that an environment has ended.
    end_timeout: Duration,
}

pub(super) const WAITING: Waiting = Waiting {
    recheck: Duration::from_secs(5),
    end_timeout: Duration::from_secs(10),
};

impl Waiting {
    /// Waits until the route changes, at most the recheck interval.
    pub(super) async fn for_change(self, route: &mut RouteWatch) {
        let _ = timeout(self.recheck, route.changed()).await;
    }

    /// Waits until the environment has ended, at most the end timeout. An environment has a route
    /// until it ends, so the scheduler is first asked when the route was removed.
    ///
    /// Returns the environment as last read, `None` if it no longer exists.
    ///
    /// # Errors
    /// The last error of `read_record`, if it failed until the end timeout.
    pub(super) async fn for_end<F>(
        self,
        route: &mut RouteWatch,
        read_record: impl Fn() -> F,
    ) -> Result<Option<Environment>, Error>
    where
        F: Future<Output = Result<Environment, Error>>,
    {
        let deadline = Instant::now() + self.end_timeout;
        let limit = || {
            self.recheck
                .min(deadline.saturating_duration_since(Instant::now()))
        };
        let _ = timeout(limit(), route.wait_for(|route| route.is_none())).await;
        loop {
            let is_last = Instant::now() >= deadline;
            match read_record().await {
                Ok(environment) if is_last || environment.status.is_ended() => {
                    return Ok(Some(environment));
                }
                Err(error) if error.code == ErrorCode::NotFound => return Ok(None),
                Err(error) if is_last => return Err(error),
                Ok(_) | Err(_) => {}
            }
            let removed = async {
                route.changed().await;
                route.wait_for(|route| route.is_none()).await;
            };
            let _ = timeout(limit(), removed).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use agentbox_bus::RouteTable;
    use agentbox_contracts::environment::{Route, Status, StatusReason};
    use agentbox_contracts::ids::EnvironmentId;
    use futures::FutureExt;

    use super::*;
    use crate::box_loss::tests::ended;

    const SHORT: Waiting = Waiting {
        recheck: Duration::from_millis(50),
        end_timeout: Duration::from_millis(100),
    };

    fn environment(status: Status) -> Environment {
        Environment {
            status,
            ..ended(StatusReason::Exited, None)
        }
    }

    fn table() -> (RouteTable, EnvironmentId) {
        let id = EnvironmentId::random();
        let record = environment(Status::Running);
        let route = Route {
            owner: record.owner,
            status: record.status,
            cluster: record.cluster,
            address: None,
        };
        let table = RouteTable::default();
        table.replace(HashMap::from([(id.clone(), route)]));
        (table, id)
    }

    #[tokio::test]
    async fn end_costs_one_request_after_the_route_is_removed() {
        let (table, id) = table();
        let requests = AtomicUsize::new(0);
        let mut route = table.watch(&id);
        let mut end = std::pin::pin!(WAITING.for_end(&mut route, || async {
            requests.fetch_add(1, Ordering::Relaxed);
            Ok(environment(Status::Terminated))
        }));
        assert!(end.as_mut().now_or_never().is_none());
        assert_eq!(requests.load(Ordering::Relaxed), 0, "it still has a route");
        table.remove(&id);
        let found = end.as_mut().now_or_never().expect("at once").unwrap();
        assert_eq!(found.map(|e| e.status), Some(Status::Terminated));
        assert_eq!(requests.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn lost_notification_of_the_end_is_covered_by_a_recheck() {
        let (table, id) = table();
        let requests = AtomicUsize::new(0);
        let begun = Instant::now();
        let mut route = table.watch(&id);
        let patient = Waiting {
            end_timeout: Duration::from_secs(60),
            ..SHORT
        };
        let found = patient
            .for_end(&mut route, || async {
                match requests.fetch_add(1, Ordering::Relaxed) {
                    0 => Err(Error::new(ErrorCode::Unavailable, "down")),
                    _ => Ok(environment(Status::Terminated)),
                }
            })
            .await
            .unwrap();
        assert_eq!(found.map(|e| e.status), Some(Status::Terminated));
        assert_eq!(requests.load(Ordering::Relaxed), 2);
        assert!(begun.elapsed() >= 2 * SHORT.recheck);
    }

    #[tokio::test]
    async fn environment_that_does_not_end_is_returned_after_the_timeout() {
        let (table, id) = table();
        let requests = AtomicUsize::new(0);
        let begun = Instant::now();
        let mut route = table.watch(&id);
        let found = SHORT
            .for_end(&mut route, || async {
                requests.fetch_add(1, Ordering::Relaxed);
                Ok(environment(Status::Running))
            })
            .await
            .unwrap();
        assert_eq!(found.map(|e| e.status), Some(Status::Running));
        assert!(begun.elapsed() >= SHORT.end_timeout);
        assert!(requests.load(Ordering::Relaxed) <= 3);
    }

    #[tokio::test]
    async fn pending_environment_is_rechecked_at_the_interval_or_when_its_route_changes() {
        let (table, id) = table();
        let mut route = table.watch(&id);
        let begun = Instant::now();
        SHORT.for_change(&mut route).await;
        assert!(begun.elapsed() >= SHORT.recheck);
        table.remove(&id);
        assert!(WAITING.for_change(&mut route).now_or_never().is_some());
    }
}
