//! Metered use, on a real database.

use std::time::Duration;

use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::metering::MeteredUsage;
use agentbox_scheduler::environment::store::{Store, UsageSample};
use chrono::{TimeDelta, Utc};

use crate::support::{Database, creation, database, request};

/// How much longer a run is than a test expects, because the test takes time.
const SLACK: f64 = 60.0;

/// An environment that has run for `ran`. `ended`: it has ended now.
async fn environment(
    database: &Database,
    owner: &UserId,
    team: &str,
    ran: Duration,
    ended: bool,
) -> EnvironmentId {
    let mut request = request("metered");
    request.labels.insert("team".into(), team.into());
    let created = database.store.create(&creation(owner, request)).await;
    let id = created.unwrap().environment.id;
    let end = if ended {
        "status = 'terminated', ended_at = now()"
    } else {
        "status = 'running', address = '127.0.0.1:10777'"
    };
    let seconds = ran.as_secs();
    let update = format!(
        "UPDATE environments SET started_at = now() - make_interval(secs => {seconds}), {end}
         WHERE id = '{id}'"
    );
    database.execute(&update).await;
    id
}

async fn usage(store: &Store, owner: &UserId) -> MeteredUsage {
    let (since, until) = (Utc::now() - TimeDelta::days(1), Utc::now());
    let until = until + TimeDelta::seconds(1);
    store.metered_usage(owner, since, until).await.unwrap()
}

fn assert_about(value: f64, expected: f64) {
    let within = expected..=expected + SLACK;
    assert!(within.contains(&value), "{value}, expected {expected}");
}

#[tokio::test]
async fn running_time_is_metered_once_by_hours_and_ends_with_the_environment() {
    let database = database().await;
    let store = &database.store;
    let owner = UserId::random();
    let long = Duration::from_secs(9_000);
    environment(&database, &owner, "a", long, false).await;
    let ended = environment(&database, &owner, "b", long, true).await;
    for _ in 0..3 {
        store.meter_time().await.unwrap();
    }
    let used = usage(store, &owner).await;
    assert_eq!(used.environments, 2);
    assert_about(used.running_seconds, 18_000.0);
    assert_about(used.reserved_cpu_seconds, 1_800.0);
    let reserved = used.running_seconds * f64::from(64 << 20);
    assert!((used.memory_byte_seconds / reserved - 1.0).abs() < 1e-6);
    assert!((used.storage_byte_seconds / reserved - 1.0).abs() < 1e-6);
    // Two and a half hours are in three or four hours, none longer than one.
    let hours = "SELECT count(*) FROM usage_hours WHERE environment_id";
    let hours = database.number(&format!("{hours} = '{ended}'")).await;
    assert!((3..=4).contains(&hours), "{hours}");
    // Rounded to microseconds: a full hour may be a sum of numbers with fractions.
    let longest = "SELECT max(ceil(round(running_seconds::numeric, 6)))::bigint FROM usage_hours";
    assert!(database.number(longest).await <= 3_600);
    let of_ended = format!(
        "SELECT round(sum(running_seconds))::bigint FROM usage_hours
         WHERE environment_id = '{ended}'"
    );
    assert_eq!(database.number(&of_ended).await, 9_000);
    assert_eq!(
        usage(store, &UserId::random()).await,
        MeteredUsage::default()
    );
}

#[tokio::test]
async fn counters_are_metered_by_their_growth_and_by_label() {
    let database = database().await;
    let store = &database.store;
    let owner = UserId::random();
    let minute = Duration::from_secs(60);
    let first = environment(&database, &owner, "a", minute, false).await;
    let second = environment(&database, &owner, "b", minute, false).await;
    let sample = |id: &EnvironmentId, seconds: u64, bytes: u64| UsageSample {
        id: id.clone(),
        cpu_ns: seconds * 1_000_000_000,
        egress_bytes: bytes,
    };
    for samples in [
        vec![sample(&first, 2, 100), sample(&second, 1, 10)],
        vec![sample(&first, 5, 150)],
        vec![sample(&first, 5, 150)],
        // Read before the last one, and recorded after it.
        vec![sample(&first, 1, 7)],
        vec![sample(&first, 6, 160)],
        // An environment that does not exist.
        vec![sample(&EnvironmentId::random(), 9, 9)],
    ] {
        store.record_samples(&samples).await.unwrap();
    }
    let used = usage(store, &owner).await;
    assert!((used.cpu_seconds - 7.0).abs() < 1e-6, "{used:?}");
    assert_eq!(used.egress_bytes, 170);
    store.meter_time().await.unwrap();
    let (since, until) = (Utc::now() - TimeDelta::days(1), Utc::now());
    let until = until + TimeDelta::seconds(1);
    let groups = store.metered_groups(&owner, since, until, "team").await;
    let groups: Vec<_> = groups
        .unwrap()
        .into_iter()
        .map(|group| (group.value, group.usage.egress_bytes))
        .collect();
    assert_eq!(
        groups,
        [(Some("a".to_owned()), 160), (Some("b".to_owned()), 10)]
    );
    let unlabelled = store.metered_groups(&owner, since, until, "other").await;
    let unlabelled = unlabelled.unwrap();
    assert_eq!(unlabelled.len(), 1);
    assert_eq!(unlabelled[0].value, None);
    let running = store.running_boxes().await.unwrap();
    assert_eq!(running.len(), 2);
}

#[tokio::test]
async fn metered_hours_outlive_their_environment_until_their_retention() {
    let database = database().await;
    let store = &database.store;
    let owner = UserId::random();
    let id = environment(&database, &owner, "a", Duration::from_secs(60), true).await;
    store.meter_time().await.unwrap();
    let delete = format!("DELETE FROM environments WHERE id = '{id}'");
    database.execute(&delete).await;
    assert_eq!(store.purge_metered_hours().await.unwrap(), 0);
    assert_about(usage(store, &owner).await.running_seconds, 60.0);
    let meters = "SELECT count(*) FROM usage_meters";
    assert_eq!(database.number(meters).await, 0);
    database
        .execute("UPDATE usage_hours SET begins_at = begins_at - interval '401 days'")
        .await;
    assert!(store.purge_metered_hours().await.unwrap() >= 1);
}
