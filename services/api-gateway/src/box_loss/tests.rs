use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use agentbox_contracts::environment::{EnvironmentRequest, ResourceRequest, Route};
use agentbox_contracts::ids::UserId;
use chrono::Utc;
use futures::FutureExt;
use futures::future::join_all;

use super::*;

const SESSIONS: usize = 200;

/// An environment that ends for `reason`.
pub(crate) fn ended(reason: StatusReason, command: Option<&str>) -> Environment {
    let text = String::new;
    Environment {
        id: EnvironmentId::random(),
        owner: UserId::random(),
        owner_username: text(),
        cluster: text(),
        request: EnvironmentRequest {
            name: text(),
            image: text(),
            resources: ResourceRequest {
                cpu: text(),
                memory: text(),
                storage: text(),
            },
            timeout_s: 1,
            idle_timeout_s: None,
            env: [].into(),
            secret_env: [].into(),
            command: command.map(|word| vec![word.to_owned()]),
            use_entrypoint: false,
            labels: [].into(),
            node_selector: [].into(),
            tolerations: Vec::new(),
            isolation: None,
        },
        status: Status::Terminating,
        status_reason: Some(reason),
        status_message: None,
        created_at: Utc::now(),
        started_at: None,
        ended_at: None,
        expires_at: Utc::now(),
        last_active_at: None,
        exit_code: None,
        endpoint: text(),
        namespace: text(),
        address: None,
        pool: None,
        generation: 1,
    }
}

#[test]
fn lost_box_error_depends_on_the_end_of_the_environment() {
    let lost = || Error::new(ErrorCode::BoxLost, "lost");
    for (reason, command, code) in [
        (StatusReason::Deleted, None, ErrorCode::EnvironmentEnded),
        (
            StatusReason::Expired,
            Some("sh"),
            ErrorCode::EnvironmentEnded,
        ),
        (
            StatusReason::Exited,
            Some("sh"),
            ErrorCode::EnvironmentEnded,
        ),
        (StatusReason::Exited, None, ErrorCode::BoxLost),
        (StatusReason::OomKilled, Some("sh"), ErrorCode::BoxLost),
        (StatusReason::NodeLost, None, ErrorCode::BoxLost),
    ] {
        let error = classify_outcome(lost(), Ok(Some(ended(reason, command))));
        assert_eq!(error.code, code, "{reason:?}");
        let expected = format!("lost; the environment is terminating, {}", reason.as_str());
        assert_eq!(error.message, expected);
        let explained = explain(lost(), Ok(Some(ended(reason, command))));
        assert_eq!(explained, error, "a command and a terminal say the same");
    }
    let mut of_image = ended(StatusReason::Exited, None);
    of_image.request.use_entrypoint = true;
    let error = classify_outcome(lost(), Ok(Some(of_image)));
    assert_eq!(error.code, ErrorCode::EnvironmentEnded);
    assert_eq!(explain(lost(), Ok(None)), lost());
    let gone = Error::not_found("environment");
    assert_eq!(classify_outcome(lost(), Err(gone.clone())), gone);
    let down = Error::new(ErrorCode::Unavailable, "down");
    assert_eq!(classify_outcome(lost(), Err(down)), lost());
    assert_eq!(
        classify_outcome(lost(), Ok(None)).code,
        ErrorCode::Unavailable
    );
}

fn running() -> Route {
    Route {
        owner: UserId::random(),
        status: Status::Running,
        cluster: "local".to_owned(),
        address: Some(SocketAddr::from(([10, 0, 0, 7], 7000))),
    }
}

/// The routes of a node with one session in each of its boxes.
fn node() -> (RouteTable, Vec<EnvironmentId>) {
    let ids: Vec<EnvironmentId> = (0..SESSIONS).map(|_| EnvironmentId::random()).collect();
    let table = RouteTable::default();
    let routes: HashMap<_, _> = ids.iter().map(|id| (id.clone(), running())).collect();
    table.replace(routes);
    (table, ids)
}

#[tokio::test]
async fn lost_node_costs_one_request_a_session() {
    let (table, ids) = node();
    let requests = AtomicUsize::new(0);
    let requests = &requests;
    let sessions = ids.iter().map(|id| {
        let read_record = async move {
            requests.fetch_add(1, Ordering::Relaxed);
            Ok(ended(StatusReason::NodeLost, None))
        };
        wait_for_reason(&table, id, REASON_TIMEOUT, read_record)
    });
    let mut sessions = std::pin::pin!(join_all(sessions));
    assert!(sessions.as_mut().now_or_never().is_none());
    assert_eq!(requests.load(Ordering::Relaxed), 0, "nothing is known yet");
    for id in &ids {
        table.remove(id);
    }
    for outcome in sessions.await {
        let environment = outcome.unwrap().unwrap();
        assert_eq!(environment.status_reason, Some(StatusReason::NodeLost));
    }
    assert_eq!(requests.load(Ordering::Relaxed), SESSIONS);
}

#[tokio::test]
async fn lost_notification_costs_one_request_after_the_timeout() {
    let (table, ids) = node();
    let limit = Duration::from_millis(50);
    let begun = tokio::time::Instant::now();
    let requests = AtomicUsize::new(0);
    let read_record = async {
        requests.fetch_add(1, Ordering::Relaxed);
        let mut environment = ended(StatusReason::NodeLost, None);
        environment.status_reason = None;
        Ok(environment)
    };
    let outcome = wait_for_reason(&table, &ids[0], limit, read_record).await;
    assert_eq!(outcome, Ok(None), "it still runs");
    assert!(begun.elapsed() >= limit);
    assert_eq!(requests.load(Ordering::Relaxed), 1);
}
