//! Running a command in an environment.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Seconds a command may take when its caller does not say.
pub const DEFAULT_TIMEOUT_S: u64 = 30;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OutputEncoding {
    /// Bytes that are not UTF-8 become U+FFFD.
    #[default]
    Utf8,
    /// Exact.
    Base64,
}

fn default_timeout() -> u64 {
    DEFAULT_TIMEOUT_S
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecBody {
    /// The program and its arguments.
    #[schema(schema_with = crate::schema::command)]
    pub command: Vec<String>,
    /// Seconds.
    #[serde(default = "default_timeout")]
    #[schema(minimum = 1, maximum = 3600, default = 30)]
    pub timeout: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    /// An absolute path; the image's working directory when absent.
    pub working_dir: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(schema_with = crate::schema::strings)]
    pub env: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    #[serde(default)]
    pub output_encoding: OutputEncoding,
}

/// How the command ended. A command that fails is an answer, not an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecReply {
    pub stdout: String,
    pub stderr: String,
    /// 124 timed out, 126 not executable, 127 not found, 128+N killed by signal N.
    pub exit_code: i32,
    pub duration_ms: u64,
    #[serde(default)]
    pub timed_out: bool,
    /// Output beyond the cap was dropped.
    #[serde(default)]
    pub stdout_truncated: bool,
    #[serde(default)]
    pub stderr_truncated: bool,
    /// The kernel killed it for lack of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
}
