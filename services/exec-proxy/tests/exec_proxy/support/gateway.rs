//! The gateway's side of sessions, over the real bus.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use agentbox_bus::{Bus, BusConfig, Session};
use agentbox_contracts::environment::{Status, StatusReason};
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::rpc::{ArchiveOutput, BoxSession, GetUsage};
use agentbox_contracts::exec::{
    ArchiveReply, ArchiveRequest, ExecRequest, ExecResult, FromBox, LogsRequest, MAX_CHUNK, Open,
    OpenKind, ToBox, UsageReply, UsageRequest,
};
use agentbox_contracts::ids::{EnvironmentId, ExecId, InstanceId};
use agentbox_contracts::logs::LogEntry;
use agentbox_testing::NatsEndpoint;
use chrono::Utc;

use super::{TestBox, proxy};

const DEADLINE: Duration = Duration::from_secs(20);
/// The real gateway's. After it a session whose exec-proxy has not answered is given up.
const OPEN_DEADLINE: Duration = Duration::from_secs(5);

pub type ClientSession = Session<ToBox, FromBox>;

/// The next message; panics when none arrives `within` the time.
pub async fn receive(session: &mut ClientSession, within: Duration) -> Option<FromBox> {
    tokio::time::timeout(within, session.recv())
        .await
        .expect("no message in time")
        .unwrap()
}

pub struct Gateway {
    pub bus: Bus,
    scheduler: Bus,
    pub cluster: String,
}

pub fn command(words: &[&str]) -> ExecRequest {
    ExecRequest {
        id: ExecId::random(),
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        working_dir: None,
        env: BTreeMap::new(),
        user: None,
        merge_stderr: false,
        stream: false,
        stdin: None,
        stdin_follows: false,
        timeout_ms: 30_000,
        max_output_bytes: 10 * 1024 * 1024,
    }
}

pub fn shell(script: &str) -> ExecRequest {
    command(&["sh", "-c", script])
}

impl Gateway {
    pub async fn connect(nats: &NatsEndpoint, cluster: &str) -> Self {
        let connect = async |service: &'static str| {
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
        };
        let this = Self {
            bus: connect("api-gateway").await,
            scheduler: connect("scheduler").await,
            cluster: cluster.to_owned(),
        };
        proxy::wait_until_served(&this.scheduler, cluster).await;
        this
    }

    /// A session into a running box.
    pub async fn open(&self, into: &TestBox, kind: OpenKind) -> Result<ClientSession, Error> {
        self.open_as(&Open {
            environment: into.id.clone(),
            owner: None,
            address: Some(into.address),
            status: Status::Running,
            kind,
        })
        .await
    }

    pub async fn open_as(&self, open: &Open) -> Result<ClientSession, Error> {
        self.bus
            .open_session::<BoxSession>(&self.cluster, open, OPEN_DEADLINE)
            .await
    }

    pub async fn exec(&self, into: &TestBox, request: ExecRequest) -> Result<ExecResult, Error> {
        let session = self.open(into, OpenKind::Exec(request)).await?;
        result(session).await
    }

    /// Runs an exec whose stdin is sent in messages.
    pub async fn exec_with(
        &self,
        into: &TestBox,
        mut request: ExecRequest,
        stdin: &[u8],
    ) -> Result<ExecResult, Error> {
        request.stdin_follows = true;
        let session = self.open(into, OpenKind::Exec(request)).await?;
        let (mut sender, mut receiver) = session.split();
        let send = async {
            for chunk in stdin.chunks(MAX_CHUNK) {
                sender
                    .send(ToBox::Data(bytes::Bytes::copy_from_slice(chunk)))
                    .await?;
            }
            sender.send(ToBox::End).await?;
            // Kept open until the result has arrived.
            std::future::pending::<Result<ExecResult, Error>>().await
        };
        let receive = async {
            let mut collected = CollectedOutput::default();
            loop {
                if let Some(result) = collected.take(receiver.recv().await?) {
                    return Ok(result);
                }
            }
        };
        tokio::select! { sent = send => sent, received = receive => received }
    }

    /// All entries, the number of lost ones, and whether the environment has ended.
    pub async fn logs(&self, open: &Open) -> Result<Logs, Error> {
        let mut session = self.open_as(open).await?;
        let mut logs = Logs::default();
        while !logs.take(session.recv().await?) {}
        Ok(logs)
    }

    pub async fn archive(&self, of: &TestBox) -> Result<ArchiveReply, Error> {
        self.archive_of(&of.id, Some(of.address)).await
    }

    /// Archives a box's output, as the scheduler does.
    pub async fn archive_of(
        &self,
        id: &EnvironmentId,
        address: Option<SocketAddr>,
    ) -> Result<ArchiveReply, Error> {
        self.archive_with(ArchiveRequest {
            environment: id.clone(),
            address,
            before_stop: false,
            status_reason: Some(StatusReason::Exited),
            ended_at: Some(Utc::now()),
        })
        .await
    }

    pub async fn archive_with(&self, request: ArchiveRequest) -> Result<ArchiveReply, Error> {
        self.scheduler
            .call_cluster::<ArchiveOutput>(&self.cluster, &request, DEADLINE)
            .await
    }

    pub async fn usage(&self, of: &TestBox) -> Result<UsageReply, Error> {
        self.usage_at(&of.id, of.address).await
    }

    pub async fn usage_at(
        &self,
        id: &EnvironmentId,
        address: SocketAddr,
    ) -> Result<UsageReply, Error> {
        let request = UsageRequest {
            environment: id.clone(),
            address,
        };
        self.bus
            .call_cluster::<GetUsage>(&self.cluster, &request, DEADLINE)
            .await
    }
}

pub fn logs_of(of: &TestBox, status: Status, request: LogsRequest) -> Open {
    let address = (!status.is_ended()).then_some(of.address);
    let environment: EnvironmentId = of.id.clone();
    Open {
        environment,
        owner: None,
        address,
        status,
        kind: OpenKind::Logs(request),
    }
}

#[derive(Debug, Default)]
pub struct Logs {
    pub entries: Vec<LogEntry>,
    pub lost: u64,
    pub ended: Option<bool>,
}

impl Logs {
    /// Adds a message; `true` after the last one.
    pub fn take(&mut self, message: Option<FromBox>) -> bool {
        match message {
            Some(FromBox::Logs(entries)) => {
                assert!(!entries.is_empty() && entries.len() <= 256);
                self.entries.extend(entries);
            }
            Some(FromBox::LogsLost(count)) => self.lost += count,
            Some(FromBox::LogsEnd { ended }) => self.ended = Some(ended),
            other => panic!("not a message of a log stream: {other:?}"),
        }
        self.ended.is_some()
    }

    pub fn lines(&self) -> Vec<String> {
        let text = |entry: &LogEntry| String::from_utf8_lossy(&entry.line).into_owned();
        self.entries.iter().map(text).collect()
    }
}

/// Waits for an exec's end; streamed output is added to the result.
pub async fn result(mut session: ClientSession) -> Result<ExecResult, Error> {
    let mut collected = CollectedOutput::default();
    loop {
        if let Some(result) = collected.take(session.recv().await?) {
            return Ok(result);
        }
    }
}

/// The streamed output of an exec so far.
#[derive(Default)]
struct CollectedOutput {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl CollectedOutput {
    fn take(&mut self, message: Option<FromBox>) -> Option<ExecResult> {
        match message {
            Some(FromBox::Stdout(chunk)) => self.stdout.extend_from_slice(&chunk),
            Some(FromBox::Stderr(chunk)) => self.stderr.extend_from_slice(&chunk),
            Some(FromBox::Result(mut result)) => {
                self.stdout.append(&mut result.stdout);
                self.stderr.append(&mut result.stderr);
                result.stdout = std::mem::take(&mut self.stdout);
                result.stderr = std::mem::take(&mut self.stderr);
                return Some(result);
            }
            other => panic!("not a message of an exec: {other:?}"),
        }
        None
    }
}
