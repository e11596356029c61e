//! User input and output between api-gateway and exec-proxy: the request that opens a
//! session, and the session's messages.
//!
//! One request on `abx.v1.rpc.exec.<cluster>.open` opens a session; its body is an
//! [`Open`], or the first part of a long one. Then [`ToBox`] and [`FromBox`] messages follow, in
//! order, carried by `agentbox-bus`. A short exec is one request and one reply: its [`FromBox::Result`] is
//! the first and the last message back.

mod message;
mod open;

pub mod rpc;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::environment::{EventExecution, Status, StatusReason};
use crate::executions::ExecutionRequest;
use crate::files::FileRequest;
use crate::ids::{EnvironmentId, ExecId, UserId};
use crate::ports::ConnectPort;

pub use message::{
    ExecResult, Exit, FromBox, MAX_INLINE_RESULT, MalformedMessage, SessionMessage, ToBox,
};

/// The largest number of bytes of stdin, stdout or stderr in one message.
pub const MAX_CHUNK: usize = 32 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    pub environment: EnvironmentId,
    /// The owner of the environment, who has a share of the sessions.
    pub owner: Option<UserId>,
    /// The last known address of the box; absent for the logs of an ended environment.
    pub address: Option<SocketAddr>,
    pub status: Status,
    pub kind: OpenKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenKind {
    Exec(ExecRequest),
    Logs(LogsRequest),
    /// A file operation. Content is sent as [`ToBox::Data`] and [`ToBox::End`]; the answers are
    /// [`FromBox::File`].
    Files(FileRequest),
    /// An operation on executions. The answers are [`FromBox::Execution`].
    Execution(ExecutionRequest),
    /// A connection to a port. Bytes are sent as [`ToBox::Data`] and [`ToBox::End`]; the answers are
    /// [`FromBox::Port`].
    Port(ConnectPort),
    /// The listening ports; the answer is one [`FromBox::Ports`].
    Ports,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecRequest {
    pub id: ExecId,
    pub command: Vec<String>,
    pub working_dir: Option<String>,
    pub env: BTreeMap<String, String>,
    /// `name`, `uid`, `name:group`, `uid:gid`. `None`: the box's user.
    pub user: Option<String>,
    /// Stderr is written to stdout's pipe.
    pub merge_stderr: bool,
    /// [`FromBox::CommandStarted`] is sent first, then all output as it comes, without a limit, and
    /// [`FromBox::Exit`] ends the session.
    pub stream: bool,
    /// All of stdin. When it is too long for this message it is absent, `stdin_follows` is
    /// set, and [`ToBox::Data`] and [`ToBox::End`] messages carry it.
    pub stdin: Option<Vec<u8>>,
    pub stdin_follows: bool,
    pub timeout_ms: u64,
    /// The limit for each of stdout and stderr; output beyond it is dropped.
    pub max_output_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub cols: u16,
    pub rows: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogsRequest {
    /// The sequence of the first entry to send: one after the last that the client has.
    pub from_sequence: Option<u64>,
    /// The number of newest lines; all pieces of a line are one.
    pub tail: Option<u64>,
    pub since: Option<DateTime<Utc>>,
    pub follow: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UsageRequest {
    pub environment: EnvironmentId,
    pub address: SocketAddr,
}

/// The current resource usage of a running box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReply {
    pub cpu_milli: u64,
    pub memory_bytes: u64,
}

/// The counters of a running box since it started, or was claimed, as its boxd reads them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeterReply {
    pub cpu_usage_ns: u64,
    /// Bytes that left its network interfaces, but the loopback.
    pub egress_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ActivityRequest {
    pub environment: EnvironmentId,
    pub address: SocketAddr,
}

/// The activity in a running box, as its boxd and one exec-proxy know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivityReply {
    /// Milliseconds since the last command ended, or since the box started. 0: it is in use.
    pub idle_ms: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecutionsRequest {
    pub environment: EnvironmentId,
    pub address: SocketAddr,
}

/// The executions that a running box keeps, newest first. Those that are starting are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionsReply {
    pub executions: Vec<EventExecution>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArchiveRequest {
    pub environment: EnvironmentId,
    #[serde(default)]
    pub address: Option<SocketAddr>,
    /// The box still runs and will be stopped: only its executions are stored now. Another request
    /// follows after its end.
    #[serde(default)]
    pub before_stop: bool,
    /// Why the environment ends, for the executions that its end interrupts.
    #[serde(default)]
    pub status_reason: Option<StatusReason>,
    /// When the box ended.
    #[serde(default)]
    pub ended_at: Option<DateTime<Utc>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArchiveReply {
    pub entries: u64,
}
