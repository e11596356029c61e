//! The bounds of a box on what it shares with other boxes. The bounds are those of a whole bridge, so
//! these tests have a containerd of their own.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use agentbox_runtime::conformance::{Subject, Violation, check};
use agentbox_runtime::{BoxSpec, NetworkPolicy, Runtime as _};
use agentbox_runtime_containerd::{Config, Driver};
use agentbox_testing::TestContainerd;
use nix::sched::{CloneFlags, setns};
use tokio::sync::OnceCell;

use crate::machine::{boxd_pid, config_of, host, subject_of};
use crate::remote_machine::{RemoteMachine, connect_from_box, inside};

/// 2 MB a second.
const BITS_PER_SECOND: u64 = 16_000_000;
const CONNECTIONS: usize = 64;

async fn bounded() -> (Config, Subject<Driver>) {
    static CONTAINERD: OnceCell<TestContainerd> = OnceCell::const_new();
    let start = || async { TestContainerd::start().await.expect("containerd starts") };
    let mut config = config_of(&CONTAINERD.get_or_init(start).await.endpoint);
    config.network_bandwidth = Some(BITS_PER_SECOND);
    config.network_connections = Some(CONNECTIONS as u64);
    let subject = subject_of(&config);
    (config, subject)
}

/// A box that reaches every [`RemoteMachine`].
fn open_box(s: &Subject<Driver>) -> BoxSpec {
    let mut spec = s.spec();
    spec.isolation.network_policy = Some(NetworkPolicy {
        allowed_egress_cidrs: vec!["198.18.0.0/15".parse().unwrap()],
        ..Default::default()
    });
    spec
}

/// How long one end takes to send some bytes to the other.
fn transfer(mut from: &TcpStream, mut to: &TcpStream, bytes: usize) -> Duration {
    let begin = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || from.write_all(&vec![0; bytes]).unwrap());
        to.read_exact(&mut vec![0; bytes]).unwrap();
    });
    begin.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn bandwidth_of_a_box_is_bounded_in_both_directions() {
    let (config, s) = bounded().await;
    let remote = RemoteMachine::new("v", &[]).await;
    let outcome = measure_bandwidth(&config, &s, &remote).await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

async fn measure_bandwidth(
    config: &Config,
    s: &Subject<Driver>,
    remote: &RemoteMachine,
) -> Result<(), Violation> {
    const BYTES: usize = 8_000_000;
    let listener = remote.bind(9000);
    let spec = open_box(s);
    s.run(&spec).await?;
    let pid = boxd_pid(&config.deployment, spec.id.as_str());
    let inside = connect_from_box(pid, SocketAddr::new(remote.address, 9000));
    let (outside, _) = listener.accept().unwrap();
    for stream in [&inside, &outside] {
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
    }
    let times = tokio::task::spawn_blocking(move || {
        let sent = transfer(&inside, &outside, BYTES);
        [sent, transfer(&outside, &inside, BYTES)]
    });
    // The bytes of the first second pass at once.
    let shortest = Duration::from_millis(2_500);
    for (direction, took) in ["sent", "received"].into_iter().zip(times.await.unwrap()) {
        check(took >= shortest, || {
            format!("{BYTES} bytes were {direction} in {took:?}")
        })?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn terminals_of_a_box_are_bounded() {
    // The group of a terminal is `tty`, 5, with and without a user namespace.
    const SCRIPT: &str = "
import errno, os
both = os.openpty()
group = os.fstat(both[1]).st_gid
for end in both: os.close(end)
taken = []
try:
    while len(taken) < 1000:
        taken.append(os.open('/dev/ptmx', os.O_RDWR | os.O_NOCTTY))
except OSError as error:
    print(group, len(taken), errno.errorcode[error.errno])
";
    let (_, s) = bounded().await;
    let mut spec = s.spec();
    spec.image.clone_from(&s.python);
    spec.command = Some(["python3", "-c", SCRIPT].map(str::to_owned).to_vec());
    let end = s.run_to_end(&spec).await;
    s.clean().await.unwrap();
    assert_eq!(end.unwrap().output, "5 128 ENOSPC");
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_avoid_routes_give_a_box_no_neighbours() {
    // Without privileges: the interface by a control message, multicast, and link-local addresses.
    const SCRIPT: &str = "
import socket, struct
index = socket.if_nametoindex('eth0')
information = [(socket.IPPROTO_IP, 8, struct.pack('=I8x', index))]
v4 = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
v6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
attempts = [
    lambda i: v4.sendmsg([b'x'], information, socket.MSG_DONTROUTE, (f'198.51.100.{i}', 9)),
    lambda i: v4.sendto(b'x', (f'239.0.0.{i}', 9)),
    lambda i: v6.sendto(b'x', (f'fe80::{i}', 9, 0, index)),
]
for attempt in attempts:
    for i in range(1, 200):
        try:
            attempt(i)
        except OSError:
            pass
";
    let (config, s) = bounded().await;
    let spec = s.spec();
    let neighbours = async {
        s.run(&spec).await?;
        let pid = boxd_pid(&config.deployment, spec.id.as_str());
        let sent = inside(pid, &["python3", "-c", SCRIPT]).await;
        sent.map_err(Violation)?;
        let list = ["ip", "-o", "neigh", "show", "nud", "all"];
        inside(pid, &list).await.map_err(Violation)
    };
    let outcome = neighbours.await;
    s.clean().await.unwrap();
    let listed = outcome.unwrap();
    // Beside the gateway, those of the kernel's own multicast.
    assert!(listed.lines().count() < 20, "{listed}");
}

/// Opens connections from a box's network namespace, all at once. Returns those that were
/// established within 5 s.
fn open_many(pid: u32, to: SocketAddr, count: usize) -> Vec<TcpStream> {
    let enter_and_connect = move || {
        let network = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
        setns(network, CloneFlags::CLONE_NEWNET).expect("the box's network is entered");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let within = Duration::from_secs(5);
            let attempts = std::iter::repeat_with(|| {
                tokio::time::timeout(within, tokio::net::TcpStream::connect(to))
            });
            let outcomes = futures::future::join_all(attempts.take(count)).await;
            let established = outcomes
                .into_iter()
                .filter_map(|outcome| outcome.ok()?.ok());
            established
                .map(|stream| stream.into_std().unwrap())
                .collect()
        })
    };
    // The thread ends here, because a thread cannot leave a namespace that it has entered.
    std::thread::spawn(enter_and_connect).join().unwrap()
}

/// The entries of the machine's connection table that an address has opened.
async fn entries(address: &str) -> usize {
    let listed = host("conntrack", &["-L", "--orig-src", address]).await;
    listed.unwrap().lines().count()
}

/// Accepts connections, and keeps them open until the listener's process ends.
fn keep_accepting(listener: TcpListener) {
    std::thread::spawn(move || {
        let mut accepted = Vec::new();
        while let Ok((stream, _)) = listener.accept() {
            accepted.push(stream);
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_a_box_are_bounded_and_end_with_it() {
    let (config, s) = bounded().await;
    let remote = RemoteMachine::new("w", &[]).await;
    let outcome = count_connections(&config, &s, &remote).await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

async fn count_connections(
    config: &Config,
    s: &Subject<Driver>,
    remote: &RemoteMachine,
) -> Result<(), Violation> {
    keep_accepting(remote.bind(9000));
    let to = SocketAddr::new(remote.address, 9000);
    let (flooding, other) = (open_box(s), open_box(s));
    let address = s.run(&flooding).await?.ip().to_string();
    s.run(&other).await?;
    let pid = boxd_pid(&config.deployment, flooding.id.as_str());
    let flood = move || open_many(pid, to, CONNECTIONS + 1_000);
    let opened = tokio::task::spawn_blocking(flood).await.unwrap();
    let count = opened.len();
    check((CONNECTIONS / 2..=CONNECTIONS).contains(&count), || {
        format!("{count} connections were opened, the bound is {CONNECTIONS}")
    })?;
    let tracked = entries(&address).await;
    check((1..=CONNECTIONS).contains(&tracked), || {
        format!("the connection table has {tracked} entries, the bound is {CONNECTIONS}")
    })?;
    // Another box still gets a connection.
    let pid = boxd_pid(&config.deployment, other.id.as_str());
    drop(connect_from_box(pid, to));
    s.first.remove(&flooding.id).await?;
    let left = entries(&address).await;
    check(left == 0, || {
        format!("the removed box left {left} entries in the connection table")
    })
}
