//! Many boxes at once.

use agentbox_runtime::Runtime;

use crate::machine::subject;

#[tokio::test(flavor = "multi_thread")]
async fn burst_of_boxes_all_run_and_are_all_removed() {
    let s = subject().await;
    let specs: Vec<_> = (0..12).map(|_| s.spec()).collect();
    let outcome = futures::future::try_join_all(specs.iter().map(|spec| s.run(spec))).await;
    let removed =
        futures::future::try_join_all(specs.iter().map(|spec| s.first.remove(&spec.id))).await;
    let mut addresses = outcome.unwrap();
    removed.unwrap();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), specs.len());
}
