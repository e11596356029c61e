//! A box reaches what its policy says and nothing else, seen from inside. What a driver
//! must hold on its own machines (host ports, the metadata address, forged senders) is in its
//! own tests.

pub mod destinations;
pub mod knocking;

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{Subject, Violation, claim};
use crate::{BoxConnector, BoxSpec, IngressPort, NetworkPolicy, Runtime};

type Outcome = Result<(), Violation>;

/// A box that serves a page on two ports.
fn server<D: Runtime + BoxConnector>(s: &Subject<D>, policy: NetworkPolicy) -> BoxSpec {
    let mut spec = s.script(
        "mkdir /www; echo page > /www/index.html; httpd -p 8080 -h /www; httpd -p 8081 -h /www; \
         exec sleep 600",
    );
    spec.isolation.network_policy = Some(policy);
    spec
}

/// Exit code 0: all answered; 1: none did; 2: some. `wait` says whether to try again
/// until one answers, since a server needs a moment.
fn asking(servers: &[SocketAddr], wait: bool) -> String {
    let hosts = servers
        .iter()
        .map(|server| format!("{},{}", server.ip(), server.port()));
    let servers = hosts.collect::<Vec<_>>().join(" ");
    let tries = if wait { 20 } else { 1 };
    format!(
        "t=0; while [ $t -lt {tries} ]; do t=$((t+1)); y=0; n=0; for u in {servers}; do \
         if printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout 6 nc -w 2 ${{u%,*}} ${{u#*,}} | grep -q page; then y=$((y+1)); \
         else n=$((n+1)); fi; done; \
         [ $y -gt 0 ] && break; sleep 0.2; done; \
         [ $n -eq 0 ] && exit 0; [ $y -eq 0 ] && exit 1; exit 2"
    )
}

fn at(server: SocketAddr, port: u16) -> SocketAddr {
    SocketAddr::new(server.ip(), port)
}

async fn ask<D: Runtime + BoxConnector>(
    s: &Subject<D>,
    servers: &[SocketAddr],
    policy: Option<NetworkPolicy>,
    answered: bool,
) -> Outcome {
    let mut spec = s.script(&asking(servers, answered));
    spec.isolation.network_policy = policy;
    let end = s.run_to_end(&spec).await?;
    let expected = i32::from(!answered);
    claim(end.exit_code == expected, || {
        format!("{servers:?}, should answer: {answered}: {end:?}")
    })
}

/// The network of this prefix that contains an address.
pub(crate) fn network_around(address: IpAddr, prefix: u8) -> IpNet {
    IpNet::new(address, prefix).map_or_else(|_| IpNet::from(address), |network| network.trunc())
}

fn internal() -> NetworkPolicy {
    NetworkPolicy {
        allow_cluster_internal: true,
        ..Default::default()
    }
}

/// # Errors
/// When it does not hold.
pub async fn another_box_is_not_reached_by_default<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let open = s.run(&server(s, internal())).await?;
    // The control: it does serve.
    ask(s, &[at(open, 8080)], Some(internal()), true).await?;
    ask(s, &[at(open, 8080)], None, false).await?;
    ask(s, &[at(open, 8080)], Some(NetworkPolicy::default()), false).await?;
    let around = NetworkPolicy {
        allowed_egress_cidrs: vec![network_around(open.ip(), 8)],
        ..Default::default()
    };
    ask(s, &[at(open, 8080)], Some(around), false).await?;
    let closed = s
        .run(&server(
            s,
            NetworkPolicy {
                allow_internet: true,
                ..Default::default()
            },
        ))
        .await?;
    ask(s, &[at(closed, 8080)], Some(internal()), false).await
}

/// # Errors
/// When it does not hold.
pub async fn boxes_that_allow_it_reach_each_other_but_no_boxd<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let server_box = s.run(&server(s, internal())).await?;
    ask(
        s,
        &[at(server_box, 8080), at(server_box, 8081)],
        Some(internal()),
        true,
    )
    .await?;
    let knock = format!(
        "timeout 6 nc -w 2 {} {} </dev/null",
        server_box.ip(),
        server_box.port()
    );
    let mut spec = s.script(&format!("{knock} && exit 1; exit 0"));
    spec.isolation.network_policy = Some(internal());
    let end = s.run_to_end(&spec).await?;
    claim(end.exit_code == 0, || {
        format!("a box reached another's boxd: {end:?}")
    })
}

/// # Errors
/// When it does not hold.
pub async fn an_opened_port_is_reached_and_no_other<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let ports = NetworkPolicy {
        allowed_ingress_ports: vec![IngressPort::try_from(8080)?],
        ..Default::default()
    };
    let server_box = s.run(&server(s, ports)).await?;
    ask(s, &[at(server_box, 8080)], Some(internal()), true).await?;
    ask(s, &[at(server_box, 8081)], Some(internal()), false).await
}
