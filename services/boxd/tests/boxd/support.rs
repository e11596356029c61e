//! A test's boxd process, and runs in it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use agentbox_box_protocol::client::{BoxClient, connect, start_http2};
use agentbox_box_protocol::proto::{self, run_input, run_output};
use agentbox_box_protocol::tls;
use agentbox_box_protocol::token::BoxToken;
use agentbox_box_protocol::variables;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

pub const TOKEN: &str = "token-of-the-test-box";

pub fn token() -> BoxToken {
    BoxToken::parse(TOKEN).unwrap()
}

/// The deadline of every wait, long enough for a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Polls until `condition` holds; panics with `expected` after the deadline.
pub async fn eventually(expected: &str, condition: impl AsyncFnMut() -> bool) {
    agentbox_testing::eventually(expected, DEADLINE, condition).await;
}

pub fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, fields)| !fields.starts_with('Z'))
}

#[derive(Default)]
pub struct Setup {
    pub main: Vec<String>,
    pub variables: Vec<(String, String)>,
    /// The program and arguments that start boxd: `unshare …`.
    pub wrapper: Vec<String>,
    pub no_output_dir: bool,
    pub stdout: Option<Stdio>,
}

pub struct TestBox {
    /// The process of boxd, or of its wrapper.
    pub process: Child,
    pub address: SocketAddr,
    pub dir: tempfile::TempDir,
}

/// A loopback address that no other box of any test process uses.
fn own_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(
        127,
        100 + high % 100,
        low,
        NEXT.fetch_add(1, Ordering::Relaxed),
    );
    SocketAddr::new(IpAddr::V4(ip), variables::DEFAULT_PORT)
}

/// The static build that the environment names, else this build's.
fn program() -> String {
    std::env::var("AGENTBOX_BOXD").unwrap_or_else(|_| env!("CARGO_BIN_EXE_boxd").to_owned())
}

impl TestBox {
    pub async fn idle() -> (Self, BoxClient) {
        Self::start(Setup::default()).await
    }

    /// A box whose main command is `sh -c script`.
    pub async fn main(script: &str) -> (Self, BoxClient) {
        Self::start(Setup {
            main: shell(script),
            ..Setup::default()
        })
        .await
    }

    pub async fn start(setup: Setup) -> (Self, BoxClient) {
        let this = Self::launch(setup);
        let client = this.client().await;
        (this, client)
    }

    /// Starts boxd without waiting until it serves.
    pub fn launch(setup: Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("output")).unwrap();
        let address = own_address();
        let mut words = setup.wrapper;
        words.push(program());
        words.push("run".to_owned());
        if !setup.main.is_empty() {
            words.push("--".to_owned());
            words.extend(setup.main);
        }
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env(variables::TOKEN, TOKEN)
            .env(variables::LISTEN, address.to_string())
            .env(variables::TERMINATION_FILE, dir.path().join("termination"))
            .envs(setup.variables)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(setup.stdout.unwrap_or_else(Stdio::null));
        if !setup.no_output_dir {
            command.env(variables::OUTPUT_DIR, dir.path().join("output"));
        }
        Self {
            process: command.spawn().unwrap(),
            address,
            dir,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn output_dir(&self) -> PathBuf {
        self.path("output")
    }

    pub async fn client(&self) -> BoxClient {
        connect(self.stream().await, &token()).await.unwrap()
    }

    /// A client that knows the box's key, and sends this token in its calls.
    pub async fn client_with_token(&self, sent: &str) -> BoxClient {
        let encrypted = tls::connect(self.stream().await, &token()).await.unwrap();
        start_http2(encrypted, &BoxToken::parse(sent).unwrap())
            .await
            .unwrap()
    }

    /// A connection to boxd, as soon as it listens.
    pub async fn stream(&self) -> tokio::net::TcpStream {
        let deadline = Instant::now() + DEADLINE;
        let stream = loop {
            match tokio::net::TcpStream::connect(self.address).await {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "boxd never listens: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// A client, and a task: aborting the task closes the connection.
    pub async fn abortable_client(&self) -> (BoxClient, tokio::task::JoinHandle<()>) {
        let (client_end, mut relay_end) = tokio::io::duplex(64 * 1024);
        let mut stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let relay = tokio::spawn(async move {
            let _ = tokio::io::copy_bidirectional(&mut relay_end, &mut stream).await;
        });
        (connect(client_end, &token()).await.unwrap(), relay)
    }

    /// The process id of boxd itself, in the test's namespace.
    pub fn boxd_pid(&self) -> i32 {
        let own = i32::try_from(self.process.id()).unwrap();
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
        let name = std::fs::read_to_string(format!("/proc/{own}/comm")).unwrap();
        if name.trim() == "boxd" {
            return own;
        }
        children
            .unwrap()
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.boxd_pid()), signal).unwrap();
    }

    pub async fn exit_code(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("boxd ends", async || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap().code()
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.boxd_pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for TestBox {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        // SIGTERM lets boxd kill its runs: they may not be in a PID namespace here.
        let _ = kill(Pid::from_raw(self.boxd_pid()), Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(4);
        while Instant::now() < deadline
            && self.process.try_wait().is_ok_and(|ended| ended.is_none())
        {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).to_vec()
}

/// `sh -c script`, with a run id of its own.
pub fn sh(script: &str) -> proto::StartCommand {
    start(&["sh", "-c", script])
}

pub fn start(command: &[&str]) -> proto::StartCommand {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    proto::StartCommand {
        run_id: format!("run-{}", NEXT.fetch_add(1, Ordering::Relaxed)),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        ..Default::default()
    }
}

/// One `Run` call: its inputs and outputs.
pub struct Session {
    pub inputs: mpsc::Sender<proto::RunInput>,
    pub outputs: Streaming<proto::RunOutput>,
}

#[derive(Debug, Default)]
pub struct Outcome {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exited: Option<proto::Exited>,
}

impl Outcome {
    pub fn code(&self) -> i32 {
        self.exited.as_ref().unwrap().exit_code
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

impl Session {
    pub async fn open(client: &BoxClient, first: run_input::Input) -> Result<Self, Status> {
        let (inputs, receiver) = mpsc::channel(4);
        inputs
            .send(proto::RunInput { input: Some(first) })
            .await
            .unwrap();
        let outputs = client
            .clone()
            .run(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        Ok(Self { inputs, outputs })
    }

    pub async fn start(client: &BoxClient, command: proto::StartCommand) -> Self {
        Self::open(client, run_input::Input::Start(command))
            .await
            .unwrap()
    }

    pub async fn resume(client: &BoxClient, run_id: &str, from: u64) -> Result<Self, Status> {
        let resume = proto::ResumeCommand {
            run_id: run_id.to_owned(),
            from_sequence: from,
        };
        Self::open(client, run_input::Input::Resume(resume)).await
    }

    pub async fn send(&self, input: run_input::Input) {
        // Fails once the run has ended, which the outputs show.
        let _ = self
            .inputs
            .send(proto::RunInput { input: Some(input) })
            .await;
    }

    /// The next message; panics after the deadline.
    pub async fn next(&mut self) -> Result<Option<run_output::Output>, Status> {
        let message = tokio::time::timeout(DEADLINE, self.outputs.message());
        let message = message.await.expect("an output in time")?;
        Ok(message.map(|message| message.output.unwrap()))
    }

    /// Reads until stdout contains `text`; returns the output so far.
    pub async fn until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.next().await.unwrap() {
                Some(run_output::Output::Stdout(bytes)) => {
                    seen.push_str(&String::from_utf8_lossy(&bytes));
                }
                Some(run_output::Output::Exited(exited)) => {
                    panic!("it ended before {text:?}: {exited:?} after {seen:?}")
                }
                Some(_) => {}
                None => panic!("the stream ended before {text:?}, after {seen:?}"),
            }
        }
        seen
    }

    /// Reads to the end of a run whose box shuts down; returns the error's code.
    pub async fn shutdown_code(mut self) -> tonic::Code {
        loop {
            match self.next().await {
                Ok(Some(run_output::Output::Exited(exited))) => panic!("{exited:?}"),
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without an error"),
                Err(status) => return status.code(),
            }
        }
    }

    /// Reads to the end of the run.
    pub async fn finish(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some(output) = self.next().await.unwrap() {
            match output {
                run_output::Output::Stdout(bytes) => outcome.stdout.extend_from_slice(&bytes),
                run_output::Output::Stderr(bytes) => outcome.stderr.extend_from_slice(&bytes),
                run_output::Output::Exited(exited) => outcome.exited = Some(exited),
                run_output::Output::Started(_) => {}
                run_output::Output::Gap(gap) => panic!("{gap:?}"),
            }
        }
        outcome
    }
}

/// Starts a command and reads to its end.
pub async fn run(client: &BoxClient, command: proto::StartCommand) -> Outcome {
    Session::start(client, command).await.finish().await
}

pub fn read_text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
