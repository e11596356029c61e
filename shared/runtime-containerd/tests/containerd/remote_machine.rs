//! Hosts for the network tests: this machine's addresses, a network namespace that acts as a remote
//! machine, and access to a box's network namespace with all rights.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::machine::host;

/// This machine's own address towards the internet.
pub async fn own_address() -> IpAddr {
    let json = host("ip", &["-4", "-j", "route", "get", "203.0.113.1"])
        .await
        .unwrap();
    let routes: serde_json::Value = serde_json::from_str(&json).unwrap();
    routes[0]["prefsrc"].as_str().unwrap().parse().unwrap()
}

/// Runs a program of the host in a box's network namespace, with all rights. A box could do the
/// same if every other defence failed.
pub async fn inside(pid: u32, arguments: &[&str]) -> Result<String, String> {
    let pid = pid.to_string();
    let mut all = vec!["-t", &pid, "-n"];
    all.extend(arguments);
    host("nsenter", &all).await
}

/// Deletes the rules in a box's own network namespace, so that the machine's rules are tested alone.
pub async fn delete_own_rules(pid: u32) -> Result<(), String> {
    let deletion = ["nft", "delete", "table", "inet", "agentbox"];
    inside(pid, &deletion).await.map(drop)
}

/// Connects to a [`RemoteMachine`] from a box's network namespace. The connection stays in that
/// namespace.
pub fn connect_from_box(pid: u32, to: SocketAddr) -> TcpStream {
    let enter_and_connect = move || {
        let network = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
        setns(network, CloneFlags::CLONE_NEWNET).expect("the box's network is entered");
        let connection = TcpStream::connect_timeout(&to, Duration::from_secs(10)).unwrap();
        let wait = Some(Duration::from_secs(5));
        connection.set_read_timeout(wait).unwrap();
        connection
    };
    // The thread ends here, because a thread cannot leave a namespace that it has entered.
    std::thread::spawn(enter_and_connect).join().unwrap()
}

/// Whether the other end of a connection answers within 5 s.
pub fn is_answered(mut connection: &TcpStream) -> bool {
    let sent = connection.write_all(b"GET /status HTTP/1.0\r\n\r\n");
    sent.is_ok() && connection.read(&mut [0]).is_ok_and(|count| count > 0)
}

/// A network namespace with addresses of its own. A box reaches it by a route of the host, like any
/// remote machine.
pub struct RemoteMachine {
    name: String,
    pub address: IpAddr,
    listeners: Vec<tokio::process::Child>,
}

impl RemoteMachine {
    /// Creates the namespace. `tag` is a letter that no other test uses.
    pub async fn new(tag: &str, routes: &[&str]) -> Self {
        let name = format!("abx{tag}{}", std::process::id());
        let (near, far) = (format!("{name}a"), format!("{name}b"));
        let address = format!("198.18.{}.2", tag.bytes().fold(0, u8::wrapping_add));
        let machine = Self {
            name: name.clone(),
            address: address.parse().expect("an address"),
            listeners: Vec::new(),
        };
        let run = |words: String| async move {
            host("ip", &words.split(' ').collect::<Vec<_>>())
                .await
                .unwrap();
        };
        run(format!("netns add {name}")).await;
        let net = format!("198.18.{}", tag.bytes().fold(0, u8::wrapping_add));
        run(format!(
            "link add {near} type veth peer name {far} netns {name}"
        ))
        .await;
        run(format!("addr add {net}.1/30 dev {near}")).await;
        run(format!("link set {near} up")).await;
        run(format!("-n {name} addr add {net}.2/30 dev {far}")).await;
        run(format!("-n {name} link set {far} up")).await;
        run(format!("-n {name} link set lo up")).await;
        run(format!("-n {name} route add default via {net}.1")).await;
        for address in routes {
            run(format!("-n {name} addr add {address}/32 dev lo")).await;
            run(format!("route add {address}/32 via {net}.2")).await;
        }
        machine
    }

    /// A listener of this process in the namespace.
    pub fn bind(&self, port: u16) -> TcpListener {
        let (path, address) = (format!("/run/netns/{}", self.name), self.address);
        let enter_and_bind = move || {
            let network = std::fs::File::open(path).unwrap();
            setns(network, CloneFlags::CLONE_NEWNET).expect("the machine's network is entered");
            TcpListener::bind((address, port)).unwrap()
        };
        // The thread ends here, because a thread cannot leave a namespace that it has entered.
        std::thread::spawn(enter_and_bind).join().unwrap()
    }

    pub async fn listen(&mut self, port: u16) {
        let listener = tokio::process::Command::new("ip")
            .args([
                "netns",
                "exec",
                &self.name,
                "busybox",
                "httpd",
                "-f",
                "-h",
                "/proc/self",
                "-p",
            ])
            .arg(port.to_string())
            .env(
                "PATH",
                format!(
                    "{}:/usr/sbin:/sbin",
                    std::env::var("PATH").unwrap_or_default()
                ),
            )
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.listeners.push(listener);
        let to = SocketAddr::new(self.address, port);
        let up = async {
            while tokio::net::TcpStream::connect(to).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), up)
            .await
            .expect("the server listens");
    }
}

impl Drop for RemoteMachine {
    fn drop(&mut self) {
        // The veth pair and the host's routes are deleted with the namespace.
        for mut listener in self.listeners.drain(..) {
            let _ = listener.start_kill();
        }
        for arguments in [
            vec!["link", "del", &format!("{}a", self.name)],
            vec!["netns", "del", &self.name],
        ] {
            let _ = std::process::Command::new("/usr/sbin/ip")
                .args(arguments)
                .status();
        }
    }
}
