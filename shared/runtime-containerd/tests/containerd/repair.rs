//! A driver that watches restores lost firewall rules.

use std::time::Duration;

use agentbox_runtime::Runtime as _;
use agentbox_runtime::conformance::{Violation, eventually};
use futures::StreamExt as _;

use crate::machine::{another_config, nft_element, subject_of};

#[tokio::test(flavor = "multi_thread")]
async fn deleted_rules_are_restored_by_the_watcher() {
    // A deployment of its own, which nothing else watches. The table is shared, so only this box's
    // rules are deleted.
    let config = another_config().await;
    let s = subject_of(&config);
    let spec = s.spec();
    let address = s.run(&spec).await.unwrap().ip();
    let has_rules = || async { nft_element("get", &config, address).await.is_ok() };
    let before = has_rules().await;
    nft_element("delete", &config, address).await.unwrap();
    let gone = !has_rules().await;
    let mut changes = s.second.watch().await.unwrap();
    let watching = async { while changes.next().await.is_some() {} };
    let back = async {
        while !has_rules().await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        true
    };
    let back = tokio::time::timeout(Duration::from_secs(30), async {
        tokio::select! { back = back => back, () = watching => false }
    });
    let back = back.await;
    s.clean().await.unwrap();
    assert!(
        before && gone,
        "the control: rules before {before}, deleted {gone}"
    );
    assert_eq!(back, Ok(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_restored_while_the_changes_are_not_read() {
    let config = another_config().await;
    let s = subject_of(&config);
    let spec = s.spec();
    let address = s.run(&spec).await.unwrap().ip();
    let mut changes = s.second.watch().await.unwrap();
    // As a reader that is busy with this change.
    let first = changes.next().await;
    let restoring = async {
        // Twice: the first repair must not keep a lock that the second one needs.
        for _ in 0..2 {
            let deleted = nft_element("delete", &config, address).await;
            deleted.map_err(Violation)?;
            eventually("the rules are restored", || async {
                let has_rules = nft_element("get", &config, address).await.is_ok();
                Ok(has_rules.then_some(()))
            })
            .await?;
        }
        Ok::<(), Violation>(())
    };
    let restored = restoring.await;
    // The box can be changed meanwhile.
    s.clean().await.unwrap();
    drop(changes);
    assert!(first.is_some_and(|change| change.id.is_none()));
    restored.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn box_with_an_unreadable_state_does_not_stop_the_repair_of_others() {
    let config = another_config().await;
    let s = subject_of(&config);
    let mut specs = [s.spec(), s.spec()];
    // The watcher repairs boxes in the order of their ids.
    specs.sort_by(|a, b| a.id.cmp(&b.id));
    let mut addresses = Vec::new();
    for spec in &specs {
        addresses.push(s.run(spec).await.unwrap().ip());
    }
    let state_file = config
        .state_dir
        .join(specs[0].id.as_str())
        .join("facts.json");
    let state = tokio::fs::read(&state_file).await.unwrap();
    tokio::fs::write(&state_file, "no JSON").await.unwrap();
    for address in &addresses {
        nft_element("delete", &config, *address).await.unwrap();
    }
    let mut changes = s.second.watch().await.unwrap();
    let watching = async { while changes.next().await.is_some() {} };
    let restored = async {
        while nft_element("get", &config, addresses[1]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tokio::fs::write(&state_file, &state).await.unwrap();
        // The first box is tried again.
        while nft_element("get", &config, addresses[0]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        true
    };
    let restored = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::select! { restored = restored => restored, () = watching => false }
    });
    let restored = restored.await;
    tokio::fs::write(&state_file, &state).await.unwrap();
    s.clean().await.unwrap();
    assert_eq!(restored, Ok(true), "the watch ended, or it took too long");
}
