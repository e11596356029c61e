//! A machine outside the network of the boxes, with a name server and a web server: what boxes reach in
//! tests in the place of the internet.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agentbox_testing::ContainerdEndpoint;
use agentbox_testing::tool::{Tool, search_path};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// The only name that its name server knows.
pub const NAME: &str = "remote.example";

const SERVERS: &str = include_str!("remote_machine.py");
const PACKAGES: &str = include_str!("packages.py");
const DEADLINE: Duration = Duration::from_secs(60);

/// 198.19.0.0/16, in a range for tests between networks (RFC 2544). Each machine has four addresses of it.
const NETWORKS: u32 = 0xc613_0000;
/// How many machines one test program has at the same time.
const MACHINES: u32 = 8;
/// The test programs whose addresses differ.
const PROGRAMS: u32 = 2_048;

static STARTED: AtomicU32 = AtomicU32::new(0);

/// A network namespace. It knows no way to a box, so it answers one only if this machine forwards the box's
/// packets under its own address.
pub struct RemoteMachine {
    namespace: String,
    pub address: Ipv4Addr,
    directory: TempDir,
    servers: Option<Child>,
}

impl RemoteMachine {
    pub async fn start() -> Self {
        let (program, number) = (
            std::process::id(),
            STARTED.fetch_add(1, Ordering::Relaxed) % MACHINES,
        );
        let network = NETWORKS + (program % PROGRAMS * MACHINES + number) * 4;
        let (near, far) = (Ipv4Addr::from(network + 1), Ipv4Addr::from(network + 2));
        let mut machine = Self {
            namespace: format!("abxo{program}n{number}"),
            address: far,
            directory: tempfile::tempdir().unwrap(),
            servers: None,
        };
        let (inside, outer) = (&machine.namespace, machine.interface());
        for words in [
            format!("netns add {inside}"),
            format!("link add {outer} type veth peer name eth0 netns {inside}"),
            format!("addr add {near}/30 dev {outer}"),
            format!("link set {outer} up"),
            format!("-n {inside} addr add {far}/30 dev eth0"),
            format!("-n {inside} link set eth0 up"),
        ] {
            Tool::new("ip").args(words.split(' ')).run().await.unwrap();
        }
        machine.servers = Some(machine.serve().await);
        machine
    }

    /// Starts the servers, and waits until they listen. They end with their standard input.
    async fn serve(&self) -> Child {
        let directory = self.directory.path();
        std::fs::write(directory.join("packages.py"), PACKAGES).unwrap();
        std::fs::write(directory.join("remote_machine.py"), SERVERS).unwrap();
        let mut servers = Command::new("ip")
            .args(["netns", "exec", &self.namespace, "python3"])
            .arg(directory.join("remote_machine.py"))
            .arg(self.address.to_string())
            .arg(directory)
            .env("PATH", search_path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(servers.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(DEADLINE, lines.next_line()).await;
        let line = line.expect("the servers listen in time").unwrap();
        assert_eq!(line.as_deref(), Some("listens"));
        servers
    }

    /// This machine's interface to it.
    fn interface(&self) -> String {
        format!("{}a", self.namespace)
    }

    /// A containerd whose boxes ask its name server.
    pub fn resolver_of(&self, containerd: &ContainerdEndpoint) -> ContainerdEndpoint {
        ContainerdEndpoint {
            dns_servers: vec![IpAddr::V4(self.address)],
            ..containerd.clone()
        }
    }

    /// The certificate of its web server, which signs itself.
    pub fn certificate(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("certificate.pem")).unwrap()
    }
}

impl Drop for RemoteMachine {
    fn drop(&mut self) {
        drop(self.servers.take());
        // The other end of the link is deleted with this one.
        for words in [
            ["link", "del", &self.interface()],
            ["netns", "del", &self.namespace],
        ] {
            let _ = std::process::Command::new("ip")
                .args(words)
                .env("PATH", search_path())
                .status();
        }
    }
}
