//! What a caller asks to start, checked.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use agentbox_box_protocol::proto;

use super::RunId;
use super::id::InvalidRunId;
use crate::terminal::Size;
use crate::trace::Trace;

const DEFAULT_ORPHAN_GRACE: Duration = Duration::from_secs(3);
/// Longer than any box lives; keeps instants representable.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWish {
    #[error(transparent)]
    Id(#[from] InvalidRunId),
    #[error("a command is needed where there is no terminal")]
    NoCommand,
    #[error("{0} contains a NUL byte")]
    Nul(&'static str),
    #[error("env: a name is empty or contains `=`")]
    VariableName,
}

pub struct Wish {
    pub id: RunId,
    /// Empty: a shell.
    pub argv: Vec<OsString>,
    pub working_dir: Option<PathBuf>,
    pub variables: Vec<(OsString, OsString)>,
    pub terminal: Option<Size>,
    pub stdin: bool,
    pub timeout: Option<Duration>,
    pub orphan_grace: Duration,
    pub acks: bool,
    /// Of the call that wishes it, if that is recorded.
    pub trace: Option<Trace>,
}

impl TryFrom<proto::StartCommand> for Wish {
    type Error = InvalidWish;

    fn try_from(start: proto::StartCommand) -> Result<Self, InvalidWish> {
        let terminal = start.tty.map(size);
        if start.command.is_empty() && terminal.is_none() {
            return Err(InvalidWish::NoCommand);
        }
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
                .then(|| Duration::from_millis(start.timeout_ms).min(LONGEST)),
            orphan_grace: match start.orphan_grace_ms {
                0 => DEFAULT_ORPHAN_GRACE,
                given => Duration::from_millis(given).min(LONGEST),
            },
            acks: start.acks,
            trace: None,
        })
    }
}

/// A terminal has at least one column and one row.
#[must_use]
pub fn size(resize: proto::Resize) -> Size {
    let cells = |count: u32| u16::try_from(count.max(1)).unwrap_or(u16::MAX);
    Size {
        columns: cells(resize.cols),
        rows: cells(resize.rows),
    }
}

/// # Errors
/// [`InvalidWish::Nul`].
pub fn arguments(command: Vec<String>) -> Result<Vec<OsString>, InvalidWish> {
    command
        .into_iter()
        .map(|argument| without_nul(argument, "command"))
        .collect()
}

/// # Errors
/// [`InvalidWish::Nul`], [`InvalidWish::VariableName`].
pub fn variables(
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<(OsString, OsString)>, InvalidWish> {
    let checked = |(name, value): (String, String)| {
        if name.is_empty() || name.contains('=') {
            return Err(InvalidWish::VariableName);
        }
        Ok((without_nul(name, "env")?, without_nul(value, "env")?))
    };
    env.into_iter().map(checked).collect()
}

fn without_nul(text: String, what: &'static str) -> Result<OsString, InvalidWish> {
    if text.contains('\0') {
        Err(InvalidWish::Nul(what))
    } else {
        Ok(text.into())
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
    fn what_cannot_be_executed_is_refused_before_anything_starts() {
        let nul = || "a\0b".to_owned();
        for (wish, error) in [
            (
                proto::StartCommand {
                    command: vec![],
                    ..start()
                },
                InvalidWish::NoCommand,
            ),
            (
                proto::StartCommand {
                    command: vec![nul()],
                    ..start()
                },
                InvalidWish::Nul("command"),
            ),
            (
                proto::StartCommand {
                    working_dir: nul(),
                    ..start()
                },
                InvalidWish::Nul("working_dir"),
            ),
            (
                proto::StartCommand {
                    env: [("A".into(), nul())].into(),
                    ..start()
                },
                InvalidWish::Nul("env"),
            ),
            (
                proto::StartCommand {
                    env: [("A=".into(), "".into())].into(),
                    ..start()
                },
                InvalidWish::VariableName,
            ),
            (
                proto::StartCommand {
                    run_id: "a.b".into(),
                    ..start()
                },
                InvalidWish::Id(InvalidRunId),
            ),
        ] {
            assert_eq!(Wish::try_from(wish).err(), Some(error));
        }
    }

    #[test]
    fn any_number_is_a_duration_and_zero_is_the_default() {
        let wish = Wish::try_from(start()).unwrap();
        assert_eq!(
            (wish.timeout, wish.orphan_grace),
            (None, DEFAULT_ORPHAN_GRACE)
        );
        let endless = proto::StartCommand {
            timeout_ms: u64::MAX,
            orphan_grace_ms: u64::MAX,
            ..start()
        };
        let wish = Wish::try_from(endless).unwrap();
        assert_eq!((wish.timeout, wish.orphan_grace), (Some(LONGEST), LONGEST));
    }

    #[test]
    fn a_terminal_needs_no_command_and_always_reads() {
        let tty = Some(proto::Resize {
            cols: 0,
            rows: 100_000,
        });
        let wish = Wish::try_from(proto::StartCommand {
            command: vec![],
            tty,
            ..start()
        })
        .unwrap();
        assert!(wish.stdin);
        assert_eq!(
            wish.terminal,
            Some(Size {
                columns: 1,
                rows: u16::MAX
            })
        );
    }
}
