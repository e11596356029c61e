//! Counters that several replicas increment.

use agentbox_contracts::subjects;
use agentbox_testing::TestNats;
use futures::future::join_all;

use crate::support::{DEADLINE, cluster, connect, within};

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_increments_by_two_replicas_count_once_each() {
    let nats = TestNats::shared().await.unwrap();
    let (one, two) = (
        connect(&nats, "api-gateway").await,
        connect(&nats, "api-gateway").await,
    );
    one.wait_for_streams("api-gateway").await.unwrap();
    let subject = subjects::limit(&cluster(), "exec", 1);
    let increments = (0..1000).map(|n| {
        let bus = if n % 2 == 0 { &one } else { &two };
        bus.increment(subject.clone(), 1, DEADLINE)
    });
    let totals = within(3 * DEADLINE, join_all(increments)).await;
    let mut totals: Vec<u64> = totals.into_iter().map(Result::unwrap).collect();
    totals.sort_unstable();
    assert!(totals.into_iter().eq(1..=1000));
    let total = one.increment(subject.clone(), 5, DEADLINE).await.unwrap();
    assert_eq!(total, 1005);
    assert_eq!(one.increment(subject, -2, DEADLINE).await.unwrap(), 1003);
}
