//! A caller's request for a process, validated.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use agentbox_contracts::command::is_variable_name;
use tonic::{Code, Status};

use crate::status::with_code;
use crate::terminal::Size;
use crate::user::{User, UserError};

/// The longest duration used; longer ones are clamped so that instants do not overflow.
pub const MAX_DURATION: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCommand {
    #[error("{0}: must not contain a NUL byte")]
    Nul(&'static str),
    #[error("env: a name must not be empty or contain `=`")]
    VariableName,
    #[error(transparent)]
    User(#[from] UserError),
}

impl InvalidCommand {
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::User(error) => with_code(Code::InvalidArgument, error.code(), &error.to_string()),
            Self::Nul(_) | Self::VariableName => Status::invalid_argument(self.to_string()),
        }
    }
}

pub struct ProcessSpec {
    /// Empty: the image's shell.
    pub argv: Vec<OsString>,
    /// `None`: boxd's own, which is the box's.
    pub user: Option<User>,
    /// `None`: the image's.
    pub working_dir: Option<PathBuf>,
    pub variables: Vec<(OsString, OsString)>,
    pub terminal: Option<Size>,
    /// False: stdin is /dev/null. A terminal is stdin in any case.
    pub stdin: bool,
    /// Stderr is stdout's pipe.
    pub merge_stderr: bool,
    pub timeout: Option<Duration>,
    /// How long it may run without a reader. `None`: it needs none.
    pub orphan_grace: Option<Duration>,
}

/// The terminal size, at least one column and one row.
#[must_use]
pub fn size(columns: u32, rows: u32) -> Size {
    let cells = |count: u32| u16::try_from(count.max(1)).unwrap_or(u16::MAX);
    Size {
        columns: cells(columns),
        rows: cells(rows),
    }
}

/// # Errors
/// [`InvalidCommand::Nul`].
pub fn arguments(command: Vec<String>) -> Result<Vec<OsString>, InvalidCommand> {
    command
        .into_iter()
        .map(|argument| Ok(without_nul(argument, "command")?.into()))
        .collect()
}

/// # Errors
/// [`InvalidCommand::Nul`].
pub fn working_dir(directory: String) -> Result<Option<PathBuf>, InvalidCommand> {
    if directory.is_empty() {
        return Ok(None);
    }
    Ok(Some(without_nul(directory, "working_dir")?.into()))
}

/// # Errors
/// [`InvalidCommand::Nul`], [`InvalidCommand::VariableName`].
pub fn variables(
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<(OsString, OsString)>, InvalidCommand> {
    let checked = |(name, value): (String, String)| {
        let (name, value) = (without_nul(name, "env")?, without_nul(value, "env")?);
        if !is_variable_name(&name) {
            return Err(InvalidCommand::VariableName);
        }
        Ok((name.into(), value.into()))
    };
    env.into_iter().map(checked).collect()
}

fn without_nul(text: String, field: &'static str) -> Result<String, InvalidCommand> {
    if text.contains('\0') {
        Err(InvalidCommand::Nul(field))
    } else {
        Ok(text)
    }
}
