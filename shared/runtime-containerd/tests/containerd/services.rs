//! A box reaches no service of the machine under any policy: a real NATS, a real Postgres, and a
//! listener on every address; also over IPv6.

use std::net::IpAddr;
use std::time::Duration;

use agentbox_runtime::NetworkPolicy;
use agentbox_runtime::conformance::hostile::{all_refused, python};
use agentbox_runtime::conformance::{Subject, Violation, check};
use agentbox_runtime_containerd::{Config, Driver};
use agentbox_testing::{TestNats, TestPostgres, eventually};
use tokio::net::{TcpListener, TcpStream};

use crate::machine::{boxd_pid, config, host, subject};
use crate::remote_machine::{delete_own_rules, inside, own_address};

/// Connects to each address of the machine on each port.
const CONNECT: &str = "
import socket

def connect(address, port):
    def run():
        with socket.create_connection((address, port), 2): pass
    return run

for address in os.environ['ADDRESSES'].split():
    for port in os.environ['PORTS'].split():
        attempt(f'{address} {port}', connect(address, int(port)))
print('done', flush=True)
";

const REFUSALS: [&str; 4] = ["EHOSTUNREACH", "ENETUNREACH", "ECONNREFUSED", "EINVAL"];

/// Every IPv4 address of the machine, except those of other test instances' networks, which may
/// disappear during the test.
async fn own_addresses(bridge: &str) -> Vec<IpAddr> {
    let json = host("ip", &["-4", "-j", "addr", "show"]).await.unwrap();
    let interfaces: serde_json::Value = serde_json::from_str(&json).unwrap();
    let stable = interfaces.as_array().unwrap().iter().filter(|interface| {
        let name = interface["ifname"].as_str().unwrap_or_default();
        name == bridge || !name.starts_with("abx")
    });
    let addresses = stable.flat_map(|interface| {
        interface["addr_info"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    });
    addresses
        .filter_map(|address| address["local"].as_str()?.parse().ok())
        .collect()
}

fn port_of(url: &str) -> u16 {
    let port = url.rsplit(':').next().unwrap();
    port.trim_end_matches('/').parse().unwrap()
}

/// Checks that no box reaches a service of the machine.
async fn check_services_unreachable(s: &Subject<Driver>) -> Result<(), Violation> {
    let nats = TestNats::shared().await.unwrap();
    let postgres = TestPostgres::start().await.unwrap();
    // Stands for the admin port of a service, which listens on every address.
    let admin = TcpListener::bind("[::]:0").await.unwrap();
    let admin_port = admin.local_addr().unwrap().port();
    let ports = [port_of(&nats.url), postgres.endpoint.port, admin_port];
    // The controls: the machine itself reaches each of them.
    for port in ports {
        TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    }
    let config = config().await;
    let addresses = own_addresses(&config.bridge).await;
    for address in &addresses {
        TcpStream::connect((*address, admin_port)).await.unwrap();
    }
    let gateway: IpAddr = config.subnet.hosts().next().unwrap().into();
    let own = own_address().await;
    check(
        addresses.contains(&gateway) && addresses.contains(&own),
        || format!("{addresses:?}"),
    )?;
    let mut spec = python(s, CONNECT);
    let words = |words: Vec<String>| words.join(" ");
    spec.env.insert(
        "ADDRESSES".to_owned(),
        words(addresses.iter().map(ToString::to_string).collect()),
    );
    spec.env.insert(
        "PORTS".to_owned(),
        words(ports.iter().map(ToString::to_string).collect()),
    );
    for policy in [
        None,
        Some(NetworkPolicy {
            allow_internet: true,
            allowed_egress_cidrs: vec!["0.0.0.0/0".parse().unwrap()],
            allow_cluster_internal: true,
            ..Default::default()
        }),
    ] {
        let mut spec = spec.clone();
        spec.id = s.spec().id;
        spec.isolation.network_policy = policy;
        let end = s.run_to_end(&spec).await?;
        all_refused(&end, &REFUSALS, addresses.len() * ports.len())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_services_are_unreachable_at_every_address() {
    let s = subject().await;
    let outcome = check_services_unreachable(&s).await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

/// Checks that a box does not reach the machine over IPv6, even with all rights in its network
/// namespace and with an address in a subnet of the machine.
async fn check_unreachable_over_ipv6(
    config: &Config,
    s: &Subject<Driver>,
) -> Result<(), Violation> {
    let spec = s.spec();
    s.run(&spec).await?;
    let pid = boxd_pid(&config.deployment, spec.id.as_str());
    delete_own_rules(pid).await.map_err(Violation)?;
    let listener = TcpListener::bind("[::]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let net = format!("fd77:{:x}", std::process::id() & 0xffff);
    let (near, far) = (format!("{net}::1"), format!("{net}::2/64"));
    let with_length = format!("{near}/64");
    let arguments = [
        "-6",
        "addr",
        "add",
        &with_length,
        "dev",
        &config.bridge,
        "nodad",
    ];
    host("ip", &arguments).await.map_err(Violation)?;
    let attempts = async {
        inside(
            pid,
            &["ip", "-6", "addr", "add", &far, "dev", "eth0", "nodad"],
        )
        .await
        .map_err(Violation)?;
        // The control: the machine itself reaches its listener. The kernel adds the route to a new
        // address after `ip` has ended.
        eventually(
            "the machine reaches its address",
            Duration::from_secs(10),
            async || TcpStream::connect((near.as_str(), port)).await.is_ok(),
        )
        .await;
        // An established connection stays until `timeout` ends it, with 124 or 143.
        let port = port.to_string();
        let connect = format!("timeout 6 busybox nc -w 2 {near} {port}; [ $? -eq 1 ]");
        let refused = inside(pid, &["sh", "-c", &connect]).await;
        refused.map_err(Violation)?;
        let pinged = inside(
            pid,
            &[
                "busybox", "ping", "-c", "1", "-W", "2", "-I", "eth0", "ff02::1",
            ],
        );
        // The multicast address of all nodes: only the box's own interface may answer.
        let answers = pinged.await.unwrap_or_default();
        check(!answers.contains(&near), || answers.clone())?;
        let neighbours = inside(pid, &["ip", "-6", "neigh", "show", &near]).await;
        let neighbours = neighbours.unwrap_or_default();
        check(!neighbours.contains("lladdr"), || {
            format!("the machine was found: {neighbours}")
        })
    };
    let outcome = attempts.await;
    let arguments = ["-6", "addr", "del", &with_length, "dev", &config.bridge];
    host("ip", &arguments).await.map_err(Violation)?;
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_is_unreachable_over_ipv6_from_a_neighbouring_address() {
    let (config, s) = (config().await, subject().await);
    let outcome = check_unreachable_over_ipv6(&config, &s).await;
    s.clean().await.unwrap();
    outcome.unwrap();
}
