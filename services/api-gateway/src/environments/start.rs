//! Waits for the start of a new environment, by notifications of the route mirror.
//!
//! * I1. While no notification arrives, the scheduler is asked at most once in [`RECHECK`]: a
//!   notification may have been lost.
//! * I2. The environment is created before the wait: a client that disconnects loses nothing.

use std::time::Duration;

use agentbox_bus::RouteWatch;
use agentbox_contracts::environment::{Environment, Status};
use agentbox_contracts::error::{Error, ErrorCode};
use tokio::time::{Instant, timeout};

use crate::lookup;
use crate::state::Gateway;

/// How long an answer waits.
const MAX_WAIT: Duration = Duration::from_secs(60);
const RECHECK: Duration = Duration::from_secs(5);

/// Waits until `created` is no longer pending, at most [`MAX_WAIT`], and until this replica stops.
/// Returns the environment as last read.
pub(super) async fn wait(gateway: &Gateway, created: Environment) -> Environment {
    let stop = gateway.stream_stop_token();
    let id = created.id.clone();
    let mut route = gateway.routes.watch(&id);
    let mut last = created;
    let read_record = || lookup::read_record(gateway, id.clone());
    let waiting = wait_while_pending(&mut route, &mut last, MAX_WAIT, RECHECK, read_record);
    tokio::select! {
        () = waiting => {}
        () = stop.cancelled() => {}
    }
    last
}

/// Reads the environment into `last` until it is no longer pending, and whenever its route changes.
async fn wait_while_pending<F>(
    route: &mut RouteWatch,
    last: &mut Environment,
    within: Duration,
    recheck: Duration,
    read_record: impl Fn() -> F,
) where
    F: Future<Output = Result<Environment, Error>>,
{
    let deadline = Instant::now() + within;
    // The route may have changed before the watch began.
    let mut is_due = true;
    while last.status == Status::Pending && Instant::now() < deadline {
        if !is_due {
            let remaining = deadline.saturating_duration_since(Instant::now());
            let _ = timeout(recheck.min(remaining), route.changed()).await;
        }
        is_due = false;
        match read_record().await {
            Ok(environment) => *last = environment,
            // It was purged, which an ended environment is.
            Err(error) if error.code == ErrorCode::NotFound => return,
            // The scheduler does not answer: the present state is the last one that is known.
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use agentbox_bus::RouteTable;
    use agentbox_contracts::environment::{Route, StatusReason};
    use futures::FutureExt as _;

    use super::*;
    use crate::box_loss::tests::ended;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(60);

    fn environment(status: Status) -> Environment {
        Environment {
            status,
            ..ended(StatusReason::Exited, None)
        }
    }

    #[tokio::test]
    async fn start_costs_one_request_after_the_route_changes() {
        let table = RouteTable::default();
        let mut last = environment(Status::Pending);
        let id = last.id.clone();
        let mut route = table.watch(&id);
        let requests = AtomicUsize::new(0);
        let read_record = || async {
            let status = match requests.fetch_add(1, Ordering::Relaxed) {
                0 => Status::Pending,
                _ => Status::Running,
            };
            Ok(environment(status))
        };
        {
            let waiting = wait_while_pending(&mut route, &mut last, LONG, LONG, read_record);
            let mut waiting = std::pin::pin!(waiting);
            assert!(waiting.as_mut().now_or_never().is_none());
            assert_eq!(requests.load(Ordering::Relaxed), 1, "it still is pending");
            let record = environment(Status::Running);
            let started = Route {
                owner: record.owner,
                status: record.status,
                cluster: record.cluster,
                address: None,
            };
            table.insert(id, started);
            assert!(waiting.as_mut().now_or_never().is_some());
        }
        assert_eq!(requests.load(Ordering::Relaxed), 2);
        assert_eq!(last.status, Status::Running);
    }

    #[tokio::test]
    async fn lost_notification_of_the_start_is_covered_by_rechecks() {
        let table = RouteTable::default();
        let mut last = environment(Status::Pending);
        let mut route = table.watch(&last.id);
        let requests = AtomicUsize::new(0);
        let begun = Instant::now();
        let read_record = || async {
            match requests.fetch_add(1, Ordering::Relaxed) {
                1 => Err(Error::new(ErrorCode::Unavailable, "down")),
                3 => Ok(environment(Status::Running)),
                _ => Ok(environment(Status::Pending)),
            }
        };
        wait_while_pending(&mut route, &mut last, LONG, SHORT, read_record).await;
        assert!(begun.elapsed() >= 3 * SHORT);
        assert_eq!(last.status, Status::Running);
        assert_eq!(requests.load(Ordering::Relaxed), 4);
    }

    #[tokio::test]
    async fn environment_that_stays_pending_is_returned_after_the_wait() {
        let table = RouteTable::default();
        let mut last = environment(Status::Pending);
        let mut route = table.watch(&last.id);
        let requests = AtomicUsize::new(0);
        let begun = Instant::now();
        let read_record = || async {
            requests.fetch_add(1, Ordering::Relaxed);
            Ok(environment(Status::Pending))
        };
        wait_while_pending(&mut route, &mut last, 3 * SHORT, SHORT, read_record).await;
        assert!(begun.elapsed() >= 3 * SHORT);
        assert_eq!(last.status, Status::Pending);
        assert!(requests.load(Ordering::Relaxed) <= 5);
    }

    #[tokio::test]
    async fn environment_that_does_not_wait_is_not_read() {
        let table = RouteTable::default();
        let requests = AtomicUsize::new(0);
        for status in [Status::Running, Status::Failed] {
            let mut last = environment(status);
            let mut route = table.watch(&last.id);
            let read_record = || async {
                requests.fetch_add(1, Ordering::Relaxed);
                Ok(environment(Status::Terminated))
            };
            let waiting = wait_while_pending(&mut route, &mut last, LONG, LONG, read_record);
            assert!(waiting.now_or_never().is_some());
        }
        assert_eq!(requests.load(Ordering::Relaxed), 0);
    }
}
