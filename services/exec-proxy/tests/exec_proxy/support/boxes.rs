//! Boxes: each a real boxd, as a plain process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use agentbox_box_protocol::token::BoxToken;
use agentbox_box_protocol::variables;
use agentbox_contracts::ids::EnvironmentId;

use super::{eventually, proxy};

/// The static boxd; panics when it was not built.
fn boxd() -> PathBuf {
    let path = agentbox_testing::boxd();
    assert!(
        path.is_file(),
        "{} is missing: `make boxd` builds it",
        path.display()
    );
    path
}

const START_DEADLINE: Duration = Duration::from_secs(10);

/// A loopback address that no other box of any test process uses.
fn own_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // boxd's own tests use those below 127.200.
    let ip = Ipv4Addr::new(127, 200 + high % 50, low, number);
    SocketAddr::new(IpAddr::V4(ip), variables::DEFAULT_PORT)
}

pub struct TestBox {
    pub id: EnvironmentId,
    pub address: SocketAddr,
    process: Child,
    scratch: tempfile::TempDir,
}

impl TestBox {
    /// A box that idles.
    pub async fn idle() -> Self {
        Self::start(&[]).await
    }

    /// A box whose main command is `sh -c script`.
    pub async fn running(script: &str) -> Self {
        Self::start(&["--", "sh", "-c", script]).await
    }

    async fn start(command: &[&str]) -> Self {
        let id = EnvironmentId::random();
        let address = own_address();
        let scratch = tempfile::tempdir().unwrap();
        let output = proxy::output_dir(&id);
        std::fs::create_dir_all(&output).unwrap();
        let token = BoxToken::derive(&proxy::secret_bytes(), &id).unwrap();
        let process = Command::new(boxd())
            .arg("run")
            .args(command)
            .env(variables::TOKEN, token.expose())
            .env(variables::LISTEN, address.to_string())
            .env(variables::OUTPUT_DIR, &output)
            .env(variables::TERMINATION_FILE, output.join("termination.json"))
            .current_dir(scratch.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut this = Self {
            id,
            address,
            process,
            scratch,
        };
        let process = &mut this.process;
        eventually(
            "boxd listens, or has ended with its command",
            START_DEADLINE,
            async || {
                tokio::net::TcpStream::connect(address).await.is_ok()
                    || process.try_wait().unwrap().is_some()
            },
        )
        .await;
        this
    }

    /// A path that commands in the box can write to and the test can read.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Waits for the number that a command writes to `name`.
    pub async fn number(&self, name: &str) -> u32 {
        let path = self.path(name);
        let mut number = None;
        eventually(
            "the command writes its number",
            Duration::from_secs(10),
            async || {
                number = std::fs::read_to_string(&path)
                    .ok()
                    .and_then(|text| text.strip_suffix('\n').and_then(|text| text.parse().ok()));
                number.is_some()
            },
        )
        .await;
        number.unwrap()
    }

    /// Sends SIGKILL: nothing in the box can close its connections first.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Sends SIGTERM, as a runtime does.
    pub fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    pub async fn ended(&mut self) {
        let process = &mut self.process;
        eventually("boxd ends", Duration::from_secs(15), async || {
            process.try_wait().unwrap().is_some()
        })
        .await;
    }
}

impl Drop for TestBox {
    fn drop(&mut self) {
        // SIGTERM lets boxd kill its commands, which are not in a PID namespace here.
        if self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.terminate();
            for _ in 0..200 {
                if self.process.try_wait().is_ok_and(|ended| ended.is_some()) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
        let _ = std::fs::remove_dir_all(proxy::output_dir(&self.id));
    }
}
