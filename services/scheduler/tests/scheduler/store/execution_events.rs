//! Events about executions, on a real database.

use agentbox_contracts::environment::{
    EXECUTION_EVENTS_LABEL, EXECUTION_EVENTS_ON, EnvironmentEvent, EventExecution,
    EventExecutionStatus, EventKind, Status,
};
use agentbox_contracts::ids::{EnvironmentId, ExecId, UserId};
use agentbox_scheduler::environment::execution_events::report::MAX_EVENTS;
use agentbox_scheduler::environment::store::OutboxMessage;
use chrono::Utc;
use futures::future::join_all;

use crate::support::{Database, creation, database, request};

/// A running environment. `value`: of the label.
async fn running(database: &Database, value: Option<&str>) -> EnvironmentId {
    let mut wanted = request("observed");
    if let Some(value) = value {
        let label = EXECUTION_EVENTS_LABEL.to_owned();
        wanted.labels.insert(label, value.to_owned());
    }
    let created = database
        .store
        .create(&creation(&UserId::random(), wanted))
        .await;
    let id = created.unwrap().environment.id;
    let update = format!(
        "UPDATE environments SET started_at = now(), status = 'running',
            address = '127.0.0.1:10777'
         WHERE id = '{id}'"
    );
    database.execute(&update).await;
    id
}

fn execution(status: EventExecutionStatus) -> EventExecution {
    EventExecution {
        id: ExecId::random(),
        status,
        exit_code: (status == EventExecutionStatus::Exited).then_some(3),
    }
}

/// The events about executions in the outbox, in their order.
async fn written(database: &Database, id: &EnvironmentId) -> Vec<EnvironmentEvent> {
    let rows = database.store.unpublished(id).await.unwrap().rows;
    rows.into_iter()
        .filter_map(|row| match row.message {
            OutboxMessage::Event(event) if event.execution.is_some() => Some(event),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn execution_of_a_labelled_environment_has_an_event_at_its_start_and_its_end() {
    let database = database().await;
    let store = &database.store;
    let id = running(&database, Some(EXECUTION_EVENTS_ON)).await;
    let started = execution(EventExecutionStatus::Running);
    let ended = EventExecution {
        status: EventExecutionStatus::Exited,
        exit_code: Some(3),
        ..started.clone()
    };
    for (listed, expected) in [(&started, 1), (&started, 0), (&ended, 1), (&ended, 0)] {
        let listed = std::slice::from_ref(listed);
        let reported = store.report_executions(&id, listed, Utc::now()).await;
        assert_eq!(reported.unwrap(), expected);
    }
    let events = written(&database, &id).await;
    assert_eq!(events.len(), 2);
    for (event, (kind, execution)) in events.into_iter().zip([
        (EventKind::ExecutionStarted, started),
        (EventKind::ExecutionEnded, ended),
    ]) {
        assert_eq!((event.kind, event.status), (kind, Status::Running));
        assert_eq!(event.execution, Some(execution));
        assert_eq!(event.environment_id, id);
    }
}

#[tokio::test]
async fn execution_has_no_event_without_the_label_or_after_the_end_of_its_environment() {
    let database = database().await;
    let store = &database.store;
    let labelled = running(&database, Some(EXECUTION_EVENTS_ON)).await;
    let ended = running(&database, Some(EXECUTION_EVENTS_ON)).await;
    let end = format!(
        "UPDATE environments SET status = 'terminated', ended_at = now() WHERE id = '{ended}'"
    );
    database.execute(&end).await;
    let plain = running(&database, None).await;
    let declined = running(&database, Some("false")).await;
    let boxes = store.boxes_with_execution_events().await.unwrap();
    let boxes: Vec<EnvironmentId> = boxes.into_iter().map(|running| running.id).collect();
    assert_eq!(boxes, std::slice::from_ref(&labelled));
    let listed = [execution(EventExecutionStatus::Exited)];
    for id in [&ended, &plain, &declined, &EnvironmentId::random()] {
        let reported = store.report_executions(id, &listed, Utc::now()).await;
        assert_eq!(reported.unwrap(), 0, "{id}");
        assert!(written(&database, id).await.is_empty(), "{id}");
    }
}

#[tokio::test]
async fn events_of_concurrent_reports_are_written_once() {
    let database = database().await;
    let id = running(&database, Some(EXECUTION_EVENTS_ON)).await;
    let listed = [
        execution(EventExecutionStatus::Exited),
        execution(EventExecutionStatus::Running),
    ];
    let reports = (0..4).map(|_| database.store.report_executions(&id, &listed, Utc::now()));
    let reported: usize = join_all(reports)
        .await
        .into_iter()
        .map(Result::unwrap)
        .sum();
    assert_eq!(reported, 3);
    assert_eq!(written(&database, &id).await.len(), 3);
}

#[tokio::test]
async fn one_report_writes_no_more_events_than_the_bound_and_the_next_the_others() {
    let database = database().await;
    let store = &database.store;
    let id = running(&database, Some(EXECUTION_EVENTS_ON)).await;
    let listed: Vec<_> = (0..12)
        .map(|_| execution(EventExecutionStatus::Exited))
        .collect();
    for expected in [MAX_EVENTS, MAX_EVENTS, 4, 0] {
        let reported = store.report_executions(&id, &listed, Utc::now()).await;
        assert_eq!(reported.unwrap(), expected);
    }
    assert_eq!(written(&database, &id).await.len(), 24);
}
