//! The last activity of environments, and their idle timeout.

use std::time::Duration;

use agentbox_contracts::environment::rpc::{MAX_REPORTED, RecordActivityRequest};
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_scheduler::environment::record::Record;
use agentbox_scheduler::environment::state::transition;
use agentbox_scheduler::environment::store::{Change, Patch};
use chrono::{TimeDelta, Utc};

use super::started;
use crate::support::scheduler::environments;
use crate::support::{Database, creation, database, request};

const HOUR: TimeDelta = TimeDelta::hours(1);

/// A running environment that started an hour ago, without activity since.
async fn quiet(database: &Database, idle_timeout_s: Option<u64>) -> Record {
    let mut wanted = request("quiet");
    wanted.timeout_s = 86_400;
    wanted.idle_timeout_s = idle_timeout_s;
    let creation = creation(&UserId::random(), wanted);
    let before = database.store.create(&creation).await.unwrap();
    let now = Utc::now();
    let mut running = transition(now, &before.state(), &started()).unwrap();
    running.started_at = Some(now - HOUR);
    let change = Change::observed(&before, running);
    database.store.change(&before, &change, now).await.unwrap()
}

async fn idle(database: &Database) -> Vec<EnvironmentId> {
    let mut ids = database.store.idle(100).await.unwrap();
    ids.sort();
    ids
}

#[tokio::test]
async fn environment_is_idle_after_its_idle_timeout_without_activity() {
    let database = database().await;
    let over = quiet(&database, Some(600)).await.environment.id;
    let not_over = quiet(&database, Some(7_200)).await.environment.id;
    let without = quiet(&database, None).await.environment.id;
    let pending = creation(&UserId::random(), {
        let mut wanted = request("pending");
        wanted.idle_timeout_s = Some(10);
        wanted
    });
    let pending = database.store.create(&pending).await.unwrap();
    assert_eq!(idle(&database).await, std::slice::from_ref(&over));
    for id in [&not_over, &without, &pending.environment.id] {
        assert_eq!(database.store.find_idle(id).await.unwrap(), None, "{id}");
    }
    let found = database.store.find_idle(&over).await.unwrap().unwrap();
    assert_eq!(found.environment.request.idle_timeout_s, Some(600));
    assert_eq!(found.environment.last_active_at, None);
}

#[tokio::test]
async fn reported_environment_is_active_and_keeps_its_generation() {
    let database = database().await;
    let used = quiet(&database, Some(600)).await;
    let other = quiet(&database, Some(600)).await;
    let unknown = EnvironmentId::random();
    let reported = [unknown, used.environment.id.clone()];
    let begun = Utc::now();
    for _ in 0..2 {
        database.store.record_activity(&reported).await.unwrap();
    }
    assert_eq!(
        idle(&database).await,
        std::slice::from_ref(&other.environment.id)
    );
    let read = database.store.get(&used.environment.id).await.unwrap();
    let read = read.unwrap().environment;
    let at = read.last_active_at.unwrap();
    assert!((at - begun).abs() < TimeDelta::seconds(60), "{at}");
    assert_eq!(read.generation, used.environment.generation);
    let read = database.store.get(&other.environment.id).await.unwrap();
    assert_eq!(read.unwrap().environment.last_active_at, None);
}

#[tokio::test]
async fn answer_of_a_box_moves_the_last_activity_forward_only() {
    let database = database().await;
    let id = quiet(&database, Some(600)).await.environment.id;
    let last = async || {
        let read = database.store.get(&id).await.unwrap().unwrap();
        read.environment.last_active_at
    };
    // It has been idle since before its start, by its own clock.
    for idle in [Duration::from_secs(4_000), Duration::MAX] {
        database.store.record_idle(&id, idle).await.unwrap();
        assert_eq!(last().await, None, "{idle:?}");
    }
    assert_eq!(idle(&database).await, std::slice::from_ref(&id));
    let begun = Utc::now();
    database
        .store
        .record_idle(&id, Duration::from_secs(1_800))
        .await
        .unwrap();
    let half = last().await.unwrap();
    let expected = begun - TimeDelta::seconds(1_800);
    assert!((half - expected).abs() < TimeDelta::seconds(60), "{half}");
    assert_eq!(idle(&database).await, std::slice::from_ref(&id));
    database
        .store
        .record_idle(&id, Duration::ZERO)
        .await
        .unwrap();
    let used = last().await.unwrap();
    assert!(used > half);
    assert!(idle(&database).await.is_empty());
    database
        .store
        .record_idle(&id, Duration::from_secs(60))
        .await
        .unwrap();
    assert_eq!(last().await, Some(used));
}

#[tokio::test]
async fn patch_changes_and_removes_the_idle_timeout() {
    let database = database().await;
    let mut record = quiet(&database, None).await;
    for (change, stored) in [
        (Some(Some(60)), Some(60)),
        (None, Some(60)),
        (Some(None), None),
    ] {
        let patch = Patch {
            name: Some("patched".into()),
            idle_timeout_s: change,
            ..Patch::default()
        };
        record = database
            .store
            .patch(&record, &patch, Utc::now())
            .await
            .unwrap();
        assert_eq!(record.environment.request.idle_timeout_s, stored);
        assert_eq!(idle(&database).await.len(), usize::from(stored.is_some()));
    }
}

#[tokio::test]
async fn report_of_too_many_environments_is_refused() {
    let database = database().await;
    let environments = environments(&database).await;
    let report = RecordActivityRequest {
        environments: vec![EnvironmentId::random(); MAX_REPORTED + 1],
    };
    let refused = environments.record_activity(report).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Validation, "{refused}");
}
