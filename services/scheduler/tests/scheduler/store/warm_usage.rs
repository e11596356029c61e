//! What the boxes of a pool count for.

use agentbox_scheduler::environment::store::{BoxNeed, ClaimOutcome};
use chrono::TimeDelta;

use super::warm_boxes::{CLUSTER, pool, ready_box};
use super::*;

#[tokio::test]
async fn warm_box_counts_in_the_quota_and_the_usage_of_its_owner_since_the_claim() {
    let database = database().await;
    let store = &database.store;
    let pool = pool(store, "python").await;
    for _ in 0..2 {
        ready_box(&database, &pool).await;
    }
    database
        .execute("UPDATE warm_boxes SET created_at = created_at - interval '1 hour'")
        .await;
    // A ready box is metered for nobody, and asked for no counters.
    store.meter_time().await.unwrap();
    let metered = "SELECT (SELECT count(*) FROM usage_meters) + (SELECT count(*) FROM usage_hours)";
    assert_eq!(database.number(metered).await, 0);
    assert!(store.running_boxes().await.unwrap().is_empty());
    // A quota of exactly one box.
    let owner = UserId::random();
    let mut wanted = creation(&owner, request("quota"));
    wanted.quota = Quota {
        environments: Some(1),
        cpu: Some(wanted.quantities.cpu),
        memory: Some(wanted.quantities.memory),
        storage: Some(wanted.quantities.storage),
    };
    let clusters = [CLUSTER.to_owned()];
    let create = async || {
        let need = BoxNeed::Any;
        store
            .create_in_warm_box(&wanted, &pool, &clusters, need)
            .await
    };
    let claimed = match create().await.unwrap() {
        ClaimOutcome::Claimed(claimed) => *claimed,
        outcome => panic!("{outcome:?}"),
    };
    match create().await {
        Err(StoreError::Refused(error)) => {
            assert_eq!(error.code, ErrorCode::QuotaExceeded);
            assert!(error.message.contains(": 1 in use"), "{error}");
        }
        outcome => panic!("{outcome:?}"),
    }
    assert_eq!(store.warm_boxes().await.unwrap().len(), 1, "it was kept");
    let state = transition(Utc::now(), &claimed.state(), &started()).unwrap();
    let change = Change::observed(&claimed, state);
    store.change(&claimed, &change, Utc::now()).await.unwrap();
    store.meter_time().await.unwrap();
    let (since, until) = (Utc::now() - TimeDelta::days(1), Utc::now());
    let until = until + TimeDelta::seconds(1);
    let used = store.metered_usage(&owner, since, until).await.unwrap();
    assert_eq!(used.environments, 1);
    assert!(used.running_seconds < 1_800.0, "{used:?}");
    let owners = "SELECT count(DISTINCT owner) FROM usage_hours";
    assert_eq!(database.number(owners).await, 1);
    let running = store.running_boxes().await.unwrap();
    assert_eq!(running.len(), 1);
    assert_eq!(running[0].id, claimed.environment.id);
}
