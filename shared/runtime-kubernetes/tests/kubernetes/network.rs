//! A box reaches nothing of the cluster or of the machine, by real traffic, from its first
//! instruction on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use agentbox_runtime::NetworkPolicy;
use agentbox_runtime::conformance::Subject;
use agentbox_runtime_kubernetes::{Config, Driver};
use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream};

use crate::cluster::{config, subject};

/// The `number`th address of the cluster's own network.
fn own(config: &Config, number: u32) -> Ipv4Addr {
    let IpAddr::V4(first) = config.cluster_cidrs[0].network() else {
        panic!("an IPv4 network");
    };
    Ipv4Addr::from(u32::from(first) + number)
}

/// The first thing that the box does is to try each, again and again; exit code 1 if one ever
/// answers.
fn knocking(targets: &[(IpAddr, u16)]) -> String {
    let all: Vec<String> = targets
        .iter()
        .map(|(ip, port)| format!("{ip},{port}"))
        .collect();
    format!(
        "t=0; while [ $t -lt 3 ]; do t=$((t+1)); for u in {}; do \
         if nc -w 1 ${{u%,*}} ${{u#*,}} < /dev/null; then echo \"$u answers\"; exit 1; fi; \
         done; done; exit 0",
        all.join(" ")
    )
}

#[tokio::test]
async fn no_policy_opens_the_node_the_api_server_or_the_metadata_address() {
    let config = config().await;
    let (node, api) = (own(&config, 2), own(&config, 1024 + 1));
    // The control: they do listen.
    for port in [10_250, 6_443] {
        TcpStream::connect((node, port)).await.unwrap();
    }
    let targets = [
        (IpAddr::V4(node), 10_250),
        (IpAddr::V4(node), 6_443),
        (IpAddr::V4(api), 443),
        ("169.254.169.254".parse().unwrap(), 80),
    ];
    let open = NetworkPolicy {
        allow_internet: true,
        allow_cluster_internal: true,
        allowed_egress_cidrs: vec!["0.0.0.0/0".to_owned()],
        ..Default::default()
    };
    let subject = subject().await;
    let policies = [None, Some(NetworkPolicy::default()), Some(open)];
    let knocks = policies.into_iter().map(|policy| async {
        let mut spec = subject.script(&knocking(&targets));
        spec.isolation.network_policy = policy;
        let end = subject.run_to_end(&spec).await.unwrap();
        assert_eq!(end.exit_code, 0, "{:?}: {end:?}", spec.isolation);
    });
    futures::future::join_all(knocks).await;
    subject.clean().await.unwrap();
}

/// How often a box with this policy got through to a port of the machine.
async fn arrivals(config: Config, policy: Option<NetworkPolicy>) -> usize {
    let gateway = own(&config, 1);
    let listener = TcpListener::bind((gateway, 0)).await.unwrap();
    let at: SocketAddr = listener.local_addr().unwrap();
    let driver = || Driver::connect(config.clone()).unwrap();
    let subject = Subject::new(driver(), driver(), "busybox");
    let mut spec = subject.script(&knocking(&[(at.ip(), at.port())]));
    spec.isolation.network_policy = policy;
    let mut count = 0;
    let ended = {
        let box_ends = subject.run_to_end(&spec);
        tokio::pin!(box_ends);
        loop {
            tokio::select! {
                end = &mut box_ends => break end,
                accepted = listener.accept() => {
                    accepted.unwrap();
                    count += 1;
                }
            }
        }
    };
    ended.unwrap();
    subject.clean().await.unwrap();
    count
}

#[tokio::test]
async fn not_one_packet_of_a_box_reaches_the_machine_unless_its_policy_says_so() {
    let closed = config().await;
    assert_eq!(arrivals(closed.clone(), None).await, 0);
    assert_eq!(
        arrivals(closed.clone(), Some(NetworkPolicy::default())).await,
        0
    );
    // The control: an operator who does not list the machine's address lets it be opened.
    let mut open = closed.clone();
    let pods: IpNet = format!("{}/21", own(&closed, 2048)).parse().unwrap();
    open.cluster_cidrs = vec![IpNet::new(IpAddr::V4(own(&closed, 0)), 32).unwrap(), pods];
    let policy = NetworkPolicy {
        allowed_egress_cidrs: vec![own(&closed, 1).to_string()],
        ..Default::default()
    };
    assert!(arrivals(open, Some(policy)).await > 0);
}
