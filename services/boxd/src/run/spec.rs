//! A caller's request to start a command, validated.

use std::fmt;
use std::time::Duration;

use agentbox_box_protocol::proto;
use tonic::Status;

use crate::process::{
    InvalidCommand, MAX_DURATION, ProcessSpec, arguments, size, variables, working_dir,
};
use crate::trace::Trace;
use crate::user::User;

const DEFAULT_ORPHAN_GRACE: Duration = Duration::from_secs(3);
const MAX_RUN_ID_LEN: usize = 128;

/// The id of a run, chosen by its caller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunId(String);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("run_id: must have 1 to {MAX_RUN_ID_LEN} characters of A-Z a-z 0-9 _ -")]
pub struct InvalidRunId;

impl TryFrom<String> for RunId {
    type Error = InvalidRunId;
    fn try_from(text: String) -> Result<Self, InvalidRunId> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if (1..=MAX_RUN_ID_LEN).contains(&text.len()) && text.bytes().all(valid) {
            Ok(Self(text))
        } else {
            Err(InvalidRunId)
        }
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRunSpec {
    #[error(transparent)]
    Id(#[from] InvalidRunId),
    #[error(transparent)]
    Command(#[from] InvalidCommand),
}

impl InvalidRunSpec {
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Id(error) => Status::invalid_argument(error.to_string()),
            Self::Command(error) => error.status(),
        }
    }
}

pub struct RunSpec {
    pub id: RunId,
    pub process: ProcessSpec,
    pub acks: bool,
    /// The caller's trace, when it is sampled.
    pub trace: Option<Trace>,
}

impl TryFrom<proto::StartCommand> for RunSpec {
    type Error = InvalidRunSpec;

    fn try_from(start: proto::StartCommand) -> Result<Self, InvalidRunSpec> {
        let id = start.run_id.try_into()?;
        let orphan_grace = match start.orphan_grace_ms {
            0 => DEFAULT_ORPHAN_GRACE,
            given => Duration::from_millis(given).min(MAX_DURATION),
        };
        let process = ProcessSpec {
            argv: arguments(start.command)?,
            user: User::resolve(&start.user).map_err(InvalidCommand::from)?,
            working_dir: working_dir(start.working_dir)?,
            variables: variables(start.env)?,
            terminal: start.tty.map(|tty| size(tty.cols, tty.rows)),
            stdin: start.stdin,
            merge_stderr: start.merge_stderr,
            timeout: (start.timeout_ms > 0)
                .then(|| Duration::from_millis(start.timeout_ms).min(MAX_DURATION)),
            orphan_grace: Some(orphan_grace),
        };
        Ok(Self {
            id,
            process,
            acks: start.acks,
            trace: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::Size;

    fn start() -> proto::StartCommand {
        proto::StartCommand {
            run_id: "exec-1".into(),
            command: vec!["true".into()],
            ..Default::default()
        }
    }

    #[test]
    fn invalid_start_command_is_rejected() {
        let nul = || "a\0b".to_owned();
        for (spec, error) in [
            (
                proto::StartCommand {
                    command: vec![nul()],
                    ..start()
                },
                InvalidCommand::Nul("command").into(),
            ),
            (
                proto::StartCommand {
                    working_dir: nul(),
                    ..start()
                },
                InvalidCommand::Nul("working_dir").into(),
            ),
            (
                proto::StartCommand {
                    env: [("A".into(), nul())].into(),
                    ..start()
                },
                InvalidCommand::Nul("env").into(),
            ),
            (
                proto::StartCommand {
                    env: [("A=".into(), "".into())].into(),
                    ..start()
                },
                InvalidCommand::VariableName.into(),
            ),
            (
                proto::StartCommand {
                    run_id: "a.b".into(),
                    ..start()
                },
                InvalidRunSpec::Id(InvalidRunId),
            ),
        ] {
            assert_eq!(RunSpec::try_from(spec).err(), Some(error));
        }
    }

    #[test]
    fn durations_are_clamped_and_zero_is_default() {
        let spec = RunSpec::try_from(start()).unwrap();
        assert_eq!(
            (spec.process.timeout, spec.process.orphan_grace),
            (None, Some(DEFAULT_ORPHAN_GRACE))
        );
        let endless = proto::StartCommand {
            timeout_ms: u64::MAX,
            orphan_grace_ms: u64::MAX,
            ..start()
        };
        let spec = RunSpec::try_from(endless).unwrap();
        assert_eq!(
            (spec.process.timeout, spec.process.orphan_grace),
            (Some(MAX_DURATION), Some(MAX_DURATION))
        );
    }

    #[test]
    fn terminal_has_clamped_size() {
        let tty = Some(proto::Resize {
            cols: 0,
            rows: 100_000,
        });
        let spec = RunSpec::try_from(proto::StartCommand {
            command: vec![],
            tty,
            ..start()
        })
        .unwrap();
        assert_eq!(
            spec.process.terminal,
            Some(Size {
                columns: 1,
                rows: u16::MAX
            })
        );
    }
}
