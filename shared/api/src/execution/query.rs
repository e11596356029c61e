//! The parameters of the requests on executions.

use agentbox_contracts::logs::OutputStream;
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use super::ExecutionStatus;

/// Which executions to list.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListExecutionsQuery {
    /// Return only executions with this status. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(inline)]
    pub status: Option<ExecutionStatus>,
    /// Return only executions that match this Kubernetes label selector, whose requirements are
    /// joined by commas. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(example = "step=train")]
    pub label: Option<String>,
    /// The largest number of executions to return, 1 to 1000. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 1000, default = 100, example = 50)]
    pub limit: Option<u32>,
    /// The number of executions to skip, from the newest. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(default = 0, example = 0)]
    pub offset: Option<u64>,
}

/// How long to wait for the end of an execution.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Seconds to wait for the end of the execution, at most 60. The answer comes as soon as it has
    /// ended. Default: 0.
    #[serde(default)]
    #[param(minimum = 0, maximum = 60, default = 0, example = 30)]
    pub wait: u64,
}

/// Which output to read, and how.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OutputQuery {
    /// Return this stream only. Default: both, as server-sent events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(inline)]
    pub stream: Option<OutputStream>,
    /// Follow the output until the execution has ended, as server-sent events. Default: false.
    #[serde(default)]
    #[param(default = false, example = false)]
    pub follow: bool,
    /// Where to begin. With server-sent events the `id` of an event: the output after it; default: the
    /// beginning, and a `gap` reports what is no longer kept. For the bytes of one stream an offset in
    /// bytes; default: the oldest kept byte.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(example = "4096-0")]
    pub from: Option<String>,
    /// A single-use ticket for `output`, instead of an Authorization header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(example = "ticket_0123456789abcdef0123456789abcdef")]
    pub ticket: Option<String>,
}

/// How to write to stdin.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StdinQuery {
    /// Close stdin after the body. Default: false.
    #[serde(default)]
    #[param(default = false, example = true)]
    pub close: bool,
}

/// How to attach to an execution.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AttachExecutionQuery {
    /// The bytes of stdout and of stderr that the client has, `<stdout>-<stderr>`. The output continues
    /// there. Default: the last screenful of a terminal, else all kept output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(example = "4096-0")]
    pub from: Option<String>,
    /// Send output as binary frames instead of text messages: one byte that names the stream (1:
    /// stdout, 2: stderr), then the output, byte for byte. Default: false.
    #[serde(default)]
    #[param(default = false, example = false)]
    pub binary: bool,
    /// A single-use ticket for `execution_attach`, instead of an Authorization header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(example = "ticket_0123456789abcdef0123456789abcdef")]
    pub ticket: Option<String>,
}

/// How to delete an execution.
#[derive(Clone, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteExecutionQuery {
    /// Forget the execution too, if it has ended: its record and its output. Default: false.
    #[serde(default)]
    #[param(default = false, example = false)]
    pub purge: bool,
}
