//! A caller's request for an execution, validated.

use std::time::Duration;

use agentbox_box_protocol::executions::is_id;
use agentbox_contracts::error::shortened;
use agentbox_contracts::executions::{
    DEFAULT_KEEP_BYTES, Execution, ExecutionStart, OnFull, Size, StdinMode,
};
use bytes::Bytes;
use nix::unistd::geteuid;
use tonic::Status;

use crate::process::{
    InvalidCommand, MAX_DURATION, ProcessSpec, arguments, size, variables, working_dir,
};
use crate::user::{Names, User};

/// The limit for `keep_bytes`.
const MAX_KEEP_BYTES: u64 = 16 * 1024 * 1024;
/// The limit for the name and the labels, in bytes.
const MAX_LABEL_BYTES: usize = 32 * 1024;
/// How much of the command the record shows, in bytes. All records are in boxd's memory.
const MAX_COMMAND_BYTES: usize = 16 * 1024;

pub struct ExecutionSpec {
    pub process: ProcessSpec,
    pub on_full: OnFull,
    pub keep_bytes: usize,
    /// All of stdin; then its end.
    pub stdin_bytes: Option<Bytes>,
    /// Callers may write to stdin.
    pub takes_input: bool,
    /// The record before the start.
    pub record: Execution,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidExecution {
    #[error("id: must have 1 to 128 characters of A-Z a-z 0-9 _ -, is `{}`", shortened(.0))]
    Id(String),
    #[error("{0}: must be a value of the contract, is {1}")]
    Enumeration(&'static str, i32),
    #[error("keep_bytes: must be at most {MAX_KEEP_BYTES}, is {0}")]
    KeepBytes(u64),
    #[error("labels: must have at most {MAX_LABEL_BYTES} bytes together with the name, have {0}")]
    Labels(usize),
    #[error(transparent)]
    Command(#[from] InvalidCommand),
}

impl InvalidExecution {
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Command(error) => error.status(),
            _ => Status::invalid_argument(self.to_string()),
        }
    }
}

impl TryFrom<ExecutionStart> for ExecutionSpec {
    type Error = InvalidExecution;

    fn try_from(start: ExecutionStart) -> Result<Self, InvalidExecution> {
        if !is_id(&start.id) {
            return Err(InvalidExecution::Id(start.id));
        }
        let stdin = StdinMode::try_from(start.stdin)
            .map_err(|_| InvalidExecution::Enumeration("stdin", start.stdin))?;
        let on_full = OnFull::try_from(start.on_full)
            .map_err(|_| InvalidExecution::Enumeration("on_full", start.on_full))?;
        let label_bytes: usize = start.labels.iter().map(|(k, v)| k.len() + v.len()).sum();
        if label_bytes + start.name.len() > MAX_LABEL_BYTES {
            return Err(InvalidExecution::Labels(label_bytes + start.name.len()));
        }
        let user = User::resolve(&start.user).map_err(InvalidCommand::from)?;
        let shown_command = shown_command(&start.command);
        let shown_directory = shown_directory(&start.working_dir);
        let terminal = start.tty.map(|tty| size(tty.cols, tty.rows));
        let process = ProcessSpec {
            argv: arguments(start.command)?,
            working_dir: working_dir(start.working_dir)?,
            variables: variables(start.env)?,
            terminal,
            stdin: stdin != StdinMode::None,
            merge_stderr: start.merge_stderr,
            timeout: duration(start.timeout_ms),
            orphan_grace: duration(start.orphan_grace_ms),
            user,
        };
        let record = Execution {
            id: start.id,
            name: start.name,
            command: shown_command,
            user: shown_user(process.user.as_ref()),
            working_dir: shown_directory,
            timeout_ms: start.timeout_ms,
            tty: terminal.map(|size| Size {
                cols: size.columns.into(),
                rows: size.rows.into(),
            }),
            labels: start.labels,
            ..Execution::default()
        };
        Ok(Self {
            on_full,
            keep_bytes: keep_bytes(start.keep_bytes)?,
            stdin_bytes: (stdin == StdinMode::Bytes).then_some(start.stdin_bytes),
            takes_input: stdin == StdinMode::Open || terminal.is_some(),
            process,
            record,
        })
    }
}

fn duration(milliseconds: u64) -> Option<Duration> {
    (milliseconds > 0).then(|| Duration::from_millis(milliseconds).min(MAX_DURATION))
}

fn keep_bytes(given: u64) -> Result<usize, InvalidExecution> {
    let wanted = match given {
        0 => DEFAULT_KEEP_BYTES,
        1..=MAX_KEEP_BYTES => given,
        _ => return Err(InvalidExecution::KeepBytes(given)),
    };
    Ok(usize::try_from(wanted).unwrap_or(usize::MAX))
}

fn shown_user(user: Option<&User>) -> String {
    let uid = user.map_or_else(|| geteuid().as_raw(), |user| user.uid);
    let name = match user {
        Some(user) => user.name.clone(),
        None => Names::read().user(uid),
    };
    if name.is_empty() {
        uid.to_string()
    } else {
        name
    }
}

/// boxd's own directory is the image's.
fn shown_directory(working_dir: &str) -> String {
    if !working_dir.is_empty() {
        return working_dir.to_owned();
    }
    let own = std::env::current_dir().unwrap_or_default();
    own.to_string_lossy().into_owned()
}

/// The command, cut to [`MAX_COMMAND_BYTES`].
fn shown_command(command: &[String]) -> Vec<String> {
    let mut left = MAX_COMMAND_BYTES;
    let mut shown = Vec::new();
    for argument in command {
        if left == 0 {
            break;
        }
        let kept = &argument[..argument.floor_char_boundary(left)];
        left = left.saturating_sub(kept.len() + 1);
        shown.push(kept.to_owned());
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> ExecutionStart {
        ExecutionStart {
            id: "exec-1".into(),
            command: vec!["true".into()],
            ..Default::default()
        }
    }

    fn error(start: ExecutionStart) -> InvalidExecution {
        ExecutionSpec::try_from(start).err().unwrap()
    }

    #[test]
    fn invalid_request_is_refused_with_its_field() {
        let id = ExecutionStart {
            id: "a/b".into(),
            ..start()
        };
        assert_eq!(error(id), InvalidExecution::Id("a/b".into()));
        let stdin = ExecutionStart {
            stdin: 9,
            ..start()
        };
        assert_eq!(error(stdin), InvalidExecution::Enumeration("stdin", 9));
        let on_full = ExecutionStart {
            on_full: -1,
            ..start()
        };
        assert_eq!(error(on_full), InvalidExecution::Enumeration("on_full", -1));
        let keep = ExecutionStart {
            keep_bytes: MAX_KEEP_BYTES + 1,
            ..start()
        };
        assert_eq!(error(keep), InvalidExecution::KeepBytes(MAX_KEEP_BYTES + 1));
        let labels = ExecutionStart {
            labels: [("a".into(), "x".repeat(MAX_LABEL_BYTES))].into(),
            ..start()
        };
        assert_eq!(error(labels), InvalidExecution::Labels(MAX_LABEL_BYTES + 1));
        let command = ExecutionStart {
            command: vec!["a\0".into()],
            ..start()
        };
        let nul = InvalidCommand::Nul("command");
        assert_eq!(error(command), InvalidExecution::Command(nul));
    }

    #[test]
    fn defaults_need_no_reader_and_no_timeout() {
        let spec = ExecutionSpec::try_from(start()).unwrap();
        assert_eq!(spec.process.timeout, None);
        assert_eq!(spec.process.orphan_grace, None);
        assert_eq!(spec.keep_bytes, 1024 * 1024);
        assert_eq!(spec.on_full, OnFull::Drop);
        assert!(!spec.takes_input && spec.stdin_bytes.is_none());
        assert!(!spec.record.user.is_empty());
        assert!(spec.record.working_dir.starts_with('/'));
        assert_eq!(keep_bytes(1), Ok(1));
        assert_eq!(keep_bytes(MAX_KEEP_BYTES), Ok(16 * 1024 * 1024));
    }

    #[test]
    fn long_command_is_cut_in_the_record_only() {
        let long = ExecutionStart {
            command: vec!["printf".into(), "€".repeat(20_000), "end".into()],
            ..start()
        };
        let spec = ExecutionSpec::try_from(long).unwrap();
        assert_eq!(spec.process.argv.len(), 3);
        assert_eq!(spec.record.command.len(), 2);
        assert_eq!(spec.record.command[0], "printf");
        let bytes: usize = spec.record.command.iter().map(String::len).sum();
        assert!(bytes <= MAX_COMMAND_BYTES, "{bytes}");
    }
}
