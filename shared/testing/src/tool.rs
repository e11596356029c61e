//! Runs command-line tools (`ip`, `nft`, `ctr`, `initdb`, …) and reports why one failed.
//!
//! * I1. Every run has a deadline; a tool that exceeds it is killed.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::log_tail::last_lines;

/// `PATH` with the sbin directories. They contain `nft`, `runc` and `iptables`, and are not on
/// every user's `PATH`.
#[must_use]
pub fn search_path() -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    format!("{own}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

/// A tool failed.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("cannot run `{program}`: {source}")]
    Spawn {
        program: String,
        source: std::io::Error,
    },
    #[error("`{program}` failed: {message}")]
    Failed { program: String, message: String },
    #[error("`{program}` did not finish within {deadline:?}")]
    Deadline { program: String, deadline: Duration },
}

/// One run of a tool.
#[derive(Debug)]
pub struct Tool {
    program: String,
    command: Command,
    deadline: Duration,
}

impl Tool {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        let mut command = Command::new(program);
        command
            .env("PATH", search_path())
            // A tool that runs as another user may have no access to this directory.
            .current_dir("/")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Self {
            program: program.to_string_lossy().into_owned(),
            command,
            deadline: Duration::from_secs(20),
        }
    }

    #[must_use]
    pub fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.command.args(args);
        self
    }

    #[must_use]
    pub fn arg_pair(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.args([OsStr::new(name), value.as_ref()])
    }

    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Replaces the deadline of 20 s.
    #[must_use]
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs it until it exits; gives its standard output.
    ///
    /// # Errors
    /// When it cannot be started, exits with a code other than 0, or exceeds its deadline.
    pub async fn run(mut self) -> Result<String, ToolError> {
        let program = self.program;
        let output = match tokio::time::timeout(self.deadline, self.command.output()).await {
            Err(_) => {
                return Err(ToolError::Deadline {
                    program,
                    deadline: self.deadline,
                });
            }
            Ok(Err(source)) => return Err(ToolError::Spawn { program, source }),
            Ok(Ok(output)) => output,
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let reason = last_lines(&stderr, 3);
        Err(ToolError::Failed {
            program,
            message: if reason.is_empty() {
                output.status.to_string()
            } else {
                reason
            },
        })
    }
}

/// The path of a program on the search path.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path())
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn failed_tool_is_named_with_its_last_lines() {
        let error = Tool::new("sh")
            .args(["-c", "echo first >&2; echo the reason >&2; exit 3"])
            .run()
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "`sh` failed: first | the reason");
    }

    #[tokio::test]
    async fn hanging_tool_is_killed_at_its_deadline() {
        let error = Tool::new("sleep")
            .args(["60"])
            .within(Duration::from_millis(50))
            .run()
            .await
            .unwrap_err();
        assert!(matches!(error, ToolError::Deadline { .. }), "{error}");
    }
}
