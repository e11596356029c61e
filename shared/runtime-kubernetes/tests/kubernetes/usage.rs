//! The usage of a box, as metrics-server measures it.

use agentbox_runtime::conformance::eventually;
use agentbox_runtime::{BoxConnector as _, Runtime as _};

use crate::cluster::subject;

#[tokio::test]
async fn usage_comes_from_the_cluster_and_is_absent_after_removal() {
    let subject = subject().await;
    // Holds 24 MB and keeps a processor busy.
    let hold = "x=$(head -c 24000000 /dev/zero | tr '\\0' x); while :; do :; done";
    let spec = subject.script(hold);
    subject.run(&spec).await.unwrap();
    let usage = eventually("the usage under load is measured", || async {
        let usage = subject.first.usage(&spec.id).await?;
        Ok(usage.filter(|usage| usage.memory.0 > 24_000_000 && usage.cpu.0 > 100))
    })
    .await
    .unwrap();
    assert!(usage.memory <= spec.resources.memory, "{usage:?}");
    assert!(usage.cpu.0 < 1_500, "{usage:?}");
    subject.first.remove(&spec.id).await.unwrap();
    eventually("the removed box has no usage", || async {
        Ok(subject.first.usage(&spec.id).await?.is_none().then_some(()))
    })
    .await
    .unwrap();
    subject.clean().await.unwrap();
}
