//! The firewall rules are in force before a box's first instruction.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agentbox_runtime::conformance::network::probe::{datagram_counter, send_datagrams};
use agentbox_runtime::conformance::{Subject, Violation, check};
use agentbox_runtime_containerd::Driver;
use tokio::net::UdpSocket;

use crate::machine::{config, subject};
use crate::remote_machine::own_address;

/// Checks that neither this machine nor a neighbour box receives a datagram of the senders.
async fn check_no_datagram_arrives(s: &Subject<Driver>) -> Result<(), Violation> {
    let socket = Arc::new(UdpSocket::bind("0.0.0.0:0").await.unwrap());
    let port = socket.local_addr().unwrap().port();
    let received = Arc::new(AtomicU64::new(0));
    let receiving = tokio::spawn({
        let (socket, received) = (socket.clone(), received.clone());
        async move {
            let mut buffer = [0; 100];
            while socket.recv_from(&mut buffer).await.is_ok() {
                received.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let (neighbour, neighbour_address) = datagram_counter(s).await?;
    let gateway = config().await.subnet.hosts().next().unwrap();
    let own = own_address().await;
    let machine = [gateway.into(), own].map(|address| SocketAddr::new(address, port));
    let addresses = [machine[0], machine[1], neighbour_address].map(|address| address.to_string());
    send_datagrams(s, &addresses).await?;

    // The control: both counters work, and these datagrams are the first that arrive.
    for _ in 0..2 {
        socket.send_to(b"over", machine[1]).await.unwrap();
        socket.send_to(b"over", neighbour_address).await.unwrap();
    }
    let end = s.end_of(&neighbour.id).await?;
    let arrived = agentbox_runtime::conformance::eventually("the control arrives", || async {
        let count = received.load(Ordering::SeqCst);
        Ok((count >= 2).then_some(count))
    })
    .await?;
    receiving.abort();
    check(end.output.contains("datagrams: 0"), || format!("{end:?}"))?;
    check(arrived == 2, || {
        format!("{} datagrams reached the machine", arrived - 2)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_box_sends_no_packet_from_its_first_instruction() {
    let s = subject().await;
    let outcome = check_no_datagram_arrives(&s).await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_claimed_box_sends_no_packet_from_its_first_instruction() {
    let s = subject().await.claiming();
    let outcome = check_no_datagram_arrives(&s).await;
    s.clean().await.unwrap();
    outcome.unwrap();
}
