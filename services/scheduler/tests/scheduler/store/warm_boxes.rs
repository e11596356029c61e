//! Warm pools, their boxes and the claims of them.

use std::collections::{BTreeMap, BTreeSet};

use agentbox_contracts::pool::{MissReason, PoolSource, PoolSpec, PoolUse};
use agentbox_scheduler::environment::record::Record;
use agentbox_scheduler::environment::store::{
    BoxNeed, ClaimOutcome, PoolRow, WarmStatus, WarmWork,
};
use agentbox_scheduler::environment::warm_claim::{CLAIM_GENERATION, WarmClaim};

use super::*;

const ADDRESS: &str = "10.0.0.2:10777";
pub const CLUSTER: &str = "test";

fn spec(min_ready: u32, max_ready: u32) -> PoolSpec {
    let request = request("warm");
    PoolSpec {
        image: request.image,
        resources: request.resources,
        isolation: None,
        node_selector: BTreeMap::new(),
        cluster: None,
        min_ready,
        max_ready,
    }
}

/// Sets a pool by a request; whether it is new.
async fn set(store: &Store, name: &str, spec: &PoolSpec) -> Result<bool, StoreError> {
    let resources = spec.resources.clone();
    let set = store.set_pool(name, spec, resources, PoolSource::Api);
    set.await.map(|(is_new, _)| is_new)
}

/// A pool, as it is stored.
pub async fn pool(store: &Store, name: &str) -> PoolRow {
    set(store, name, &spec(1, 8)).await.unwrap();
    let pools = store.pools().await.unwrap();
    pools.into_iter().find(|pool| pool.name == name).unwrap()
}

/// A box of `pool` that starts.
async fn starting_box(store: &Store, pool: &PoolRow) -> EnvironmentId {
    let id = EnvironmentId::random();
    let quantities = creation(&UserId::random(), request("warm")).quantities;
    let added = store
        .add_warm_box(&id, pool, CLUSTER, quantities, Allocatable::UNLIMITED)
        .await;
    assert_eq!(added.unwrap(), Reservation::Reserved);
    id
}

/// A box of `pool` that is ready, and counts as alive however long the test takes.
pub async fn ready_box(database: &Database, pool: &PoolRow) -> EnvironmentId {
    ready_box_of_root(database, pool, false).await
}

/// As [`ready_box`]; whether its boxd is root.
async fn ready_box_of_root(database: &Database, pool: &PoolRow, is_root: bool) -> EnvironmentId {
    let store = &database.store;
    let id = starting_box(store, pool).await;
    let address = ADDRESS.parse().unwrap();
    let ready = store.mark_warm_box_ready(&id, address, Some("sha256:1"), is_root);
    assert!(ready.await.unwrap());
    let seen = "UPDATE warm_boxes SET seen_at = seen_at + interval '1 hour'";
    database.execute(&format!("{seen} WHERE id = '{id}'")).await;
    id
}

async fn claim(store: &Store, pool: &PoolRow) -> Option<Record> {
    let creation = creation(&UserId::random(), request("claims"));
    let clusters = [CLUSTER.to_owned()];
    let outcome = store.create_in_warm_box(&creation, pool, &clusters, BoxNeed::Any);
    match outcome.await.unwrap() {
        ClaimOutcome::Claimed(claimed) => Some(*claimed),
        ClaimOutcome::Missed(reason) => {
            assert_eq!(reason, MissReason::Empty);
            None
        }
        ClaimOutcome::Replayed(_) => panic!("the create has no idempotency key"),
    }
}

#[tokio::test]
async fn concurrent_creates_claim_each_ready_box_once() {
    let database = database().await;
    let pool = pool(&database.store, "python").await;
    let mut ready = BTreeSet::new();
    for _ in 0..10 {
        ready.insert(ready_box(&database, &pool).await);
    }
    starting_box(&database.store, &pool).await;
    let outcomes = concurrently(16, async |_| claim(&database.store, &pool).await).await;
    let claimed: Vec<Record> = outcomes.into_iter().flatten().collect();
    let ids: BTreeSet<EnvironmentId> = claimed
        .iter()
        .map(|record| record.environment.id.clone())
        .collect();
    // A create skips boxes that another one has locked, and is never given one of them later.
    assert_eq!(ids.len(), claimed.len());
    assert!(ids.is_subset(&ready));
    while claim(&database.store, &pool).await.is_some() {}
    let left = database.store.warm_boxes().await.unwrap();
    assert_eq!(left.len(), 1, "the box that starts: {left:?}");
    assert_eq!(left[0].status, WarmStatus::Starting);
    let status = database.store.pool("python").await.unwrap().unwrap().status;
    assert_eq!((status.hits, status.ready, status.starting), (10, 0, 1));
}

#[tokio::test]
async fn box_whose_row_is_locked_for_an_observation_is_claimed_afterwards() {
    use sea_orm::ConnectionTrait as _;
    let database = database().await;
    let store = &database.store;
    let pool = pool(store, "python").await;
    let id = ready_box(&database, &pool).await;
    let observation = agentbox_database::begin(&database.connection)
        .await
        .unwrap();
    let lock = "UPDATE warm_boxes SET seen_at = now() + interval '1 hour'";
    observation.execute_unprepared(lock).await.unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let observing = async {
        eventually("the create waits", Duration::from_secs(10), async || {
            database.number(waiting).await > 0
        })
        .await;
        observation.commit().await.unwrap();
    };
    let (claimed, ()) = tokio::join!(claim(store, &pool), observing);
    assert_eq!(claimed.unwrap().environment.id, id);
}

#[tokio::test]
async fn claimed_environment_has_the_id_and_the_address_of_its_box() {
    let database = database().await;
    let store = &database.store;
    let pool = pool(store, "python").await;
    let id = ready_box(&database, &pool).await;
    let record = claim(store, &pool).await.unwrap();
    let environment = &record.environment;
    assert_eq!(environment.id, id);
    assert_eq!(environment.cluster, CLUSTER);
    assert_eq!(environment.namespace, format!("agentbox-{id}"));
    assert_eq!(environment.status, Status::Pending);
    assert_eq!(environment.generation, CLAIM_GENERATION);
    assert_eq!(environment.pool, Some(PoolUse::hit("python")));
    assert_eq!(environment.address, None, "it is configured first");
    let address = ADDRESS.parse().unwrap();
    assert_eq!(record.claim, Some(WarmClaim::Pending { address }));
    assert!(record.capacity_reserved);
    let read = store.get(&id).await.unwrap().unwrap();
    assert_eq!(read, record);
    // Its start leaves the claim to be recorded in the cluster.
    let state = transition(Utc::now(), &record.state(), &started()).unwrap();
    let change = Change::observed(&record, state);
    let running = store.change(&record, &change, Utc::now()).await.unwrap();
    assert_eq!(running.claim, Some(WarmClaim::Unrecorded));
    let recorded = store.mark_claim_recorded(&running).await.unwrap();
    assert_eq!(recorded.claim, None);
}

#[tokio::test]
async fn box_that_is_not_known_to_be_alive_is_not_claimed() {
    let database = database().await;
    let store = &database.store;
    let pool = pool(store, "python").await;
    let id = ready_box(&database, &pool).await;
    store.recheck_warm_box(&id).await.unwrap();
    assert!(
        claim(store, &pool).await.is_none(),
        "its cluster changed it"
    );
    database
        .execute("UPDATE warm_boxes SET seen_at = now() - interval '11 seconds'")
        .await;
    assert!(claim(store, &pool).await.is_none(), "it was seen long ago");
    store.mark_warm_box_seen(&id).await.unwrap();
    store
        .drain_warm_boxes(std::slice::from_ref(&id))
        .await
        .unwrap();
    store.mark_warm_box_seen(&id).await.unwrap();
    assert!(claim(store, &pool).await.is_none(), "it is being removed");
    let due = async |work: WarmWork| store.take_due_warm_boxes(CLUSTER, work, 8).await.unwrap();
    assert!(due(WarmWork::Observe).await.is_empty());
    let removed = due(WarmWork::StartOrRemove).await;
    assert_eq!(removed.len(), 1);
    assert_eq!(removed[0].status, WarmStatus::Draining);
    let again = due(WarmWork::StartOrRemove).await;
    assert!(again.is_empty(), "it was taken");
    store.delete_warm_box(&id).await.unwrap();
    assert!(store.warm_boxes().await.unwrap().is_empty());
}

#[tokio::test]
async fn renewed_lease_keeps_a_starting_box_from_others_and_delays_no_drain() {
    let database = database().await;
    let store = &database.store;
    let pool = pool(store, "python").await;
    let id = starting_box(store, &pool).await;
    let take = async || {
        let due = store.take_due_warm_boxes(CLUSTER, WarmWork::StartOrRemove, 8);
        due.await.unwrap()
    };
    let taken = take().await.remove(0);
    let expire = "UPDATE warm_boxes SET due_at = now()";
    database.execute(expire).await;
    store.renew_warm_box(&taken).await.unwrap();
    assert!(take().await.is_empty());
    let drained = store.drain_warm_boxes(std::slice::from_ref(&id)).await;
    assert_eq!(drained.unwrap(), 1);
    store.renew_warm_box(&taken).await.unwrap();
    assert_eq!(take().await[0].status, WarmStatus::Draining);
}

#[tokio::test]
async fn claim_with_another_user_takes_only_a_box_of_root() {
    let database = database().await;
    let store = &database.store;
    let pool = pool(store, "python").await;
    let clusters = [CLUSTER.to_owned()];
    let claim = async || {
        let creation = creation(&UserId::random(), request("user"));
        let outcome = store.create_in_warm_box(&creation, &pool, &clusters, BoxNeed::Root);
        outcome.await.unwrap()
    };
    let missed = |outcome: &ClaimOutcome| match outcome {
        ClaimOutcome::Missed(reason) => Some(*reason),
        _ => None,
    };
    assert_eq!(missed(&claim().await), Some(MissReason::Empty));
    ready_box(&database, &pool).await;
    assert_eq!(missed(&claim().await), Some(MissReason::SecurityContext));
    let of_root = ready_box_of_root(&database, &pool, true).await;
    let ClaimOutcome::Claimed(claimed) = claim().await else {
        panic!("the box of root is not claimed");
    };
    assert_eq!(claimed.environment.id, of_root);
}

#[tokio::test]
async fn box_of_an_earlier_definition_or_another_cluster_is_not_claimed() {
    let database = database().await;
    let store = &database.store;
    let before = pool(store, "python").await;
    ready_box(&database, &before).await;
    let creation = creation(&UserId::random(), request("elsewhere"));
    let elsewhere = ["other".to_owned()];
    let outcome = store
        .create_in_warm_box(&creation, &before, &elsewhere, BoxNeed::Any)
        .await
        .unwrap();
    let is_empty = matches!(outcome, ClaimOutcome::Missed(MissReason::Empty));
    assert!(is_empty, "{outcome:?}");
    // Another size of the pool keeps its boxes.
    assert!(!set(store, "python", &spec(2, 9)).await.unwrap());
    let resized = store.pools().await.unwrap().remove(0);
    assert_eq!(resized.revision, before.revision);
    let mut other = spec(2, 9);
    other.resources.memory = "128Mi".into();
    set(store, "python", &other).await.unwrap();
    let changed = store.pools().await.unwrap().remove(0);
    assert!(changed.revision > before.revision);
    for pool in [&before, &changed] {
        assert!(claim(store, pool).await.is_none());
    }
}

#[tokio::test]
async fn abandoned_claim_starts_in_a_new_box_once() {
    let database = database().await;
    let store = &database.store;
    let pool = pool(store, "python").await;
    ready_box(&database, &pool).await;
    let record = claim(store, &pool).await.unwrap();
    let abandoned = store.abandon_claim(&record, Utc::now()).await.unwrap();
    assert_eq!(abandoned.claim, None);
    assert_eq!(abandoned.environment.generation, CLAIM_GENERATION + 1);
    assert_eq!(abandoned.environment.status, Status::Pending);
    let miss = PoolUse::miss("python", MissReason::ClaimFailed);
    assert_eq!(abandoned.environment.pool, Some(miss));
    for stale in [&record, &abandoned] {
        let again = store.abandon_claim(stale, Utc::now()).await;
        assert!(matches!(again, Err(StoreError::Fenced)), "{again:?}");
    }
    let status = store.pool("python").await.unwrap().unwrap().status;
    assert_eq!(status.hits, 0);
    let misses = BTreeMap::from([(MissReason::ClaimFailed, 1)]);
    assert_eq!((status.claims(), status.misses_by_reason), (1, misses));
}

#[tokio::test]
async fn warm_box_reserves_capacity_and_is_no_orphan() {
    let database = database().await;
    let store = &database.store;
    let pool = pool(store, "python").await;
    let id = starting_box(store, &pool).await;
    let active = store.active_in_cluster(CLUSTER).await.unwrap();
    assert_eq!(active, [ActiveEnvironment { id, status: None }]);
    let mut second = creation(&UserId::random(), request("second"));
    second.allocatable = Allocatable {
        memory: second.quantities.memory,
        ..Allocatable::UNLIMITED
    };
    let waiting = store.create(&second).await.unwrap();
    assert!(!waiting.capacity_reserved);
    let id = EnvironmentId::random();
    let (quantities, allocatable) = (second.quantities, second.allocatable);
    let added = store.add_warm_box(&id, &pool, CLUSTER, quantities, allocatable);
    assert!(matches!(added.await.unwrap(), Reservation::Waiting(_)));
}

#[tokio::test]
async fn failed_starts_are_postponed_until_one_succeeds() {
    let database = database().await;
    let store = &database.store;
    let pool = pool(store, "python").await;
    for _ in 0..12 {
        let failed = store.pool_start_failed("python", pool.revision, "no such image");
        failed.await.unwrap();
    }
    let status = store.pool("python").await.unwrap().unwrap().status;
    assert_eq!(status.failures, 12);
    assert_eq!(status.last_error.as_deref(), Some("no such image"));
    let pause = status.retry_at.unwrap() - Utc::now();
    assert!(pause <= chrono::TimeDelta::seconds(301), "{pause}");
    let started = store.pool_started("python", pool.revision);
    started.await.unwrap();
    let status = store.pool("python").await.unwrap().unwrap().status;
    assert_eq!((status.failures, status.retry_at), (0, None));
}

#[tokio::test]
async fn requests_are_counted_and_decide_the_demand() {
    let database = database().await;
    let store = &database.store;
    let pool = pool(store, "python").await;
    let mut missed = creation(&UserId::random(), request("missed"));
    for reason in [MissReason::Empty, MissReason::Empty, MissReason::Resources] {
        missed.environment.id = EnvironmentId::random();
        missed.environment.pool = Some(PoolUse::miss("python", reason));
        store.create(&missed).await.unwrap();
    }
    ready_box(&database, &pool).await;
    claim(store, &pool).await.unwrap();
    let demand: u64 = store.pool_demand("python").await.unwrap().iter().sum();
    assert_eq!(demand, 3, "a box would not have helped the other one");
    let counted = || async { store.pool("python").await.unwrap().unwrap().status };
    let before = counted().await;
    assert_eq!((before.hits, before.claims()), (1, 4));
    database
        .execute("UPDATE pool_requests SET requested_at = now() - interval '6 minutes'")
        .await;
    store.count_pool_requests().await.unwrap();
    assert_eq!(
        database.number("SELECT count(*) FROM pool_requests").await,
        0
    );
    assert_eq!(counted().await.misses_by_reason, before.misses_by_reason);
    assert!(store.pool_demand("python").await.unwrap().is_empty());
}

#[tokio::test]
async fn pool_of_the_configuration_is_not_changed_by_a_request() {
    let database = database().await;
    let store = &database.store;
    pool(store, "python").await;
    let configured = BTreeMap::from([("python".to_owned(), spec(3, 4))]);
    let apply = agentbox_scheduler::pool::configuration::apply;
    apply(store, &configured).await.unwrap();
    let is_conflict = |error: StoreError| matches!(error, StoreError::Refused(error) if error.code == ErrorCode::Conflict);
    let refused = set(store, "python", &spec(1, 1)).await;
    assert!(is_conflict(refused.unwrap_err()));
    let delete = store.delete_pool("python", PoolSource::Api);
    assert!(is_conflict(delete.await.unwrap_err()));
    let kept = store.pool("python").await.unwrap().unwrap();
    assert_eq!(
        (kept.spec.min_ready, kept.source),
        (3, PoolSource::Configuration)
    );
    apply(store, &BTreeMap::new()).await.unwrap();
    assert!(store.pool("python").await.unwrap().is_none());
    let deleted = store.delete_pool("python", PoolSource::Api).await.unwrap();
    assert_eq!(deleted, None);
}
