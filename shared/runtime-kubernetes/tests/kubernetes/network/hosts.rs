//! Hosts with listeners for the network tests: the node, the machine of the tests, and a remote
//! machine that the node routes to.

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
pub struct NetworkNamespace(File);

impl NetworkNamespace {
    /// A new namespace, which is deleted with this value.
    fn new() -> Self {
        let created = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            File::open("/proc/thread-self/ns/net").expect("the thread's network namespace")
        });
        Self(created.join().expect("a network namespace"))
    }

    fn of_process(pid: u32) -> Self {
        Self(File::open(format!("/proc/{pid}/ns/net")).expect("the process runs"))
    }

    pub fn of_test_machine() -> Self {
        Self::of_process(std::process::id())
    }

    pub fn of_node(kubernetes: &TestKubernetes) -> Self {
        Self::of_process(kubernetes.system.pids("node")[&0])
    }

    /// Runs `action` in this namespace. A socket that it opens stays in the namespace.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("the namespace is entered");
                action()
            });
            thread.join().expect("the action does not panic")
        })
    }

    /// Runs `ip` in this namespace.
    fn ip(&self, words: &str) {
        let path = std::env::var("PATH").unwrap_or_default();
        let output = self.run(|| {
            Command::new("ip")
                .args(words.split(' '))
                .env("PATH", format!("{path}:/usr/sbin:/sbin"))
                .output()
                .expect("`ip` is installed")
        });
        assert!(output.status.success(), "ip {words}: {output:?}");
    }
}

/// Every address of a host.
pub const ANY: &str = "::";

/// Accepts TCP connections and echoes UDP datagrams on one port, and counts both.
pub struct Listener {
    pub port: u16,
    received: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Listener {
    /// Listens on a port; 0 selects a free one. With [`ANY`] the kernel chooses the source
    /// address of UDP answers.
    pub fn on(network: &NetworkNamespace, address: &str, port: u16) -> Self {
        let bind = || {
            let tcp = std::net::TcpListener::bind((address, port))?;
            let port = tcp.local_addr()?.port();
            let udp = std::net::UdpSocket::bind((address, port))?;
            tcp.set_nonblocking(true)?;
            udp.set_nonblocking(true)?;
            Ok::<_, io::Error>((tcp, udp, port))
        };
        let (tcp, udp, port) = network.run(bind).expect("a free port");
        let tcp = TcpListener::from_std(tcp).expect("a socket");
        let udp = UdpSocket::from_std(udp).expect("a socket");
        let received = Arc::new(AtomicUsize::new(0));
        let mut serving = JoinSet::new();
        let count = received.clone();
        serving.spawn(async move {
            while tcp.accept().await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        let count = received.clone();
        serving.spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = udp.send_to(&buffer[..length], from).await;
            }
        });
        Self {
            port,
            received,
            _serving: serving,
        }
    }

    /// The number of connections and datagrams so far.
    pub fn received(&self) -> usize {
        self.received.load(Ordering::SeqCst)
    }
}

pub const PUBLIC: &str = "198.51.100.7";
/// The drivers of the tests have this address in `blocked_egress_cidrs`.
pub const BLOCKED: &str = "203.0.113.7";
pub const PRIVATE: &str = "10.255.77.7";
pub const OTHER_PRIVATE: [&str; 4] = [
    "172.31.77.7",
    "192.168.177.7",
    "100.127.77.7",
    "198.18.77.7",
];
pub const METADATA: &str = "169.254.169.254";

/// Creates a network namespace with all of these addresses, as a machine that the node routes to.
pub fn create_remote_machine(node: &NetworkNamespace) -> NetworkNamespace {
    let machine = NetworkNamespace::new();
    let namespace = format!("/proc/{}/fd/{}", std::process::id(), machine.0.as_raw_fd());
    node.ip(&format!(
        "link add remote0 type veth peer name eth0 netns {namespace}"
    ));
    node.ip("addr add 192.0.2.1/30 dev remote0");
    node.ip("link set remote0 up");
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

/// The remote machine that the node of the tests' cluster routes to.
pub async fn remote_machine() -> &'static NetworkNamespace {
    static REMOTE_MACHINE: OnceCell<NetworkNamespace> = OnceCell::const_new();
    REMOTE_MACHINE
        .get_or_init(|| async {
            create_remote_machine(&NetworkNamespace::of_node(kubernetes().await))
        })
        .await
}

/// The socket address of a listener at one of its host's addresses.
pub fn socket_address(address: &str, listener: &Listener) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), listener.port)
}
