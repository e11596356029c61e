//! Running a command in an environment.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::kubernetes::Argument;
use crate::seconds::Seconds;

/// Seconds a command may take when its caller does not say.
pub const DEFAULT_TIMEOUT: Seconds = Seconds(30.0);

/// How the bytes of an output become text: `utf8` replaces bytes that are not UTF-8 by U+FFFD,
/// `base64` (RFC 4648) keeps every byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = "utf8")]
#[serde(rename_all = "lowercase")]
pub enum OutputEncoding {
    #[default]
    Utf8,
    Base64,
}

fn default_timeout() -> Seconds {
    DEFAULT_TIMEOUT
}

/// A command to run.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "command": ["python", "-c", "print(40 + 2)"],
    "timeout": 30,
    "working_dir": "/tmp",
    "env": {"MY_VAR": "my-value"}
}))]
#[serde(deny_unknown_fields)]
pub struct ExecBody {
    /// The program and its arguments. No shell reads them: for one, run `["sh", "-c", "…"]`. At
    /// most 131072 parts of at most 131071 bytes each, and 2097152 bytes together with `env`, each part
    /// and variable counted with 9 bytes more.
    #[schema(
        value_type = Vec<Argument>,
        example = json!(["python", "-c", "print(40 + 2)"]),
        min_items = 1,
        max_items = 131072
    )]
    pub command: Vec<String>,
    /// The user who runs the command: a name or uid, and optionally `:` with a group or gid.
    /// Default: the environment's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "nobody")]
    pub user: Option<String>,
    /// Seconds after which the command is killed, at least 0.1. Default: 30. At most 3600, unless
    /// the operator changes `AGENTBOX_MAX_EXEC_TIMEOUT`.
    #[serde(default = "default_timeout")]
    #[schema(value_type = f64, minimum = 0.1, default = 30, example = 30)]
    pub timeout: Seconds,
    /// The working directory, an absolute path of at most 4096 bytes. Default: the image's. If it
    /// does not exist or cannot be entered, the answer is 400, `working_dir_not_found`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/tmp")]
    pub working_dir: Option<String>,
    /// Environment variables, added to those of the environment. A name and its value have
    /// together at most 131070 bytes. Default: none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(example = json!({"MY_VAR": "my-value"}))]
    pub env: BTreeMap<String, String>,
    /// The text that the command reads from stdin, then end of file. The limit of the body, 4 MiB,
    /// limits it; as a part of `multipart/form-data` it has no limit. Default: empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "some input\n")]
    pub stdin: Option<String>,
    /// As `stdin`, for bytes, in base64 (RFC 4648). Not together with `stdin`. Default: empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "AAEC")]
    pub stdin_base64: Option<String>,
    /// Write stderr to stdout, in the order in which the command wrote both. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(default = false, example = false)]
    pub merge_stderr: bool,
    /// How `stdout` and `stderr` of the answer are written. Default: `utf8`.
    #[serde(default)]
    #[schema(default = "utf8")]
    pub output_encoding: OutputEncoding,
}

/// The result of a command. A command that fails has a result too: see `exit_code`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "stdout": "42\n",
    "stderr": "",
    "exit_code": 0,
    "duration_ms": 31,
    "timed_out": false,
    "stdout_truncated": false,
    "stderr_truncated": false
}))]
pub struct ExecReply {
    /// The command's stdout, at most 10 MiB, unless the operator changes
    /// `AGENTBOX_MAX_EXEC_OUTPUT`.
    #[schema(example = "42\n")]
    pub stdout: String,
    /// The command's stderr, at most 10 MiB, unless the operator changes
    /// `AGENTBOX_MAX_EXEC_OUTPUT`.
    #[schema(example = "")]
    pub stderr: String,
    /// The exit code. 124: timed out, 126: the program is not executable (`stderr` says why), 127: not
    /// found, 128+N: killed by signal N.
    #[schema(example = 0)]
    pub exit_code: i32,
    /// How long the command ran, in milliseconds.
    #[schema(example = 31)]
    pub duration_ms: u64,
    /// The command was killed because its `timeout` was over.
    #[serde(default)]
    #[schema(example = false)]
    pub timed_out: bool,
    /// The command wrote more to stdout than the answer keeps. The rest was dropped.
    #[serde(default)]
    #[schema(example = false)]
    pub stdout_truncated: bool,
    /// The command wrote more to stderr than the answer keeps. The rest was dropped.
    #[serde(default)]
    #[schema(example = false)]
    pub stderr_truncated: bool,
    /// The kernel killed the command because the environment was out of memory. Absent: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(example = false)]
    pub oom_killed: bool,
}

/// A command with its stdin, as `multipart/form-data`: the part `exec`, then the part `stdin`.
#[derive(ToSchema)]
#[schema(example = json!({
    "exec": "{\"command\": [\"wc\", \"-c\"]}",
    "stdin": "some input\n"
}))]
pub struct ExecForm {
    /// An `ExecBody` as JSON, without `stdin` and `stdin_base64`.
    #[schema(example = "{\"command\": [\"wc\", \"-c\"]}")]
    pub exec: String,
    /// The bytes that the command reads from stdin, of any length.
    #[schema(example = "some input\n")]
    pub stdin: String,
}

/// A piece of output, as the data of a `stdout` or `stderr` event of exec. It has `data` or `base64`, as
/// `output_encoding` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"data": "42\n"}))]
pub struct ExecOutputEvent {
    /// The output as text. A character is never split between two events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "42\n")]
    pub data: Option<String>,
    /// The output in base64 (RFC 4648).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "/wA=")]
    pub base64: Option<String>,
}

/// The end of a command, as the data of the `exit` event of exec, the last one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"exit_code": 0, "duration_ms": 31, "timed_out": false}))]
pub struct ExecExitEvent {
    /// The exit code, as in `ExecReply`.
    #[schema(example = 0)]
    pub exit_code: i32,
    /// How long the command ran, in milliseconds.
    #[schema(example = 31)]
    pub duration_ms: u64,
    /// The command was killed because its `timeout` was over.
    #[schema(example = false)]
    pub timed_out: bool,
    /// The kernel killed the command because the environment was out of memory. Absent: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schema(example = false)]
    pub oom_killed: bool,
}
