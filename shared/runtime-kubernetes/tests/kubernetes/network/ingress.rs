//! Who reaches a box.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_runtime::NetworkPolicy;
use agentbox_runtime::conformance::{Subject, eventually};
use agentbox_runtime_kubernetes::Driver;
use tokio::net::TcpStream;

use super::places::Network;
use super::probe::{Targets, from_pod, tcp};
use crate::cluster::{config, kubernetes, subject};

/// Longer than a connection that is allowed ever takes.
const PATIENCE: Duration = Duration::from_secs(3);

/// A box that serves on 8080 and 8081; its boxd's address.
async fn serving(s: &Subject<Driver>, policy: Option<NetworkPolicy>) -> SocketAddr {
    let mut spec = s.script("httpd -p 8080 -h /tmp; exec httpd -f -p 8081 -h /tmp");
    spec.isolation.network_policy = policy;
    s.run(&spec).await.unwrap()
}

/// Its ports for users, and boxd's.
fn ports(of: SocketAddr) -> [u16; 3] {
    [8080, 8081, of.port()]
}

#[tokio::test]
async fn boxd_port_is_open_to_services_and_ingress_ports_to_everybody() {
    let subject = subject().await;
    let opens = NetworkPolicy {
        allowed_ingress_ports: vec![8080.try_into().unwrap()],
        ..Default::default()
    };
    let closed = serving(&subject, None).await;
    let open = serving(&subject, Some(opens)).await;
    // Its node is always let in, which shows what listens.
    let node = Network::of_the_node(kubernetes().await);
    for at in [closed, open] {
        for port in ports(at) {
            let to = SocketAddr::new(at.ip(), port);
            let connect = || std::net::TcpStream::connect_timeout(&to, PATIENCE);
            eventually("it listens", || async { Ok(node.inside(connect).ok()) })
                .await
                .unwrap();
        }
    }
    let targets: Targets = [closed, open]
        .into_iter()
        .flat_map(|at| ports(at).map(|port| tcp(at.ip(), port)))
        .collect();
    let opened = tcp(open.ip(), 8080);
    let boxds = [closed, open].map(|at| tcp(at.ip(), at.port()));
    let by_anybody = Targets::from([opened.clone()]);
    assert_eq!(from_pod("default", &targets).await, by_anybody);
    assert_eq!(from_pod("kube-system", &targets).await, by_anybody);
    let by_us: Targets = boxds.into_iter().chain([opened]).collect();
    let system = config().await.system_namespace;
    assert_eq!(from_pod(&system, &targets).await, by_us);
    // This machine, whose exec-proxies the operator named.
    let mut by_this_machine = Targets::new();
    for at in [closed, open] {
        for port in ports(at) {
            let connecting = TcpStream::connect((at.ip(), port));
            if let Ok(Ok(_)) = tokio::time::timeout(PATIENCE, connecting).await {
                by_this_machine.insert(tcp(at.ip(), port));
            }
        }
    }
    assert_eq!(by_this_machine, by_us);
    subject.clean().await.unwrap();
}
