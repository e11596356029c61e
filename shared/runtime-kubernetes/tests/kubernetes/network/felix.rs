//! Calico's Felix, which makes the rules of a policy, stops and comes back: on a cluster of
//! its own, since nothing starts there meanwhile.

use agentbox_runtime::BoxSpec;
use agentbox_runtime::conformance::network::probe::{endless, sent};
use agentbox_runtime::conformance::{Subject, Violation, eventually};
use agentbox_runtime_kubernetes::Driver;
use agentbox_testing::TestKubernetes;
use nix::sys::signal::Signal;

use super::places::{ANY, Listener, Network, PUBLIC, machine_behind};
use super::probe::{Targets, from_box, from_pod_of, tcp, udp};
use super::{NODE_OVER_IPV6, internet, node};
use crate::cluster::{config_of, kubectl_of, subject_with};

const FELIX: &str = "calico-felix";

/// Waits until it has sent some more.
async fn wait_until_it_sends(s: &Subject<Driver>, spec: &BoxSpec) {
    let before = sent(s, spec).await.unwrap();
    eventually("the box sends", || async {
        Ok((sent(s, spec).await? > before).then_some(()))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn felix_outage_opens_no_box() {
    let kubernetes = TestKubernetes::start().await.unwrap();
    let config = config_of(&kubernetes);
    let s = subject_with(&config);
    let network_of_node = Network::of_the_node(&kubernetes);
    let on_node = Listener::on(&network_of_node, ANY, 0);
    let beyond = machine_behind(&network_of_node);
    let [outside, elsewhere] = [(); 2].map(|()| Listener::on(&beyond, PUBLIC, 0));
    let places = [
        (node(&config).to_string(), on_node.port),
        (NODE_OVER_IPV6.to_owned(), on_node.port),
        (PUBLIC.to_owned(), outside.port),
    ];
    let at: Vec<String> = places
        .iter()
        .map(|(host, port)| format!("{host}:{port}"))
        .collect();
    let older = endless(&s, &at);
    s.run(&older).await.unwrap();
    wait_until_it_sends(&s, &older).await;

    let system = &kubernetes.system;
    let process = system.pids(FELIX)[&0];
    // It does nothing any more, and nobody starts another.
    assert!(system.signal(FELIX, 0, Signal::SIGSTOP));
    wait_until_it_sends(&s, &older).await;
    let newer = endless(&s, &at);
    let meanwhile = async {
        wait_until_it_sends(&s, &newer).await;
        assert!(system.kill(FELIX, 0));
        Ok::<_, Violation>(())
    };
    futures::try_join!(s.run(&newer), meanwhile).unwrap();
    // It is back: it opens what a new box may reach.
    let target = Targets::from([tcp(PUBLIC, elsewhere.port)]);
    assert_eq!(from_box(&s, Some(internet()), &target).await, target);
    assert_ne!(system.pids(FELIX)[&0], process);
    wait_until_it_sends(&s, &older).await;
    wait_until_it_sends(&s, &newer).await;
    assert_eq!([on_node.heard(), outside.heard()], [0, 0]);

    // The control: each hears who is no box.
    let targets: Targets = places.iter().map(|(host, port)| udp(host, *port)).collect();
    let reached = from_pod_of(&kubectl_of(&config).await, "default", &targets).await;
    assert_eq!(reached, targets);
    s.clean().await.unwrap();
}
