//! An exec-proxy in its own process: this test binary, started again.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use agentbox_box_protocol::secret::BoxSecret;
use agentbox_box_protocol::{executions, output};
use agentbox_bus::{Bus, BusConfig};
use agentbox_contracts::exec::UsageRequest;
use agentbox_contracts::exec::rpc::GetUsage;
use agentbox_contracts::executions::Execution;
use agentbox_contracts::ids::{EnvironmentId, InstanceId};
use agentbox_contracts::logs::LogEntry;
use agentbox_exec_proxy::boxes::{BoxSpans, Boxes};
use agentbox_exec_proxy::clusters::Cluster;
use agentbox_exec_proxy::config::Limits;
use agentbox_runtime::{BoxConnector, BoxStream, RuntimeError};
use agentbox_testing::NatsEndpoint;
use tokio_util::sync::CancellationToken;

const SECRET: &str = "5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c5c";

pub fn secret_bytes() -> Vec<u8> {
    SECRET.parse::<BoxSecret>().unwrap().bytes().to_vec()
}

/// The directory of a box's output, which outlives the box.
pub fn output_dir(id: &EnvironmentId) -> PathBuf {
    std::env::temp_dir().join(format!("agentbox-exec-proxy-test-{id}"))
}

/// Connects to boxes that are processes of this machine.
struct Localhost;

#[async_trait::async_trait]
impl BoxConnector for Localhost {
    async fn connect(
        &self,
        _id: &EnvironmentId,
        address: SocketAddr,
    ) -> Result<Box<dyn BoxStream>, RuntimeError> {
        let stream = tokio::net::TcpStream::connect(address)
            .await
            .map_err(|error| RuntimeError::Unreachable(error.to_string()))?;
        stream
            .set_nodelay(true)
            .map_err(|error| RuntimeError::Unreachable(error.to_string()))?;
        Ok(Box::new(stream))
    }

    async fn last_output(
        &self,
        id: &EnvironmentId,
        limit_bytes: usize,
    ) -> Result<Vec<LogEntry>, RuntimeError> {
        output::read_newest(&output_dir(id), limit_bytes)
            .map_err(|error| RuntimeError::Unavailable(error.to_string()))
    }

    async fn last_executions(&self, id: &EnvironmentId) -> Result<Vec<Execution>, RuntimeError> {
        Ok(executions::read(&output_dir(id)))
    }

    async fn last_execution_output(&self, id: &EnvironmentId) -> Result<Vec<u8>, RuntimeError> {
        Ok(executions::read_output(&output_dir(id)))
    }
}

/// The process's configuration, passed in its environment.
const URL: &str = "AGENTBOX_TEST_NATS_URL";
const USER: &str = "AGENTBOX_TEST_NATS_USER";
const PASSWORD: &str = "AGENTBOX_TEST_NATS_PASSWORD";
const CLUSTER: &str = "AGENTBOX_TEST_CLUSTER";

pub struct Proxy {
    process: Child,
    /// Closed when the test ends, which ends the process.
    _alive: ChildStdin,
}

impl Proxy {
    pub async fn start(nats: &NatsEndpoint, cluster: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([
                "support::proxy::process",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            .env(URL, &nats.url)
            .env(USER, "exec-proxy")
            .env(PASSWORD, &nats.passwords["exec-proxy"])
            .env(CLUSTER, cluster)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let alive = process.stdin.take().unwrap();
        Self {
            process,
            _alive: alive,
        }
    }

    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// The peak memory use so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until an exec-proxy serves the cluster.
pub async fn wait_until_served(bus: &Bus, cluster: &str) {
    let request = UsageRequest {
        environment: EnvironmentId::random(),
        address: SocketAddr::from(([127, 0, 0, 1], 1)),
    };
    super::eventually("the exec-proxy serves", Duration::from_secs(20), async || {
        let asked = bus.call_cluster::<GetUsage>(cluster, &request, Duration::from_secs(1));
        // Nothing listens at the address: the answer comes from the exec-proxy itself.
        matches!(asked.await, Err(error) if error.code == agentbox_contracts::error::ErrorCode::NotRunning)
    })
    .await;
}

/// Not a test: the process that [`Proxy::start`] starts.
#[test]
#[ignore = "it is the process that the other tests start"]
fn process() {
    let Ok(url) = std::env::var(URL) else { return };
    let setting = |name| std::env::var(name).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async move {
        let bus = Bus::connect(BusConfig {
            url,
            tls_ca: None,
            user: setting(USER),
            password: setting(PASSWORD),
            service: "exec-proxy",
            instance: InstanceId::random(),
        })
        .await
        .unwrap();
        let limits = Limits {
            sessions_per_box: 8,
            session_grace: Duration::from_secs(5),
            ..Limits::default()
        };
        let secret: BoxSecret = SECRET.parse().unwrap();
        let cluster = Cluster {
            name: setting(CLUSTER),
            boxes: Boxes::new(
                Arc::new(Localhost),
                secret,
                limits.clone(),
                BoxSpans::default(),
            ),
        };
        let shutdown = CancellationToken::new();
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        let serving = agentbox_exec_proxy::serve(cluster, limits, bus.clone(), shutdown.clone());
        tokio::pin!(serving);
        let orphaned = tokio::task::spawn_blocking(|| {
            let _ = std::io::read_to_string(std::io::stdin());
        });
        tokio::select! {
            served = &mut serving => served.unwrap(),
            violation = bus.violated() => panic!("NATS refused: {violation}"),
            _ = orphaned => {}
            _ = terminate.recv() => {
                shutdown.cancel();
                serving.await.unwrap();
            }
        }
        bus.close().await;
        // The thread that waits for the test's end would block the runtime's shutdown.
        std::process::exit(0);
    });
}
