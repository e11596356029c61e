//! What the metrics count in the database.

use agentbox_contracts::ids::UserId;
use agentbox_scheduler::environment::store::Statistics;

use crate::support::{creation, database, request};

/// More than are reported by name.
const OWNERS: usize = 12;

#[tokio::test]
async fn statistics_count_environments_owners_outbox_and_due_rows() {
    let database = database().await;
    let store = &database.store;
    let empty = store.statistics().await.unwrap();
    assert_eq!(empty, Statistics::default());

    let busy = UserId::random();
    let mut first = None;
    for name in ["a", "b"] {
        let created = store.create(&creation(&busy, request(name))).await.unwrap();
        first.get_or_insert(created);
    }
    for _ in 1..OWNERS {
        let owner = UserId::random();
        store.create(&creation(&owner, request("c"))).await.unwrap();
    }
    let first = first.unwrap();
    let total = OWNERS + 1;
    let statistics = store.statistics().await.unwrap();

    let counted: i64 = statistics.environments.iter().map(|row| row.count).sum();
    assert_eq!(counted, total as i64, "{statistics:?}");
    for row in &statistics.environments {
        assert_eq!(row.cluster, first.environment.cluster);
        assert_eq!(row.status, "pending");
    }

    // Ten by name, the busiest among them, and the others together.
    let owners = &statistics.owners;
    assert_eq!(owners.len(), 11, "{owners:?}");
    let of_busy = owners.iter().find(|row| row.owner == busy.as_str());
    let of_busy = of_busy.unwrap();
    assert_eq!(of_busy.environments, 2);
    assert_eq!(
        of_busy.cpu_milli,
        2 * i64::try_from(first.quantities.cpu.0).unwrap()
    );
    let others = owners.iter().find(|row| row.owner == "other").unwrap();
    assert_eq!(others.environments, 2);
    let all: i64 = owners.iter().map(|row| row.environments).sum();
    assert_eq!(all, total as i64);

    assert!(statistics.outbox.count >= total as i64, "{statistics:?}");
    assert!(statistics.outbox.oldest_s >= 0.0, "{statistics:?}");
    database
        .execute("UPDATE reconcile_queue SET due_at = now() - interval '90 seconds'")
        .await;
    let due = store.statistics().await.unwrap().due;
    let backlog = due[&first.environment.cluster];
    assert_eq!(backlog.count, total as i64);
    assert!(backlog.oldest_s >= 90.0, "{backlog:?}");

    // What has ended, or was published, is no longer counted.
    database
        .execute("UPDATE outbox SET published_at = now()")
        .await;
    database.execute("DELETE FROM environments").await;
    let emptied = store.statistics().await.unwrap();
    assert_eq!(emptied, Statistics::default());
}
