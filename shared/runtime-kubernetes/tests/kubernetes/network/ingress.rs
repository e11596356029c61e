//! Ingress of boxes: from Pods, from the namespace of the services, and from the machine of the
//! tests.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_runtime::NetworkPolicy;
use agentbox_runtime::conformance::{Subject, eventually};
use agentbox_runtime_kubernetes::Driver;
use tokio::net::TcpStream;

use super::hosts::NetworkNamespace;
use super::probe::{Targets, reached_from_pod, tcp};
use crate::cluster::{config, kubernetes, subject};

/// Longer than an allowed connection takes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Starts a box that serves on 8080 and 8081, and returns its boxd's address.
async fn start_server(s: &Subject<Driver>, policy: Option<NetworkPolicy>) -> SocketAddr {
    let mut spec = s.script("httpd -p 8080 -h /tmp; exec httpd -f -p 8081 -h /tmp");
    spec.isolation.network_policy = policy;
    s.run(&spec).await.unwrap()
}

/// The listening ports of a server box: the two of its server, and boxd's.
fn ports(boxd: SocketAddr) -> [u16; 3] {
    [8080, 8081, boxd.port()]
}

#[tokio::test]
async fn boxd_port_is_open_to_services_and_ingress_ports_to_any_client() {
    let subject = subject().await;
    let policy = NetworkPolicy {
        allowed_ingress_ports: vec![8080.try_into().unwrap()],
        ..Default::default()
    };
    let closed = start_server(&subject, None).await;
    let open = start_server(&subject, Some(policy)).await;
    // The control: a Pod always accepts its own node, so this shows that each port listens.
    let node = NetworkNamespace::of_node(kubernetes().await);
    for at in [closed, open] {
        for port in ports(at) {
            let to = SocketAddr::new(at.ip(), port);
            let connect = || std::net::TcpStream::connect_timeout(&to, CONNECT_TIMEOUT);
            eventually("the port listens", || async { Ok(node.run(connect).ok()) })
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
    let by_any_pod = Targets::from([opened.clone()]);
    assert_eq!(reached_from_pod("default", &targets).await, by_any_pod);
    assert_eq!(reached_from_pod("kube-system", &targets).await, by_any_pod);
    let by_services: Targets = boxds.into_iter().chain([opened]).collect();
    let system = config().await.system_namespace;
    assert_eq!(reached_from_pod(&system, &targets).await, by_services);
    // The machine of the tests is in `boxd_client_cidrs`.
    let mut by_test_machine = Targets::new();
    // A stall of the machine may end an attempt.
    for _ in 0..2 {
        for at in [closed, open] {
            for port in ports(at) {
                let connecting = TcpStream::connect((at.ip(), port));
                if let Ok(Ok(_)) = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
                    by_test_machine.insert(tcp(at.ip(), port));
                }
            }
        }
        if by_test_machine.is_superset(&by_services) {
            break;
        }
    }
    assert_eq!(by_test_machine, by_services);
    subject.clean().await.unwrap();
}
