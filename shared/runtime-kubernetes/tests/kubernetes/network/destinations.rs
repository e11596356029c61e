//! Policies for addresses outside the cluster.

use agentbox_runtime::conformance::network::destinations::{
    Destinations, destinations_are_open_to_exactly_the_allowing_policies,
};

use super::hosts::{
    ANY, BLOCKED, Listener, METADATA, OTHER_PRIVATE, PRIVATE, PUBLIC, remote_machine,
    socket_address,
};
use super::internet;
use super::probe::{Targets, reached_from_box, reached_from_pod, tcp, udp};
use crate::cluster::{config, subject_with};

#[tokio::test]
async fn each_destination_is_open_to_exactly_the_allowing_policies() {
    let listener = Listener::on(remote_machine().await, ANY, 0);
    let destinations = Destinations {
        public: socket_address(PUBLIC, &listener),
        blocked: socket_address(BLOCKED, &listener),
        private: socket_address(PRIVATE, &listener),
        other_private: OTHER_PRIVATE
            .map(|address| socket_address(address, &listener))
            .to_vec(),
        metadata: socket_address(METADATA, &listener),
    };
    let all = destinations.all().into_iter();
    let all: Targets = all.map(|at| tcp(at.ip(), at.port())).collect();
    assert_eq!(reached_from_pod("default", &all).await, all);
    let mut config = config().await;
    config.blocked_egress_cidrs = vec![destinations.blocked.ip().into()];
    let subject = subject_with(&config);
    let outcome =
        destinations_are_open_to_exactly_the_allowing_policies(&subject, &destinations).await;
    subject.clean().await.unwrap();
    outcome.unwrap();
}

#[tokio::test]
async fn internet_is_closed_by_default_when_configured_including_udp() {
    let listener = Listener::on(remote_machine().await, PUBLIC, 0);
    let targets = Targets::from([tcp(PUBLIC, listener.port), udp(PUBLIC, listener.port)]);
    let mut config = config().await;
    for (default, open) in [(true, targets.clone()), (false, Targets::new())] {
        config.default_allow_internet = default;
        let subject = subject_with(&config);
        assert_eq!(reached_from_box(&subject, None, &targets).await, open);
        assert_eq!(
            reached_from_box(&subject, Some(internet()), &targets).await,
            targets
        );
        subject.clean().await.unwrap();
    }
}
