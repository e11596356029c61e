//! A box reaches exactly the destinations that its policy allows, tested from inside. A driver's
//! own tests cover its machines: host ports, the metadata address, forged senders.

mod change;
mod claims;
pub mod destinations;
pub mod probe;

use std::net::{IpAddr, SocketAddr};

use agentbox_contracts::ids::UserId;
use ipnet::IpNet;

use super::{Subject, Violation, check};
use crate::{BoxConnector, BoxSpec, IngressPort, NetworkPolicy, Runtime};

pub use change::{
    changed_policy_applies_to_new_and_to_open_connections, policy_of_an_older_generation_is_fenced,
};
pub use claims::first_packet_of_a_claimed_box_obeys_its_policy;

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

/// A script with exit code 0 when all servers answered, 1 when none did, 2 when some did. With
/// `wait` it tries again until all answer, because a server needs a moment to start.
fn request_script(servers: &[SocketAddr], wait: bool) -> String {
    let hosts = servers
        .iter()
        .map(|server| format!("{},{}", server.ip(), server.port()));
    let servers = hosts.collect::<Vec<_>>().join(" ");
    let tries = if wait { 20 } else { 1 };
    format!(
        "t=0; while [ $t -lt {tries} ]; do t=$((t+1)); y=0; n=0; for u in {servers}; do \
         if printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout 6 nc -w 2 ${{u%,*}} ${{u#*,}} | grep -q page; then y=$((y+1)); \
         else n=$((n+1)); fi; done; \
         [ $n -eq 0 ] && break; sleep 0.2; done; \
         [ $n -eq 0 ] && exit 0; [ $y -eq 0 ] && exit 1; exit 2"
    )
}

fn at(server: SocketAddr, port: u16) -> SocketAddr {
    SocketAddr::new(server.ip(), port)
}

async fn expect_answers<D: Runtime + BoxConnector>(
    s: &Subject<D>,
    servers: &[SocketAddr],
    policy: Option<NetworkPolicy>,
    answered: bool,
) -> Outcome {
    let mut spec = s.script(&request_script(servers, answered));
    spec.isolation.network_policy = policy;
    let end = s.run_to_end(&spec).await?;
    let expected = i32::from(!answered);
    check(end.exit_code == expected, || {
        format!("{servers:?}, expected to answer: {answered}: {end:?}")
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

/// All boxes of a machine share the size of its table of neighbours.
///
/// # Errors
/// When the driver does not meet the requirement.
pub async fn box_has_few_neighbours<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let mut spec = s.spec();
    spec.image.clone_from(&s.python);
    let script = include_str!("network/neighbours.py");
    spec.command = Some(["python3", "-c", script].map(str::to_owned).to_vec());
    let end = s.run_to_end(&spec).await?;
    let neighbours = end.output.trim().parse::<u32>();
    check(neighbours.is_ok_and(|count| count <= 2), || {
        format!("the number of neighbours is above 2: {end:?}")
    })
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn other_box_is_unreachable_by_default<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let open = s.run(&server(s, internal())).await?;
    // The control: the server answers.
    expect_answers(s, &[at(open, 8080)], Some(internal()), true).await?;
    expect_answers(s, &[at(open, 8080)], None, false).await?;
    expect_answers(s, &[at(open, 8080)], Some(NetworkPolicy::default()), false).await?;
    let subnet = NetworkPolicy {
        allowed_egress_cidrs: vec![network_around(open.ip(), 8)],
        ..Default::default()
    };
    expect_answers(s, &[at(open, 8080)], Some(subnet), false).await?;
    let closed = s
        .run(&server(
            s,
            NetworkPolicy {
                allow_internet: true,
                ..Default::default()
            },
        ))
        .await?;
    expect_answers(s, &[at(closed, 8080)], Some(internal()), false).await
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn cluster_internal_boxes_reach_each_other_but_not_boxd<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let server_box = s.run(&server(s, internal())).await?;
    expect_answers(
        s,
        &[at(server_box, 8080), at(server_box, 8081)],
        Some(internal()),
        true,
    )
    .await?;
    let connect = format!(
        "timeout 6 nc -w 2 {} {} </dev/null",
        server_box.ip(),
        server_box.port()
    );
    let mut spec = s.script(&format!("{connect} && exit 1; exit 0"));
    spec.isolation.network_policy = Some(internal());
    let end = s.run_to_end(&spec).await?;
    check(end.exit_code == 0, || {
        format!("a box reached another's boxd: {end:?}")
    })
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn box_of_another_owner_is_unreachable_under_every_policy<D: Runtime + BoxConnector>(
    s: &Subject<D>,
) -> Outcome {
    let open = NetworkPolicy {
        allowed_ingress_ports: vec![IngressPort::try_from(8080)?],
        ..internal()
    };
    let mut theirs = server(s, open);
    theirs.owner = UserId::random();
    let at_theirs = at(s.run(&theirs).await?, 8080);
    // The control: another box of that owner reaches it.
    let mut neighbour = s.script(&request_script(&[at_theirs], true));
    neighbour.owner.clone_from(&theirs.owner);
    neighbour.isolation.network_policy = Some(internal());
    let end = s.run_to_end(&neighbour).await?;
    check(end.exit_code == 0, || {
        format!("a box of the same owner got no answer: {end:?}")
    })?;
    let everything = NetworkPolicy {
        allow_internet: true,
        allowed_egress_cidrs: vec![network_around(at_theirs.ip(), 8)],
        ..internal()
    };
    for policy in [internal(), everything] {
        expect_answers(s, &[at_theirs], Some(policy), false).await?;
    }
    Ok(())
}

/// # Errors
/// When the driver does not meet the requirement.
pub async fn only_opened_ports_are_reachable<D: Runtime + BoxConnector>(s: &Subject<D>) -> Outcome {
    let ports = NetworkPolicy {
        allowed_ingress_ports: vec![IngressPort::try_from(8080)?],
        ..Default::default()
    };
    let server_box = s.run(&server(s, ports)).await?;
    expect_answers(s, &[at(server_box, 8080)], Some(internal()), true).await?;
    expect_answers(s, &[at(server_box, 8081)], Some(internal()), false).await
}
