//! Destinations on the machine that a box must not reach, each with a listener. Packets that a
//! box must not send are tested from inside its network namespace.

use std::net::{IpAddr, SocketAddr};

use agentbox_runtime::NetworkPolicy;
use agentbox_runtime::conformance::network::destinations::{
    Destinations, destinations_are_open_to_exactly_the_allowing_policies,
};
use agentbox_runtime::conformance::{Subject, Violation, check};
use agentbox_runtime_containerd::{Config, Driver};
use tokio::net::TcpListener;

use crate::machine::{another_config, boxd_pid, config, host, nft_element, subject, subject_of};
use crate::remote_machine::{
    RemoteMachine, connect_from_box, delete_own_rules, inside, is_answered, own_address,
};

/// A policy that opens everything that a request can.
fn wide_open() -> NetworkPolicy {
    NetworkPolicy {
        allow_internet: true,
        allowed_egress_cidrs: vec!["0.0.0.0/0".parse().unwrap()],
        allow_cluster_internal: true,
        ..Default::default()
    }
}

/// Whether a box with the policy gets a TCP connection.
async fn connects(
    s: &Subject<Driver>,
    policy: Option<NetworkPolicy>,
    to: SocketAddr,
) -> Result<bool, Violation> {
    let mut spec = s.script(&format!(
        "timeout 6 nc -w 2 {} {} </dev/null",
        to.ip(),
        to.port()
    ));
    spec.isolation.network_policy = policy;
    let end = s.run_to_end(&spec).await?;
    check(end.exit_code <= 1, || format!("{end:?}"))?;
    Ok(end.exit_code == 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn machine_ports_are_closed_under_every_policy() {
    let (config, s) = (config().await, subject().await);
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let gateway: IpAddr = config.subnet.hosts().next().unwrap().into();
    let own = own_address().await;
    // The control: the machine itself reaches both.
    for address in [gateway, own] {
        tokio::net::TcpStream::connect((address, port))
            .await
            .unwrap();
    }
    for address in [gateway, own] {
        for policy in [None, Some(wide_open())] {
            let reached = connects(&s, policy.clone(), SocketAddr::new(address, port)).await;
            assert!(!reached.unwrap(), "{address} with {policy:?}");
        }
    }
    s.clean().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_destination_is_open_to_exactly_the_allowing_policies() {
    const ADDRESSES: [&str; 8] = [
        "198.51.100.7",
        "203.0.113.7",
        "10.255.77.7",
        "169.254.169.254",
        "172.31.77.7",
        "192.168.177.7",
        "100.127.77.7",
        "198.18.77.7",
    ];
    let mut remote = RemoteMachine::new("d", &ADDRESSES).await;
    remote.listen(8080).await;
    let at = ADDRESSES.map(|address| SocketAddr::new(address.parse().unwrap(), 8080));
    // The control: each answers the machine itself.
    for to in at {
        tokio::net::TcpStream::connect(to).await.unwrap();
    }
    let [public, blocked, private, metadata, ref other_private @ ..] = at;
    let destinations = Destinations {
        public,
        blocked,
        private,
        other_private: other_private.to_vec(),
        metadata,
    };
    let mut config = config().await;
    config.blocked_egress_cidrs = vec![blocked.ip().into()];
    let s = subject_of(&config);
    let outcome = destinations_are_open_to_exactly_the_allowing_policies(&s, &destinations).await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn box_with_forged_address_is_blocked_at_its_port() {
    let (config, s) = (config().await, subject().await);
    let outcome = forged(&config, &s).await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

async fn forged(config: &Config, s: &Subject<Driver>) -> Result<(), Violation> {
    let sender = s.spec();
    let own = s.run(&sender).await?;
    let victim = s.spec();
    let victim_address = s.run(&victim).await?.ip().to_string();
    let pid = boxd_pid(&config.deployment, sender.id.as_str());
    let gateway = config.subnet.hosts().next().unwrap().to_string();
    let ping = |from: String| {
        let gateway = gateway.clone();
        async move {
            inside(
                pid,
                &[
                    "busybox", "arping", "-f", "-w", "5", "-I", "eth0", "-s", &from, &gateway,
                ],
            )
            .await
        }
    };
    // The control: ARP from the box's own address is answered.
    ping(own.ip().to_string()).await.map_err(Violation)?;

    // A free address of the subnet, and the victim's.
    let free = config.subnet.hosts().last().unwrap().to_string();
    for forged in [free.clone(), victim_address.clone()] {
        inside(
            pid,
            &["ip", "addr", "add", &format!("{forged}/20"), "dev", "eth0"],
        )
        .await
        .map_err(Violation)?;
        let answered = ping(forged.clone()).await.is_ok();
        check(!answered, || format!("ARP as {forged} was answered"))?;
    }
    // The machine still knows the victim by the victim's own hardware address.
    let neighbours = host("ip", &["neigh", "show", &victim_address])
        .await
        .map_err(Violation)?;
    let mac = std::fs::read_to_string(format!("/proc/{pid}/net/arp")).unwrap_or_default();
    check(!mac.is_empty(), || "no ARP table".to_owned())?;
    let own_mac = inside(pid, &["cat", "/sys/class/net/eth0/address"])
        .await
        .unwrap_or_default();
    check(
        own_mac.trim().is_empty() || !neighbours.contains(own_mac.trim()),
        || neighbours.clone(),
    )?;

    // With another hardware address no packet passes, not even from the box's own IP address.
    inside(
        pid,
        &["ip", "link", "set", "eth0", "address", "02:00:00:00:be:ef"],
    )
    .await
    .map_err(Violation)?;
    let answered = ping(own.ip().to_string()).await.is_ok();
    check(!answered, || {
        "a forged hardware address was answered".to_owned()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn box_does_not_receive_frames_of_another_box() {
    let (config, s) = (config().await, subject().await);
    let outcome = frames(&config, &s).await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

async fn frames(config: &Config, s: &Subject<Driver>) -> Result<(), Violation> {
    let mut internal = s.spec();
    internal.isolation.network_policy = Some(NetworkPolicy {
        allow_cluster_internal: true,
        ..Default::default()
    });
    let one = internal.clone();
    s.run(&one).await?;
    let mut other = s.spec();
    other.isolation.network_policy = one.isolation.network_policy.clone();
    let other_address = s.run(&other).await?.ip().to_string();
    let pid = boxd_pid(&config.deployment, one.id.as_str());
    let other_pid = boxd_pid(&config.deployment, other.id.as_str());
    // ARP for the other box is answered by the machine, with the bridge's address.
    let answer = inside(
        pid,
        &[
            "busybox",
            "arping",
            "-f",
            "-w",
            "5",
            "-I",
            "eth0",
            &other_address,
        ],
    )
    .await
    .map_err(Violation)?;
    let mac_of = |path: String| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let bridge = mac_of(format!("/sys/class/net/{}/address", config.bridge));
    check(answer.to_lowercase().contains(&bridge), || {
        format!("{bridge} is not in {answer}")
    })?;
    // A frame straight to the other's hardware address does not arrive. A box has no route for one, and
    // rules that refuse it.
    let subnet = config.subnet.to_string();
    delete_own_rules(pid).await.map_err(Violation)?;
    inside(pid, &["ip", "route", "add", &subnet, "dev", "eth0"])
        .await
        .map_err(Violation)?;
    let show = inside(other_pid, &["ip", "-o", "link", "show", "eth0"])
        .await
        .map_err(Violation)?;
    let other_mac = show
        .split(' ')
        .skip_while(|word| *word != "link/ether")
        .nth(1)
        .unwrap_or("")
        .to_owned();
    check(other_mac.contains(':'), || show.clone())?;
    inside(
        pid,
        &[
            "ip",
            "neigh",
            "replace",
            &other_address,
            "lladdr",
            &other_mac,
            "dev",
            "eth0",
        ],
    )
    .await
    .map_err(Violation)?;
    let pinged = inside(
        pid,
        &["busybox", "ping", "-c", "1", "-W", "2", &other_address],
    )
    .await;
    check(pinged.is_err(), || {
        format!("a frame went from box to box: {pinged:?}")
    })?;
    // A frame by way of the machine arrives.
    inside(pid, &["ip", "neigh", "del", &other_address, "dev", "eth0"])
        .await
        .map_err(Violation)?;
    inside(
        pid,
        &["busybox", "ping", "-c", "1", "-W", "5", &other_address],
    )
    .await
    .map_err(Violation)?;
    Ok(())
}

/// Whether a box's network namespace can connect to an address.
async fn can_connect(pid: u32, to: SocketAddr) -> bool {
    let (ip, port) = (to.ip().to_string(), to.port().to_string());
    inside(pid, &["busybox", "nc", "-w", "5", &ip, &port])
        .await
        .is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn box_without_rules_reaches_nothing() {
    // A deployment of its own, because the watcher of another test would restore the rules.
    let config = another_config().await;
    let s = subject_of(&config);
    let mut remote = RemoteMachine::new("n", &["198.51.100.9"]).await;
    remote.listen(8080).await;
    let to: SocketAddr = "198.51.100.9:8080".parse().unwrap();
    let spec = s.spec();
    let address = s.run(&spec).await.unwrap().ip();
    let pid = boxd_pid(&config.deployment, spec.id.as_str());
    let open = can_connect(pid, to).await;
    let connections = [(); 2].map(|()| connect_from_box(pid, to));
    let answered = is_answered(&connections[0]);
    nft_element("delete", &config, address).await.unwrap();
    let still_open = can_connect(pid, to).await;
    let still_answered = is_answered(&connections[1]);
    s.clean().await.unwrap();
    assert!(
        open && answered,
        "the control: the box does not reach the remote machine"
    );
    assert!(!still_open, "a box without rules opened a connection");
    assert!(
        !still_answered,
        "a box without rules used an open connection"
    );
}

/// Adds a bridge port like a box's, with a very low hardware address.
async fn attach(bridge: &str, port: &str, number: u8) {
    let address = format!("02:00:00:00:00:{number:02x}");
    let words = [
        "link", "add", port, "address", &address, "master", bridge, "type", "veth",
    ];
    host("ip", &words).await.unwrap();
}

async fn delete_link(name: &str) {
    host("ip", &["link", "delete", name]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn box_network_survives_other_boxes_starting_and_ending() {
    let (config, s) = (config().await, subject().await);
    let [one, other] = ["p", "q"].map(|tag| format!("abx{tag}{}", std::process::id()));
    let mut remote = RemoteMachine::new("k", &["198.51.100.10"]).await;
    remote.listen(8080).await;
    let to: SocketAddr = "198.51.100.10:8080".parse().unwrap();
    let spec = s.spec();
    s.run(&spec).await.unwrap();
    let pid = boxd_pid(&config.deployment, spec.id.as_str());
    // A bridge without a hardware address of its own takes the lowest of its ports' addresses.
    attach(&config.bridge, &other, 2).await;
    let connection = connect_from_box(pid, to);
    attach(&config.bridge, &one, 1).await;
    delete_link(&other).await;
    let answered = is_answered(&connection);
    let connects_again = can_connect(pid, to).await;
    delete_link(&one).await;
    s.clean().await.unwrap();
    assert!(answered, "the open connection was lost");
    assert!(connects_again, "no new connection was possible");
}
