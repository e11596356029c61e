//! Boxes keep running when containerd is killed, and the driver finds them again.

use std::time::Duration;

use agentbox_runtime::conformance::eventually;
use agentbox_runtime::{BoxConnector as _, BoxPhase, Runtime as _, RuntimeError};
use agentbox_testing::TestContainerd;
use futures::StreamExt as _;

use crate::machine::{config_of, subject_of};

#[tokio::test(flavor = "multi_thread")]
async fn killed_containerd_ends_the_watch_and_no_box() {
    // A containerd of its own, because other tests need theirs.
    let containerd = TestContainerd::start().await.unwrap();
    let s = subject_of(&config_of(&containerd.endpoint));
    let spec = s.script("echo before; exec sleep 600");
    let address = s.run(&spec).await.unwrap();
    let before = s.first.get(&spec.id).await.unwrap();
    let mut changes = s.second.watch().await.unwrap();

    containerd.system.kill("containerd", 0);
    let ended = async { while changes.next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(30), ended)
        .await
        .expect("the watch ends");

    // Each has a connection of its own.
    for driver in [&s.first, &s.second] {
        let after = eventually("containerd answers again", || async {
            match driver.get(&spec.id).await {
                Ok(observed) => Ok(Some(observed)),
                Err(RuntimeError::Unavailable(_) | RuntimeError::Deadline(_)) => Ok(None),
                Err(other) => Err(other.into()),
            }
        });
        assert_eq!(after.await.unwrap(), before);
    }
    s.first.connect(&spec.id, address).await.map(drop).unwrap();
    s.second.stop(&spec.id, Duration::ZERO).await.unwrap();
    let end = s.end_of(&spec.id).await.unwrap();
    assert_eq!(end.output, "before");
    assert!(matches!(
        s.first.ensure(&spec, 1).await.unwrap().phase,
        BoxPhase::Exited { .. }
    ));
    s.clean().await.unwrap();
}
