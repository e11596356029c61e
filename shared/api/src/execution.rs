//! Executions: commands in an environment that outlive the requests of their clients.

mod query;
mod stdin;

use std::collections::BTreeMap;

use agentbox_contracts::executions as wire;
use agentbox_contracts::ids::ExecId;
use agentbox_contracts::logs::OutputStream;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kubernetes::{Argument, Labels};
use crate::seconds::Seconds;

pub use query::{
    AttachExecutionQuery, DeleteExecutionQuery, ListExecutionsQuery, OutputQuery, StdinQuery,
    WaitQuery,
};
pub use stdin::Stdin;

/// The most bytes of one stream that an execution may keep.
pub const MAX_KEEP_BYTES: u64 = 16 * 1024 * 1024;
/// The longest time that a request may wait for the end of an execution, in seconds.
pub const MAX_WAIT_S: u64 = 60;

/// The size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"cols": 120, "rows": 40}))]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Columns, in characters, 1 to 4096.
    #[schema(minimum = 1, maximum = 4096, example = 120)]
    pub cols: u16,
    /// Rows, in characters, 1 to 4096.
    #[schema(minimum = 1, maximum = 4096, example = 40)]
    pub rows: u16,
}

/// What happens when the kept output of a running execution is full: `drop` drops the oldest output
/// and the command never waits, `block` lets the command wait until a reader has received it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = "drop")]
#[serde(rename_all = "snake_case")]
pub enum OnFull {
    #[default]
    Drop,
    Block,
}

/// An execution to start.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "command": ["python", "train.py", "--epochs", "40"],
    "working_dir": "/work",
    "env": {"SEED": "7"},
    "name": "training",
    "labels": {"step": "train"}
}))]
#[serde(deny_unknown_fields)]
pub struct StartExecution {
    /// The program and its arguments. No shell reads them: for one, run `["sh", "-c", "…"]`. At
    /// most 131072 parts of at most 131071 bytes each, and 2097152 bytes together with `env`, each
    /// part and variable counted with 9 bytes more.
    #[schema(
        value_type = Vec<Argument>,
        example = json!(["python", "train.py", "--epochs", "40"]),
        min_items = 1,
        max_items = 131072
    )]
    pub command: Vec<String>,
    /// The user who runs the command: a name or uid, and optionally `:` with a group or gid.
    /// Default: the environment's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "nobody")]
    pub user: Option<String>,
    /// The working directory, an absolute path of at most 4096 bytes. Default: the image's. If it
    /// cannot be entered, the answer is 400, `working_dir_not_found`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/work")]
    pub working_dir: Option<String>,
    /// Environment variables, added to those of the environment. A name and its value have
    /// together at most 131070 bytes. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(example = json!({"SEED": "7"}))]
    pub env: BTreeMap<String, String>,
    /// The stdin of the command. Default: `none`, or `open` with `tty`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Stdin>,
    /// Give the command a terminal of this size. Then all output is stdout. Default: no terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<TerminalSize>,
    /// Write stderr to stdout, in the order in which the command wrote both. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(default = false, example = false)]
    pub merge_stderr: bool,
    /// Seconds after which the command is killed, at least 0.1. Default: none, it may run as long
    /// as the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>, minimum = 0.1, example = 3600)]
    pub timeout: Option<Seconds>,
    /// A name for people, 1 to 128 characters without control characters. It need not be unique.
    /// Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "training", min_length = 1, max_length = 128)]
    pub name: Option<String>,
    /// Labels to find the execution by. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = Labels)]
    pub labels: BTreeMap<String, String>,
    /// What happens when the kept output is full. Default: `drop`.
    #[serde(default)]
    #[schema(default = "drop")]
    pub on_full: OnFull,
    /// How many bytes of each of stdout and stderr are kept, the newest, 1 to 16777216. Default:
    /// 1048576.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 16777216, example = 1048576)]
    pub keep_bytes: Option<u64>,
}

/// The status of an execution. `starting` and `running` may change; `exited` has an `exit_code`,
/// `signalled` a `signal`; `timed_out` was killed at its timeout, `oom_killed` by the kernel for lack
/// of memory; `failed_to_start` has a `status_reason`; `lost` means that the environment ended first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = "running")]
#[serde(rename_all = "snake_case")]
pub enum ExecutionStatus {
    Starting,
    Running,
    Exited,
    Signalled,
    TimedOut,
    OomKilled,
    FailedToStart,
    Lost,
}

impl From<wire::ExecutionStatus> for ExecutionStatus {
    fn from(status: wire::ExecutionStatus) -> Self {
        use wire::ExecutionStatus as Wire;
        match status {
            Wire::Starting => Self::Starting,
            Wire::Running => Self::Running,
            Wire::Exited => Self::Exited,
            Wire::Signalled => Self::Signalled,
            Wire::TimedOut => Self::TimedOut,
            Wire::OomKilled => Self::OomKilled,
            Wire::FailedToStart => Self::FailedToStart,
            Wire::Lost => Self::Lost,
        }
    }
}

/// An execution: a command in an environment, its state and its outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": "exec-0123456789abcdef",
    "name": "training",
    "command": ["python", "train.py", "--epochs", "40"],
    "user": "root",
    "working_dir": "/work",
    "status": "exited",
    "exit_code": 0,
    "pid": 42,
    "created_at": "2026-01-22T10:00:00Z",
    "started_at": "2026-01-22T10:00:00Z",
    "ended_at": "2026-01-22T10:31:07Z",
    "duration_ms": 1867000,
    "timeout": 3600,
    "stdout_bytes": 18211,
    "stderr_bytes": 0,
    "tty": null,
    "labels": {"step": "train"}
}))]
pub struct ExecutionBody {
    /// The execution's id. It never changes.
    #[schema(value_type = ExecId)]
    pub id: String,
    /// The name that was given. Absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "training")]
    pub name: Option<String>,
    /// The program and its arguments.
    #[schema(example = json!(["python", "train.py", "--epochs", "40"]))]
    pub command: Vec<String>,
    /// The user who runs it, by name, or by uid if the environment has no name for it.
    #[schema(example = "root")]
    pub user: String,
    /// Its working directory.
    #[schema(example = "/work")]
    pub working_dir: String,
    /// The status now.
    pub status: ExecutionStatus,
    /// The exit code of the process itself. Absent while it runs, and unless it exited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 0)]
    pub exit_code: Option<i32>,
    /// The number of the signal that ended the process. Absent if none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 15)]
    pub signal: Option<i32>,
    /// Why it failed to start, or was lost. Absent if there is no reason to give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "train.py: not found")]
    pub status_reason: Option<String>,
    /// The process id in the environment. Absent before the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 42)]
    pub pid: Option<u32>,
    /// When the execution was created, by the environment's clock (RFC 3339, UTC).
    #[schema(example = "2026-01-22T10:00:00Z")]
    pub created_at: DateTime<Utc>,
    /// When the process started (RFC 3339, UTC). Absent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "2026-01-22T10:00:00Z")]
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended (RFC 3339, UTC). Absent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "2026-01-22T10:31:07Z")]
    pub ended_at: Option<DateTime<Utc>>,
    /// How long it ran, in milliseconds. Absent before its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 1867000)]
    pub duration_ms: Option<u64>,
    /// Seconds after which it is killed. Absent if it has no timeout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>, example = 3600)]
    pub timeout: Option<Seconds>,
    /// All bytes that it has written to stdout, also those that are no longer kept.
    #[schema(example = 18211)]
    pub stdout_bytes: u64,
    /// All bytes that it has written to stderr, also those that are no longer kept.
    #[schema(example = 0)]
    pub stderr_bytes: u64,
    /// The size of its terminal. Null without a terminal.
    pub tty: Option<TerminalSize>,
    /// The labels.
    #[schema(example = json!({"step": "train"}))]
    pub labels: BTreeMap<String, String>,
}

impl From<wire::Execution> for ExecutionBody {
    fn from(execution: wire::Execution) -> Self {
        let status = execution.status().into();
        let some = |text: String| (!text.is_empty()).then_some(text);
        let side = |side: u32| u16::try_from(side).unwrap_or(u16::MAX);
        let at = DateTime::<Utc>::from_timestamp_nanos;
        Self {
            id: execution.id,
            name: some(execution.name),
            command: execution.command,
            user: execution.user,
            working_dir: execution.working_dir,
            status,
            exit_code: execution.exit_code,
            signal: execution.signal,
            status_reason: some(execution.status_reason),
            pid: execution.pid,
            created_at: at(execution.created_unix_nanos),
            started_at: execution.started_unix_nanos.map(at),
            ended_at: execution.ended_unix_nanos.map(at),
            duration_ms: execution.duration_ms,
            timeout: (execution.timeout_ms > 0).then(|| Seconds::from_millis(execution.timeout_ms)),
            stdout_bytes: execution.stdout_bytes,
            stderr_bytes: execution.stderr_bytes,
            tty: execution.tty.map(|size| TerminalSize {
                cols: side(size.cols),
                rows: side(size.rows),
            }),
            labels: execution.labels.into_iter().collect(),
        }
    }
}

/// One page of executions, newest first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "executions": [{
        "id": "exec-0123456789abcdef",
        "command": ["python", "train.py"],
        "user": "root",
        "working_dir": "/work",
        "status": "running",
        "pid": 42,
        "created_at": "2026-01-22T10:00:00Z",
        "started_at": "2026-01-22T10:00:00Z",
        "stdout_bytes": 18211,
        "stderr_bytes": 0,
        "tty": null,
        "labels": {"step": "train"}
    }],
    "total": 1,
    "limit": 100,
    "offset": 0
}))]
pub struct ExecutionList {
    /// The executions of this page.
    pub executions: Vec<ExecutionBody>,
    /// The number of executions on all pages.
    #[schema(example = 1)]
    pub total: u64,
    /// The page size that was applied.
    #[schema(example = 100)]
    pub limit: u32,
    /// The number of executions before this page.
    #[schema(example = 0)]
    pub offset: u64,
}

/// A signal to send.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"signal": "SIGTERM"}))]
#[serde(deny_unknown_fields)]
pub struct SendSignal {
    /// The signal's name, with or without `SIG`: `SIGTERM` or `TERM`.
    #[schema(example = "SIGTERM")]
    pub signal: String,
}

/// A piece of output, as the data of a server-sent event. It has `data` or `base64`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"stream": "stdout", "data": "epoch 7\n", "offset": 4088}))]
pub struct OutputEvent {
    /// The stream that it was written to.
    pub stream: OutputStream,
    /// The output, if it is UTF-8. A character is never split between two events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "epoch 7\n")]
    pub data: Option<String>,
    /// The output in base64 (RFC 4648), if it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/wA=")]
    pub base64: Option<String>,
    /// The offset of its first byte in its stream.
    #[schema(example = 4088)]
    pub offset: u64,
}

/// Output that is no longer kept, as the data of a `gap` event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"stream": "stdout", "bytes": 4096}))]
pub struct GapEvent {
    /// The stream that it was written to.
    pub stream: OutputStream,
    /// The number of bytes that are missing.
    #[schema(example = 4096)]
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_has_the_documented_fields() {
        let record = wire::Execution {
            id: "exec-0123456789abcdef".into(),
            command: vec!["true".into()],
            user: "root".into(),
            working_dir: "/".into(),
            status: wire::ExecutionStatus::Signalled.into(),
            signal: Some(9),
            created_unix_nanos: 1_769_076_000_000_000_000,
            timeout_ms: 1500,
            stdout_bytes: 3,
            tty: Some(wire::Size { cols: 80, rows: 24 }),
            ..wire::Execution::default()
        };
        let json = serde_json::to_value(ExecutionBody::from(record)).unwrap();
        let expected = serde_json::json!({
            "id": "exec-0123456789abcdef", "command": ["true"], "user": "root", "working_dir": "/",
            "status": "signalled", "signal": 9, "created_at": "2026-01-22T10:00:00Z", "timeout": 1.5,
            "stdout_bytes": 3, "stderr_bytes": 0, "tty": {"cols": 80, "rows": 24}, "labels": {}
        });
        assert_eq!(json, expected);
    }
}
