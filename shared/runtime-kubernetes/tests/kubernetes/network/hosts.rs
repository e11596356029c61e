//! Where something answers beyond a box: on the node, on this machine, and on another
//! machine behind the node.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use agentbox_testing::TestKubernetes;
use nix::sched::{CloneFlags, setns, unshare};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use crate::cluster::kubernetes;

/// A network namespace.
#[derive(Debug)]
pub struct Network(File);

impl Network {
    /// Gone with the value.
    fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network");
            File::open("/proc/thread-self/ns/net").expect("the network")
        });
        Self(made.join().expect("a network"))
    }

    fn of(pid: u32) -> Self {
        Self(File::open(format!("/proc/{pid}/ns/net")).expect("the process runs"))
    }

    pub fn of_the_machine() -> Self {
        Self::of(std::process::id())
    }

    pub fn of_the_node(kubernetes: &TestKubernetes) -> Self {
        Self::of(kubernetes.system.pids("node")[&0])
    }

    /// Acts in it. A socket that is opened there stays there.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let acting = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("its network is entered");
                act()
            });
            acting.join().expect("it acts")
        })
    }

    /// Runs `ip` in it.
    fn ip(&self, words: &str) {
        let path = std::env::var("PATH").unwrap_or_default();
        let output = self.inside(|| {
            Command::new("ip")
                .args(words.split(' '))
                .env("PATH", format!("{path}:/usr/sbin:/sbin"))
                .output()
                .expect("`ip` is installed")
        });
        assert!(output.status.success(), "ip {words}: {output:?}");
    }
}

/// Every address of a network.
pub const ANY: &str = "::";

/// Answers on one port, over TCP and UDP, and counts.
pub struct Listener {
    pub port: u16,
    heard: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Listener {
    /// On any free port when it is 0. With [`ANY`] UDP is answered from whichever address
    /// the network chooses.
    pub fn on(network: &Network, address: &str, port: u16) -> Self {
        let bind = || {
            let tcp = std::net::TcpListener::bind((address, port))?;
            let port = tcp.local_addr()?.port();
            let udp = std::net::UdpSocket::bind((address, port))?;
            tcp.set_nonblocking(true)?;
            udp.set_nonblocking(true)?;
            Ok::<_, io::Error>((tcp, udp, port))
        };
        let (tcp, udp, port) = network.inside(bind).expect("a free port");
        let tcp = TcpListener::from_std(tcp).expect("a socket");
        let udp = UdpSocket::from_std(udp).expect("a socket");
        let heard = Arc::new(AtomicUsize::new(0));
        let mut serving = JoinSet::new();
        let count = heard.clone();
        serving.spawn(async move {
            while tcp.accept().await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        let count = heard.clone();
        serving.spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = udp.send_to(&buffer[..length], from).await;
            }
        });
        Self {
            port,
            heard,
            _serving: serving,
        }
    }

    /// Connections and datagrams so far.
    pub fn heard(&self) -> usize {
        self.heard.load(Ordering::SeqCst)
    }
}

pub const PUBLIC: &str = "198.51.100.7";
/// The tests' drivers have it in `blocked_egress_cidrs`.
pub const BLOCKED: &str = "203.0.113.7";
pub const PRIVATE: &str = "10.255.77.7";
pub const OTHER_PRIVATE: [&str; 4] = [
    "172.31.77.7",
    "192.168.177.7",
    "100.127.77.7",
    "198.18.77.7",
];
pub const METADATA: &str = "169.254.169.254";

/// A machine with all of these addresses, to which the node routes.
pub fn machine_behind(node: &Network) -> Network {
    let machine = Network::new();
    let there = format!("/proc/{}/fd/{}", std::process::id(), machine.0.as_raw_fd());
    node.ip(&format!(
        "link add elsewhere type veth peer name eth0 netns {there}"
    ));
    node.ip("addr add 192.0.2.1/30 dev elsewhere");
    node.ip("link set elsewhere up");
    for words in [
        "link set lo up",
        "addr add 192.0.2.2/30 dev eth0",
        "link set eth0 up",
        "route add default via 192.0.2.1",
    ] {
        machine.ip(words);
    }
    for address in [PUBLIC, BLOCKED, PRIVATE, METADATA]
        .into_iter()
        .chain(OTHER_PRIVATE)
    {
        machine.ip(&format!("addr add {address}/32 dev lo"));
        node.ip(&format!("route add {address}/32 via 192.0.2.2"));
    }
    machine
}

/// The one behind the tests' cluster.
pub async fn elsewhere() -> &'static Network {
    static ELSEWHERE: OnceCell<Network> = OnceCell::const_new();
    ELSEWHERE
        .get_or_init(|| async { machine_behind(&Network::of_the_node(kubernetes().await)) })
        .await
}

pub fn at(address: &str, listener: &Listener) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), listener.port)
}
