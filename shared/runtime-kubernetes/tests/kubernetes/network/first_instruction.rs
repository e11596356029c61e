//! The policy is in force before a box's first instruction.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use agentbox_runtime::conformance::network::probe::{datagram_counter, send_datagrams};
use agentbox_runtime::conformance::{Subject, Violation, check};
use agentbox_runtime_kubernetes::Driver;

use super::places::{ANY, Listener, Network, PUBLIC, elsewhere};
use super::probe::{Targets, from_pod, udp};
use super::{NODE_OVER_IPV6, machine, node};
use crate::cluster::{config, kubernetes, subject};

async fn nothing_gets_out(
    s: &Subject<Driver>,
    network_of_node: &Network,
    at: &[String],
) -> Result<(), Violation> {
    let (neighbour, beside) = datagram_counter(s).await?;
    let mut all = at.to_vec();
    all.push(beside.to_string());
    send_datagrams(s, &all).await?;
    // The control: it does count, and this is the first that arrives.
    let tell = |beside: SocketAddr| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.send_to(b"one", beside)?;
        socket.send_to(b"over", beside)
    };
    network_of_node.inside(|| tell(beside)).unwrap();
    let end = s.end_of(&neighbour.id).await?;
    check(end.output.contains("datagrams: 1"), || format!("{end:?}"))
}

#[tokio::test]
async fn closed_box_sends_no_packet_from_its_first_instruction() {
    let (config, s) = (config().await, subject().await);
    let network_of_node = Network::of_the_node(kubernetes().await);
    let on_node = Listener::on(&network_of_node, ANY, 0);
    let on_machine = Listener::on(&Network::of_the_machine(), ANY, 0);
    let outside = Listener::on(elsewhere().await, PUBLIC, 0);
    let places = [
        (node(&config).to_string(), on_node.port),
        (NODE_OVER_IPV6.to_owned(), on_node.port),
        (machine(&config).to_string(), on_machine.port),
        (PUBLIC.to_owned(), outside.port),
    ];
    let at: Vec<String> = places
        .iter()
        .map(|(host, port)| format!("{host}:{port}"))
        .collect();
    let outcome = nothing_gets_out(&s, &network_of_node, &at).await;
    s.clean().await.unwrap();
    outcome.unwrap();
    let heard = [&on_node, &on_machine, &outside].map(Listener::heard);
    assert_eq!(heard, [0, 0, 0]);
    // The control: each hears who is no box.
    let targets: Targets = places.iter().map(|(host, port)| udp(host, *port)).collect();
    assert_eq!(from_pod("default", &targets).await, targets);
}
