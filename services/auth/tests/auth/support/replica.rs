//! One replica of auth, its NATS server, and a connection as the gateway.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use agentbox_bus::{Bus, BusConfig};
use agentbox_contracts::error::Error;
use agentbox_contracts::ids::InstanceId;
use agentbox_contracts::rpc::Rpc;
use agentbox_testing::{NatsEndpoint, System, TestNats};

use super::{ADMIN, ADMIN_PASSWORD};

/// The deployment's secret: the same on every replica.
const SECRET: &str = "a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7a7";
const START_DEADLINE: Duration = Duration::from_secs(60);
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// A part of the message of a call that got no connection to Postgres within 2 s.
const NO_CONNECTION: &str = "the database cannot be reached";
/// The connections of a replica to Postgres.
pub const CONNECTIONS: usize = 8;

pub struct Replica {
    process: Child,
    port: u16,
    _port_lock: File,
    admin_url: String,
    log: PathBuf,
    /// A connection as the gateway.
    bus: Bus,
    nats: NatsEndpoint,
    _system: System,
    /// Whether calls are repeated that got no connection to Postgres: if it runs, that is a machine that
    /// stalls.
    pub is_patient: bool,
}

/// Reserves a free port below the range of ephemeral ports. Like those of `agentbox-local`, it is locked by
/// a file until that is closed, so no other test takes it before the replica listens.
fn reserve_port() -> (u16, File) {
    let user = std::fs::metadata("/proc/self").unwrap().uid();
    let directory = std::env::temp_dir().join(format!("agentbox-ports-{user}"));
    std::fs::create_dir_all(&directory).unwrap();
    loop {
        let port = 20_000 + rand::random::<u16>() % 10_000;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join(port.to_string()))
            .unwrap();
        if file.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return (port, file);
        }
    }
}

async fn connect(nats: &NatsEndpoint, service: &'static str) -> Bus {
    Bus::connect(BusConfig {
        url: nats.url.clone(),
        tls_ca: nats.tls_ca.clone(),
        user: service.to_owned(),
        password: nats.passwords[service].clone(),
        service,
        instance: InstanceId::random(),
    })
    .await
    .unwrap()
}

/// Starts the program. Its log is appended to `log`.
fn spawn_process(
    nats: &NatsEndpoint,
    port: u16,
    log: &Path,
    database_url: &str,
    environment: &[(&str, &str)],
) -> Child {
    let output = File::options().create(true).append(true).open(log).unwrap();
    let has_file = environment
        .iter()
        .any(|(name, _)| *name == "AGENTBOX_ADMIN_PASSWORD_FILE");
    let password = (!has_file).then_some(("AGENTBOX_ADMIN_PASSWORD", ADMIN_PASSWORD));
    // Killed with the test, however the test ends.
    Command::new("setpriv")
        .args([
            "--pdeathsig",
            "KILL",
            "--",
            env!("CARGO_BIN_EXE_agentbox-auth"),
        ])
        .env("AGENTBOX_NATS_URL", &nats.url)
        .env("AGENTBOX_NATS_USER", "auth")
        .env("AGENTBOX_NATS_PASSWORD", &nats.passwords["auth"])
        .env("AGENTBOX_ADMIN_LISTEN", format!("127.0.0.1:{port}"))
        .env("AGENTBOX_LOG", "debug,sqlx=info,sea_orm=info")
        .env("AGENTBOX_DATABASE_URL", database_url)
        .env("AGENTBOX_DATABASE_CONNECTIONS", CONNECTIONS.to_string())
        .env("AGENTBOX_AUTH_SECRET", SECRET)
        .env("AGENTBOX_ADMIN_USERNAME", ADMIN)
        .envs(password)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap()
}

impl Replica {
    /// Starts a replica and waits until it is ready.
    pub async fn start(database_url: &str, environment: &[(&str, &str)]) -> Self {
        let mut replica = Self::spawn(database_url, environment).await;
        replica.wait_ready().await;
        replica
    }

    /// Starts a replica that must refuse to start. Returns its log.
    pub async fn start_refused(database_url: &str, environment: &[(&str, &str)]) -> String {
        let mut replica = Self::spawn(database_url, environment).await;
        let status = replica.wait_end(START_DEADLINE).await;
        assert!(!status.success(), "{}", replica.log());
        replica.log()
    }

    async fn spawn(database_url: &str, environment: &[(&str, &str)]) -> Self {
        let (system, nats) = TestNats::own().await.unwrap();
        let (port, port_lock) = reserve_port();
        let name = format!("agentbox-auth-test-{}.log", InstanceId::random());
        let log = std::env::temp_dir().join(name);
        let process = spawn_process(&nats, port, &log, database_url, environment);
        let bus = connect(&nats, "api-gateway").await;
        let admin_url = format!("http://127.0.0.1:{port}");
        Self {
            process,
            port,
            _port_lock: port_lock,
            admin_url,
            log,
            bus,
            nats,
            _system: system,
            is_patient: true,
        }
    }

    /// Kills the replica (SIGKILL), starts it again on the same NATS server, and waits until it is
    /// ready.
    pub async fn restart_after_kill(&mut self, database_url: &str) {
        self.kill();
        self.process = spawn_process(&self.nats, self.port, &self.log, database_url, &[]);
        self.wait_ready().await;
    }

    /// Runs the command that verifies the audit trail. Returns whether it succeeded, and its log.
    pub fn verify_audit(&self, database_url: &str) -> (bool, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_agentbox-auth"))
            .arg("--verify-audit")
            .env("AGENTBOX_NATS_URL", &self.nats.url)
            .env("AGENTBOX_NATS_USER", "auth")
            .env("AGENTBOX_NATS_PASSWORD", &self.nats.passwords["auth"])
            .env("AGENTBOX_ADMIN_LISTEN", "127.0.0.1:0")
            .env("AGENTBOX_DATABASE_URL", database_url)
            .env("AGENTBOX_DATABASE_CONNECTIONS", "1")
            .env("AGENTBOX_AUTH_SECRET", SECRET)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let log = [output.stdout, output.stderr].concat();
        let log = String::from_utf8_lossy(&log).into_owned();
        (output.status.success(), log)
    }

    async fn wait_end(&mut self, within: Duration) -> ExitStatus {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "auth does not end\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn wait_ready(&mut self) {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if self.is_ready().await {
                return;
            }
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none(), "auth ended: {ended:?}\n{}", self.log());
            assert!(
                Instant::now() < deadline,
                "auth is not ready\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether `/health/ready` succeeds.
    pub async fn is_ready(&self) -> bool {
        let url = format!("{}/health/ready", self.admin_url);
        reqwest::get(url)
            .await
            .is_ok_and(|answer| answer.status().is_success())
    }

    /// Calls a method as the gateway.
    pub async fn call<R: Rpc>(&self, request: R::Request) -> Result<R::Reply, Error> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let outcome = self.bus.call::<R>(&request, CALL_DEADLINE).await;
            let is_unserved = outcome
                .as_ref()
                .is_err_and(|error| error.message.contains(NO_CONNECTION));
            if !is_unserved || !self.is_patient || Instant::now() > deadline {
                return outcome;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A connection to this replica's NATS server as another service.
    pub async fn bus_of(&self, service: &'static str) -> Bus {
        connect(&self.nats, service).await
    }

    /// The environment of the process.
    pub fn environment(&self) -> String {
        let bytes = std::fs::read(format!("/proc/{}/environ", self.process.id())).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The whole log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// The sum over a counter's lines that contain `label`.
    pub async fn metric(&self, name: &str, label: &str) -> u64 {
        let url = format!("{}/metrics", self.admin_url);
        let text = reqwest::get(url).await.unwrap().text().await.unwrap();
        text.lines()
            .filter(|line| line.starts_with(name) && line.contains(label))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// SIGTERM; waits until it has stopped in order.
    pub async fn stop(&mut self) {
        let pid = self.process.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        let status = self.wait_end(Duration::from_secs(20)).await;
        assert!(status.success(), "{status:?}\n{}", self.log());
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            // A failed assertion can rarely be explained without the log.
            eprintln!("auth's log: {}", self.log.display());
        } else {
            let _ = std::fs::remove_file(&self.log);
        }
    }
}
