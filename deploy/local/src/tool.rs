//! Runs the system's own tools (`ip`, `nft`, `ctr`, `initdb`, …) and says what failed.
//!
//! Never waits without a deadline; a tool that is too slow is killed.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// Sbin directories are not on every user's PATH, and `nft`, `runc` and `iptables` live there.
pub(crate) fn search_path() -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    format!("{own}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

/// A tool did not do what it was asked to.
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

/// One call of a tool.
#[derive(Debug)]
pub(crate) struct Tool {
    program: String,
    command: Command,
    deadline: Duration,
}

impl Tool {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let program = program.as_ref();
        let mut command = Command::new(program);
        command
            .env("PATH", search_path())
            // Another user's tool may not even enter ours.
            .current_dir("/")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Self {
            program: program.to_string_lossy().into_owned(),
            command,
            deadline: Duration::from_secs(20),
        }
    }

    pub(crate) fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        self.command.args(args);
        self
    }

    pub(crate) fn arg_pair(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.args([OsStr::new(name), value.as_ref()])
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    pub(crate) fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs it to its end; gives its standard output.
    ///
    /// # Errors
    /// When it cannot be started, exits with another code than 0, or takes too long.
    pub(crate) async fn run(mut self) -> Result<String, ToolError> {
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
        let said = last_lines(&stderr, 3);
        Err(ToolError::Failed {
            program,
            message: if said.is_empty() {
                output.status.to_string()
            } else {
                said
            },
        })
    }
}

/// The last lines that say something, joined to one.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(count)..].join(" | ")
}

/// Whether a program of this name is on the search path.
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    std::env::split_paths(&search_path())
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failing_tool_is_named_with_its_last_words() {
        let error = Tool::new("sh")
            .args(["-c", "echo first >&2; echo the reason >&2; exit 3"])
            .run()
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "`sh` failed: first | the reason");
    }

    #[tokio::test]
    async fn a_tool_that_hangs_is_ended_at_its_deadline() {
        let error = Tool::new("sleep")
            .args(["60"])
            .within(Duration::from_millis(50))
            .run()
            .await
            .unwrap_err();
        assert!(matches!(error, ToolError::Deadline { .. }), "{error}");
    }
}
