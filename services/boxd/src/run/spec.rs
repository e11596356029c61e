//! A caller's request to start a command, validated.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use agentbox_box_protocol::proto;
use agentbox_contracts::command::is_variable_name;

use crate::terminal::Size;
use crate::trace::Trace;

const DEFAULT_ORPHAN_GRACE: Duration = Duration::from_secs(3);
/// The longest duration used; longer ones are clamped so that instants do not overflow.
const MAX_DURATION: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
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
    #[error("{0}: must not contain a NUL byte")]
    Nul(&'static str),
    #[error("env: a name must not be empty or contain `=`")]
    VariableName,
}

pub struct RunSpec {
    pub id: RunId,
    /// Empty: the image's shell.
    pub argv: Vec<OsString>,
    pub working_dir: Option<PathBuf>,
    pub variables: Vec<(OsString, OsString)>,
    pub terminal: Option<Size>,
    pub stdin: bool,
    pub timeout: Option<Duration>,
    pub orphan_grace: Duration,
    pub acks: bool,
    /// The caller's trace, when it is sampled.
    pub trace: Option<Trace>,
}

impl TryFrom<proto::StartCommand> for RunSpec {
    type Error = InvalidRunSpec;

    fn try_from(start: proto::StartCommand) -> Result<Self, InvalidRunSpec> {
        let terminal = start.tty.map(size);
        Ok(Self {
            id: start.run_id.try_into()?,
            argv: arguments(start.command)?,
            working_dir: if start.working_dir.is_empty() {
                None
            } else {
                Some(without_nul(start.working_dir, "working_dir")?.into())
            },
            variables: variables(start.env)?,
            terminal,
            stdin: start.stdin || terminal.is_some(),
            timeout: (start.timeout_ms > 0)
                .then(|| Duration::from_millis(start.timeout_ms).min(MAX_DURATION)),
            orphan_grace: match start.orphan_grace_ms {
                0 => DEFAULT_ORPHAN_GRACE,
                given => Duration::from_millis(given).min(MAX_DURATION),
            },
            acks: start.acks,
            trace: None,
        })
    }
}

/// The terminal size, at least one column and one row.
#[must_use]
pub fn size(resize: proto::Resize) -> Size {
    let cells = |count: u32| u16::try_from(count.max(1)).unwrap_or(u16::MAX);
    Size {
        columns: cells(resize.cols),
        rows: cells(resize.rows),
    }
}

/// # Errors
/// [`InvalidRunSpec::Nul`].
pub fn arguments(command: Vec<String>) -> Result<Vec<OsString>, InvalidRunSpec> {
    command
        .into_iter()
        .map(|argument| Ok(without_nul(argument, "command")?.into()))
        .collect()
}

/// # Errors
/// [`InvalidRunSpec::Nul`], [`InvalidRunSpec::VariableName`].
pub fn variables(
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<(OsString, OsString)>, InvalidRunSpec> {
    let checked = |(name, value): (String, String)| {
        let (name, value) = (without_nul(name, "env")?, without_nul(value, "env")?);
        if !is_variable_name(&name) {
            return Err(InvalidRunSpec::VariableName);
        }
        Ok((name.into(), value.into()))
    };
    env.into_iter().map(checked).collect()
}

fn without_nul(text: String, field: &'static str) -> Result<String, InvalidRunSpec> {
    if text.contains('\0') {
        Err(InvalidRunSpec::Nul(field))
    } else {
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
                InvalidRunSpec::Nul("command"),
            ),
            (
                proto::StartCommand {
                    working_dir: nul(),
                    ..start()
                },
                InvalidRunSpec::Nul("working_dir"),
            ),
            (
                proto::StartCommand {
                    env: [("A".into(), nul())].into(),
                    ..start()
                },
                InvalidRunSpec::Nul("env"),
            ),
            (
                proto::StartCommand {
                    env: [("A=".into(), "".into())].into(),
                    ..start()
                },
                InvalidRunSpec::VariableName,
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
            (spec.timeout, spec.orphan_grace),
            (None, DEFAULT_ORPHAN_GRACE)
        );
        let endless = proto::StartCommand {
            timeout_ms: u64::MAX,
            orphan_grace_ms: u64::MAX,
            ..start()
        };
        let spec = RunSpec::try_from(endless).unwrap();
        assert_eq!(
            (spec.timeout, spec.orphan_grace),
            (Some(MAX_DURATION), MAX_DURATION)
        );
    }

    #[test]
    fn terminal_without_command_has_stdin_and_clamped_size() {
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
        assert!(spec.stdin);
        assert_eq!(
            spec.terminal,
            Some(Size {
                columns: 1,
                rows: u16::MAX
            })
        );
    }
}
