//! Executions in the events of their environments, which an environment asks for by a label.

use serde::{Deserialize, Serialize};

use super::EnvironmentRequest;
use crate::executions::ExecutionStatus;
use crate::ids::ExecId;

/// The label that asks for events about executions, with the value [`EXECUTION_EVENTS_ON`].
pub const EXECUTION_EVENTS_LABEL: &str = "execution-events";
/// Any other value does not ask for them.
pub const EXECUTION_EVENTS_ON: &str = "true";

impl EnvironmentRequest {
    /// Whether its executions have events.
    #[must_use]
    pub fn has_execution_events(&self) -> bool {
        let value = self.labels.get(EXECUTION_EVENTS_LABEL);
        value.is_some_and(|value| value == EXECUTION_EVENTS_ON)
    }
}

/// The status of an execution in an event. `running` when it starts; the others at its end, as in
/// `GET /environments/{id}/executions`.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = "exited"))]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case", const_into_str)]
pub enum EventExecutionStatus {
    Running,
    Exited,
    Signalled,
    TimedOut,
    OomKilled,
    FailedToStart,
}

impl EventExecutionStatus {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.into_str()
    }

    /// `None`: it has not started yet, or its end is not known.
    #[must_use]
    pub const fn of(status: ExecutionStatus) -> Option<Self> {
        match status {
            ExecutionStatus::Running => Some(Self::Running),
            ExecutionStatus::Exited => Some(Self::Exited),
            ExecutionStatus::Signalled => Some(Self::Signalled),
            ExecutionStatus::TimedOut => Some(Self::TimedOut),
            ExecutionStatus::OomKilled => Some(Self::OomKilled),
            ExecutionStatus::FailedToStart => Some(Self::FailedToStart),
            ExecutionStatus::Starting | ExecutionStatus::Lost => None,
        }
    }

    #[must_use]
    pub const fn is_ended(self) -> bool {
        !matches!(self, Self::Running)
    }
}

/// An execution, in an event about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = json!({
    "id": "exec-0123456789abcdef", "status": "exited", "exit_code": 0
})))]
pub struct EventExecution {
    /// The id of the execution.
    pub id: ExecId,
    /// The status of the execution after the event.
    pub status: EventExecutionStatus,
    /// The exit code of the command. Absent while it runs, or if it did not exit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = 0))]
    pub exit_code: Option<i32>,
}

#[cfg(test)]
mod tests {
    use strum::VariantArray as _;

    use super::*;

    #[test]
    fn status_text_is_its_json() {
        for status in EventExecutionStatus::VARIANTS {
            assert_eq!(serde_json::json!(status), status.as_str());
            assert_eq!(status.as_str().parse(), Ok(*status));
        }
    }

    #[test]
    fn execution_without_a_known_state_has_no_event() {
        for status in [ExecutionStatus::Starting, ExecutionStatus::Lost] {
            assert_eq!(EventExecutionStatus::of(status), None);
        }
        let timed_out = EventExecutionStatus::of(ExecutionStatus::TimedOut).unwrap();
        assert!(timed_out.is_ended() && !EventExecutionStatus::Running.is_ended());
    }
}
