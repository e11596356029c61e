//! Executions: commands in a box that outlive the request that started them. The messages between
//! api-gateway, exec-proxy and boxd. The same protobuf messages travel the whole way.
//!
//! * I1. boxd owns an execution: its process, its record and its kept output. No service stores it
//!   while the box runs.
//! * I2. The offsets of stdout and stderr count all bytes that the command has written to each,
//!   also those that are no longer kept.
//! * I3. A field number keeps its meaning: both ends may be of different versions.

use std::collections::HashMap;

use bytes::Bytes;

/// The most bytes of output that are kept for each stream when the caller does not say.
pub const DEFAULT_KEEP_BYTES: u64 = 1024 * 1024;

/// A command to start.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExecutionStart {
    /// `exec-…`, unique in the box. An id that was used before is answered with its execution.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Program and arguments. Empty: a shell, bash or else sh.
    #[prost(string, repeated, tag = "2")]
    pub command: Vec<String>,
    /// `name`, `uid`, `name:group`, `uid:gid`. Empty: the box's user.
    #[prost(string, tag = "3")]
    pub user: String,
    /// Empty: the image's working directory.
    #[prost(string, tag = "4")]
    pub working_dir: String,
    #[prost(map = "string, string", tag = "5")]
    pub env: HashMap<String, String>,
    #[prost(enumeration = "StdinMode", tag = "6")]
    pub stdin: i32,
    /// With [`StdinMode::Bytes`]: all of stdin.
    #[prost(bytes = "bytes", tag = "7")]
    pub stdin_bytes: Bytes,
    /// Present: a terminal, and all output is stdout.
    #[prost(message, optional, tag = "8")]
    pub tty: Option<Size>,
    /// Stderr is written to stdout's pipe.
    #[prost(bool, tag = "9")]
    pub merge_stderr: bool,
    /// 0: no timeout.
    #[prost(uint64, tag = "10")]
    pub timeout_ms: u64,
    #[prost(string, tag = "11")]
    pub name: String,
    #[prost(map = "string, string", tag = "12")]
    pub labels: HashMap<String, String>,
    #[prost(enumeration = "OnFull", tag = "13")]
    pub on_full: i32,
    /// The newest bytes of each stream to keep. 0: [`DEFAULT_KEEP_BYTES`].
    #[prost(uint64, tag = "14")]
    pub keep_bytes: u64,
    /// Kill the command when nobody has been attached for so long. 0: it needs nobody.
    #[prost(uint64, tag = "15")]
    pub orphan_grace_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum StdinMode {
    /// `/dev/null`.
    None = 0,
    /// A pipe that callers write to.
    Open = 1,
    /// The bytes of the request, then the end.
    Bytes = 2,
}

/// What happens when the kept output is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum OnFull {
    /// The oldest output is dropped; the command never waits.
    Drop = 0,
    /// The command waits until a reader has received the oldest output.
    Block = 1,
}

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Size {
    #[prost(uint32, tag = "1")]
    pub cols: u32,
    #[prost(uint32, tag = "2")]
    pub rows: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum ExecutionStatus {
    Starting = 0,
    Running = 1,
    Exited = 2,
    Signalled = 3,
    TimedOut = 4,
    OomKilled = 5,
    FailedToStart = 6,
    /// The box ended before the execution. boxd never reports it; who reads the archive does.
    Lost = 7,
}

impl ExecutionStatus {
    /// Whether it can still change.
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Starting | Self::Running)
    }
}

/// The record of an execution.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Execution {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, repeated, tag = "3")]
    pub command: Vec<String>,
    /// As the box resolved it: `name` or uid.
    #[prost(string, tag = "4")]
    pub user: String,
    #[prost(string, tag = "5")]
    pub working_dir: String,
    #[prost(enumeration = "ExecutionStatus", tag = "6")]
    pub status: i32,
    /// The process's own.
    #[prost(int32, optional, tag = "7")]
    pub exit_code: Option<i32>,
    /// The number of the signal that ended the process.
    #[prost(int32, optional, tag = "8")]
    pub signal: Option<i32>,
    /// Why it failed to start, or was lost; for users.
    #[prost(string, tag = "9")]
    pub status_reason: String,
    #[prost(uint32, optional, tag = "10")]
    pub pid: Option<u32>,
    /// Nanoseconds since the Unix epoch, by the box's clock.
    #[prost(int64, tag = "11")]
    pub created_unix_nanos: i64,
    #[prost(int64, optional, tag = "12")]
    pub started_unix_nanos: Option<i64>,
    #[prost(int64, optional, tag = "13")]
    pub ended_unix_nanos: Option<i64>,
    /// By a monotonic clock.
    #[prost(uint64, optional, tag = "14")]
    pub duration_ms: Option<u64>,
    /// 0: none.
    #[prost(uint64, tag = "15")]
    pub timeout_ms: u64,
    /// All that the command has written.
    #[prost(uint64, tag = "16")]
    pub stdout_bytes: u64,
    #[prost(uint64, tag = "17")]
    pub stderr_bytes: u64,
    #[prost(message, optional, tag = "18")]
    pub tty: Option<Size>,
    #[prost(map = "string, string", tag = "19")]
    pub labels: HashMap<String, String>,
}

/// An operation on the executions of a box.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExecutionRequest {
    #[prost(
        oneof = "execution_request::Operation",
        tags = "1, 2, 3, 4, 5, 6, 7, 8"
    )]
    pub operation: Option<execution_request::Operation>,
}

pub mod execution_request {
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    #[allow(
        clippy::large_enum_variant,
        reason = "few exist at the same time, and a box would cost an allocation each"
    )]
    pub enum Operation {
        /// Answers `execution`, the last message.
        #[prost(message, tag = "1")]
        Start(super::ExecutionStart),
        /// Answers `executions`, as many as are needed; newest first.
        #[prost(message, tag = "2")]
        List(()),
        /// Answers `execution`, the last message.
        #[prost(message, tag = "3")]
        Get(super::GetExecution),
        /// Answers `output` and `gap` messages, then `execution`, the last message: its outcome, or,
        /// without `follow`, its present state.
        #[prost(message, tag = "4")]
        Output(super::ReadOutput),
        /// Takes data and, with `close`, its end. Answers `execution`, the last message.
        #[prost(message, tag = "5")]
        Stdin(super::WriteStdin),
        /// Answers `execution`, the last message.
        #[prost(message, tag = "6")]
        Control(super::ControlExecution),
        /// Kills, and with `purge` forgets it. Answers `execution`, the last message.
        #[prost(message, tag = "7")]
        Delete(super::DeleteExecution),
        /// Both ways: takes data, its end, resizes, signals and `take_input`. Answers `attached`,
        /// then as `Output` with `follow`.
        #[prost(message, tag = "8")]
        Attach(super::AttachExecution),
    }
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GetExecution {
    #[prost(string, tag = "1")]
    pub id: String,
    /// How long to wait for its end.
    #[prost(uint64, tag = "2")]
    pub wait_ms: u64,
}

/// What the caller sends to boxd for one operation.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExecutionInput {
    #[prost(oneof = "execution_input::Input", tags = "1, 2, 3, 4, 5, 6")]
    pub input: Option<execution_input::Input>,
}

pub mod execution_input {
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    #[allow(
        clippy::large_enum_variant,
        reason = "few exist at the same time, and a box would cost an allocation each"
    )]
    pub enum Input {
        /// The first input, once.
        #[prost(message, tag = "1")]
        Request(super::ExecutionRequest),
        /// Stdin, at most [`crate::exec::MAX_CHUNK`] bytes.
        #[prost(bytes = "bytes", tag = "2")]
        Data(bytes::Bytes),
        /// The end of the data.
        #[prost(message, tag = "3")]
        End(()),
        #[prost(message, tag = "4")]
        Resize(super::Size),
        /// `SIGINT`, `INT`.
        #[prost(string, tag = "5")]
        Signal(String),
        /// Take the input from the client that holds it.
        #[prost(message, tag = "6")]
        TakeInput(()),
    }
}

/// The number of bytes of each stream that the reader has.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Offsets {
    #[prost(uint64, tag = "1")]
    pub stdout: u64,
    #[prost(uint64, tag = "2")]
    pub stderr: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReadOutput {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(bool, tag = "2")]
    pub stdout: bool,
    #[prost(bool, tag = "3")]
    pub stderr: bool,
    /// Where to begin. Absent: at the oldest kept byte, without a gap.
    #[prost(message, optional, tag = "4")]
    pub from: Option<Offsets>,
    #[prost(bool, tag = "5")]
    pub follow: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct WriteStdin {
    #[prost(string, tag = "1")]
    pub id: String,
    /// The end of the data ends stdin too.
    #[prost(bool, tag = "2")]
    pub close: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ControlExecution {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(oneof = "control_execution::Control", tags = "2, 3")]
    pub control: Option<control_execution::Control>,
}

pub mod control_execution {
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Control {
        /// `SIGINT`, `INT`.
        #[prost(string, tag = "2")]
        Signal(String),
        #[prost(message, tag = "3")]
        Resize(super::Size),
    }
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct DeleteExecution {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(bool, tag = "2")]
    pub purge: bool,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AttachExecution {
    #[prost(string, tag = "1")]
    pub id: String,
    /// As of [`ReadOutput`]. For a terminal, absent: the last screenful.
    #[prost(message, optional, tag = "2")]
    pub from: Option<Offsets>,
    /// Takes the input from whoever holds it.
    #[prost(bool, tag = "3")]
    pub take_input: bool,
}

/// What boxd answers to an [`ExecutionRequest`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExecutionOutput {
    #[prost(oneof = "execution_output::Output", tags = "1, 2, 3, 4, 5, 6")]
    pub output: Option<execution_output::Output>,
}

pub mod execution_output {
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Output {
        #[prost(message, tag = "1")]
        Execution(super::Execution),
        #[prost(message, tag = "2")]
        Executions(super::ExecutionList),
        #[prost(message, tag = "3")]
        Output(super::OutputPiece),
        #[prost(message, tag = "4")]
        Gap(super::OutputGap),
        #[prost(message, tag = "5")]
        Attached(super::Attached),
        /// The input was taken by another client of the same execution (false), or is now this
        /// client's (true).
        #[prost(bool, tag = "6")]
        HasInput(bool),
    }
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExecutionList {
    #[prost(message, repeated, tag = "1")]
    pub executions: Vec<Execution>,
    /// No further message follows.
    #[prost(bool, tag = "2")]
    pub is_last: bool,
}

/// Output of one stream.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OutputPiece {
    /// False: stdout.
    #[prost(bool, tag = "1")]
    pub stderr: bool,
    /// The offset of its first byte in its stream.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    /// At most [`crate::exec::MAX_CHUNK`] bytes.
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
}

/// Output that is no longer kept.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct OutputGap {
    #[prost(bool, tag = "1")]
    pub stderr: bool,
    /// The offset of the first byte that is missing.
    #[prost(uint64, tag = "2")]
    pub offset: u64,
    #[prost(uint64, tag = "3")]
    pub bytes: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Attached {
    #[prost(message, required, tag = "1")]
    pub execution: Execution,
    #[prost(message, required, tag = "2")]
    pub offsets: Offsets,
    #[prost(bool, tag = "3")]
    pub has_input: bool,
}
