//! The policy is in force before a box's first instruction.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use agentbox_runtime::conformance::network::probe::{datagram_counter, send_datagrams};
use agentbox_runtime::conformance::{Subject, Violation, check};
use agentbox_runtime_kubernetes::Driver;

use super::hosts::{ANY, Listener, NetworkNamespace, PUBLIC, remote_machine};
use super::probe::{Targets, reached_from_pod, udp};
use super::{NODE_OVER_IPV6, machine, node};
use crate::cluster::{config, kubernetes, subject};

/// Checks that the neighbour box receives no datagram of the senders. The caller checks its own
/// listeners at `addresses`.
async fn check_no_datagram_arrives(
    s: &Subject<Driver>,
    node_network: &NetworkNamespace,
    addresses: &[String],
) -> Result<(), Violation> {
    let (neighbour, neighbour_address) = datagram_counter(s).await?;
    let mut all = addresses.to_vec();
    all.push(neighbour_address.to_string());
    send_datagrams(s, &all).await?;
    // The control: the counter works, and this datagram is the first that arrives.
    let send_control = |to: SocketAddr| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.send_to(b"one", to)?;
        socket.send_to(b"over", to)
    };
    node_network
        .run(|| send_control(neighbour_address))
        .unwrap();
    let end = s.end_of(&neighbour.id).await?;
    check(end.output.contains("datagrams: 1"), || format!("{end:?}"))
}

#[tokio::test]
async fn closed_box_sends_no_packet_from_its_first_instruction() {
    let (config, s) = (config().await, subject().await);
    let node_network = NetworkNamespace::of_node(kubernetes().await);
    let on_node = Listener::on(&node_network, ANY, 0);
    let on_machine = Listener::on(&NetworkNamespace::of_test_machine(), ANY, 0);
    let outside = Listener::on(remote_machine().await, PUBLIC, 0);
    let destinations = [
        (node(&config).to_string(), on_node.port),
        (NODE_OVER_IPV6.to_owned(), on_node.port),
        (machine(&config).to_string(), on_machine.port),
        (PUBLIC.to_owned(), outside.port),
    ];
    let addresses: Vec<String> = destinations
        .iter()
        .map(|(host, port)| format!("{host}:{port}"))
        .collect();
    let outcome = check_no_datagram_arrives(&s, &node_network, &addresses).await;
    s.clean().await.unwrap();
    outcome.unwrap();
    let received = [&on_node, &on_machine, &outside].map(Listener::received);
    assert_eq!(received, [0, 0, 0]);
    // The control: each listener receives the datagrams of a Pod that is no box.
    let targets: Targets = destinations
        .iter()
        .map(|(host, port)| udp(host, *port))
        .collect();
    assert_eq!(reached_from_pod("default", &targets).await, targets);
}
