//! Boxes stay closed while Calico's Felix, which programs the rules of policies, is stopped. The
//! test has a cluster of its own, because no Pod gets its rules meanwhile.

use agentbox_runtime::BoxSpec;
use agentbox_runtime::conformance::network::probe::{endless_sender, sent_datagrams};
use agentbox_runtime::conformance::{Subject, Violation, eventually};
use agentbox_runtime_kubernetes::Driver;
use agentbox_testing::TestKubernetes;
use nix::sys::signal::Signal;

use super::hosts::{ANY, Listener, NetworkNamespace, PUBLIC, create_remote_machine};
use super::probe::{Targets, reached_from_box, reached_from_pod_with, tcp, udp};
use super::{NODE_OVER_IPV6, internet, node};
use crate::cluster::{config_of, kubectl_of, subject_with};

const FELIX: &str = "calico-felix";

/// Waits until the box has sent more datagrams.
async fn wait_until_sending(s: &Subject<Driver>, spec: &BoxSpec) {
    let before = sent_datagrams(s, spec).await.unwrap();
    eventually("the box sends", || async {
        Ok((sent_datagrams(s, spec).await? > before).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn felix_outage_opens_no_box() {
    let kubernetes = TestKubernetes::start().await.unwrap();
    let config = config_of(&kubernetes);
    let s = subject_with(&config);
    let node_network = NetworkNamespace::of_node(&kubernetes);
    let on_node = Listener::on(&node_network, ANY, 0);
    let remote = create_remote_machine(&node_network);
    let [outside, allowed] = [(); 2].map(|()| Listener::on(&remote, PUBLIC, 0));
    let destinations = [
        (node(&config).to_string(), on_node.port),
        (NODE_OVER_IPV6.to_owned(), on_node.port),
        (PUBLIC.to_owned(), outside.port),
    ];
    let addresses: Vec<String> = destinations
        .iter()
        .map(|(host, port)| format!("{host}:{port}"))
        .collect();
    let older = endless_sender(&s, &addresses);
    s.run(&older).await.unwrap();
    wait_until_sending(&s, &older).await;

    let system = &kubernetes.system;
    let process = system.pids(FELIX)[&0];
    // A stopped process programs no rules, and its supervisor does not start another one.
    assert!(system.signal(FELIX, 0, Signal::SIGSTOP));
    wait_until_sending(&s, &older).await;
    let newer = endless_sender(&s, &addresses);
    let meanwhile = async {
        wait_until_sending(&s, &newer).await;
        assert!(system.kill(FELIX, 0));
        Ok::<_, Violation>(())
    };
    futures::try_join!(s.run(&newer), meanwhile).unwrap();
    // The supervisor has started it again: it opens the destinations of a new box.
    let target = Targets::from([tcp(PUBLIC, allowed.port)]);
    assert_eq!(
        reached_from_box(&s, Some(internet()), &target).await,
        target
    );
    assert_ne!(system.pids(FELIX)[&0], process);
    wait_until_sending(&s, &older).await;
    wait_until_sending(&s, &newer).await;
    assert_eq!([on_node.received(), outside.received()], [0, 0]);

    // The control: each listener receives the datagrams of a Pod that is no box.
    let targets: Targets = destinations
        .iter()
        .map(|(host, port)| udp(host, *port))
        .collect();
    let reached = reached_from_pod_with(&kubectl_of(&config).await, "default", &targets).await;
    assert_eq!(reached, targets);
    s.clean().await.unwrap();
}
