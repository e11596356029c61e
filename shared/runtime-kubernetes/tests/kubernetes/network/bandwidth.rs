//! The bandwidth of a box, which CNI's plugin `bandwidth` bounds by queues on the node.

use std::process::Command;

use super::hosts::NetworkNamespace;
use crate::cluster::{config, kubernetes, subject_with};

#[tokio::test(flavor = "multi_thread")]
async fn bandwidth_of_a_box_is_bounded_by_queues_of_its_node() {
    let mut config = config().await;
    // A rate that no other test has.
    config.network_bandwidth = Some(17_000_000);
    let s = subject_with(&config);
    let started = s.run(&s.spec()).await;
    let path = std::env::var("PATH").unwrap_or_default();
    let listed = NetworkNamespace::of_node(kubernetes().await).run(|| {
        Command::new("tc")
            .args(["qdisc", "show"])
            .env("PATH", format!("{path}:/usr/sbin:/sbin"))
            .output()
            .expect("`tc` is installed")
    });
    s.clean().await.unwrap();
    started.unwrap();
    let queues = String::from_utf8_lossy(&listed.stdout);
    // One for each direction.
    assert_eq!(queues.matches("rate 17Mbit").count(), 2, "{queues}");
}
