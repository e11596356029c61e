//! Starts and stops one child process.
//!
//! * I1. A child does not outlive the supervisor, even a killed one: the kernel sends the child a
//!   signal (`PR_SET_PDEATHSIG`, set by `setpriv`, so that this crate needs no `unsafe`).
//! * I2. Its output goes to a log file of bounded size and does not block the child.
//! * I3. Stopping it takes at most its grace period; then it is killed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use agentbox_testing::ProcessIdentity;
use agentbox_testing::tool::search_path;
use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::log_file::{LIMIT_BYTES, LogFile};

/// How a program is started and stopped.
#[derive(Clone, Debug)]
pub(crate) struct ProcessSpec {
    /// The name in the log directory and in `status`, such as `auth-0`.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    /// A program that is started in its place when this file exists.
    pub(crate) program_override: Option<PathBuf>,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: BTreeMap<String, String>,
    /// A file with further variables, one `NAME=VALUE` a line. It is read at each start while it exists;
    /// `environment` overrides it.
    pub(crate) environment_file: Option<PathBuf>,
    /// The system user that runs the program; `None` is the supervisor's user.
    pub(crate) user: Option<String>,
    /// The signal that requests a graceful stop.
    pub(crate) stop_signal: Signal,
    /// The signal that the kernel sends when the supervisor exits.
    pub(crate) orphan_signal: Signal,
    /// The time from `stop_signal` to SIGKILL.
    pub(crate) grace: Duration,
    pub(crate) log: PathBuf,
}

/// A running child process.
#[derive(Debug)]
pub(crate) struct RunningProcess {
    pub(crate) identity: ProcessIdentity,
    child: Child,
    output: JoinHandle<()>,
}

impl ProcessSpec {
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub(crate) fn start(&self) -> io::Result<RunningProcess> {
        let log = LogFile::open(&self.log, LIMIT_BYTES)?;
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new("setpriv");
        command.arg("--pdeathsig").arg(self.orphan_signal.as_str());
        if let Some(user) = &self.user {
            command
                .arg(format!("--reuid={user}"))
                .arg(format!("--regid={user}"))
                .arg("--clear-groups");
        }
        command
            .arg("--")
            .arg(self.current_program())
            .args(&self.arguments)
            .env("PATH", search_path())
            .envs(self.further_environment())
            .envs(&self.environment)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            // Only the supervisor receives a terminal's Ctrl-C; it stops the children in order.
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn()?;
        drop(command);
        let pid = child.id().unwrap_or_default();
        let identity = ProcessIdentity::of(pid).unwrap_or(ProcessIdentity {
            pid,
            start_ticks: 0,
        });
        let reader = pipe::Receiver::from_owned_fd(reader.into())?;
        Ok(RunningProcess {
            identity,
            child,
            output: tokio::task::spawn(copy_output(reader, log)),
        })
    }
}

impl ProcessSpec {
    fn current_program(&self) -> &Path {
        match &self.program_override {
            Some(path) if path.is_file() => path,
            _ => &self.program,
        }
    }

    /// The variables in the environment file; none without one.
    fn further_environment(&self) -> BTreeMap<String, String> {
        let file = self.environment_file.as_ref();
        let text = file.and_then(|file| std::fs::read_to_string(file).ok());
        text.unwrap_or_default()
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }
}

async fn copy_output(mut reader: pipe::Receiver, mut log: LogFile) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count) = reader.read(&mut buffer).await {
        if count == 0 {
            return;
        }
        // A full disk must not block the child: output that cannot be written is dropped.
        let _ = log.write(&buffer[..count]);
    }
}

impl RunningProcess {
    /// Waits until the process exits. This method is cancel-safe.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Sends the stop signal, and SIGKILL after the grace period. Returns when the process has
    /// exited and its last output is in the log.
    pub(crate) async fn stop(mut self, spec: &ProcessSpec) {
        self.identity.signal(spec.stop_signal);
        if tokio::time::timeout(spec.grace, self.child.wait())
            .await
            .is_err()
        {
            let _ = self.child.kill().await;
        }
        self.drain_output().await;
    }

    /// Reads the remaining output after the exit, for a limited time: a grandchild may still
    /// hold the pipe open.
    pub(crate) async fn drain_output(mut self) {
        let _ = tokio::time::timeout(Duration::from_millis(300), &mut self.output).await;
        self.output.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(directory: &std::path::Path, script: &str, grace: Duration) -> ProcessSpec {
        ProcessSpec {
            name: "child".to_owned(),
            program: "/bin/sh".into(),
            program_override: None,
            arguments: vec!["-c".into(), script.into()],
            environment: BTreeMap::new(),
            environment_file: None,
            user: None,
            stop_signal: Signal::SIGTERM,
            orphan_signal: Signal::SIGKILL,
            grace,
            log: directory.join("child.log"),
        }
    }

    #[tokio::test]
    async fn exited_child_has_both_streams_in_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let spec = spec(dir.path(), "echo out; echo err >&2", Duration::from_secs(5));
        let mut running = spec.start().unwrap();
        assert!(running.wait().await.unwrap().success());
        running.drain_output().await;
        let log = std::fs::read_to_string(&spec.log).unwrap();
        assert_eq!(log, "out\nerr\n");
    }

    /// Waits until the process has succeeded, and its output is in the log.
    async fn expect_log(spec: &ProcessSpec, mut running: RunningProcess, expected: &str) {
        assert!(running.wait().await.unwrap().success());
        let within = Duration::from_secs(30);
        agentbox_testing::eventually("the output is in the log", within, async || {
            std::fs::read_to_string(&spec.log).unwrap() == expected
        })
        .await;
    }

    #[tokio::test]
    async fn program_override_is_started_once_its_file_exists() {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = spec(dir.path(), "echo shell", Duration::from_secs(5));
        spec.program_override = Some(dir.path().join("override"));
        for expected in ["shell\n", "shell\n-c echo shell\n"] {
            expect_log(&spec, spec.start().unwrap(), expected).await;
            std::os::unix::fs::symlink("/bin/echo", dir.path().join("override")).ok();
        }
    }

    #[tokio::test]
    async fn environment_file_applies_at_the_next_start_and_is_overridden() {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = spec(
            dir.path(),
            "echo ${A:-none} ${B:-none}",
            Duration::from_secs(5),
        );
        spec.environment.insert("A".to_owned(), "own".to_owned());
        let file = dir.path().join("further.env");
        spec.environment_file = Some(file.clone());
        for expected in ["own none\n", "own none\nown file=1\n"] {
            expect_log(&spec, spec.start().unwrap(), expected).await;
            std::fs::write(&file, "A=file\nB=file=1\n").unwrap();
        }
    }

    #[tokio::test]
    async fn child_that_ignores_the_stop_signal_is_killed_after_its_grace() {
        let dir = tempfile::tempdir().unwrap();
        let script = "trap '' TERM; echo ready; while :; do sleep 1; done";
        let spec = spec(dir.path(), script, Duration::from_millis(100));
        let running = spec.start().unwrap();
        let identity = running.identity;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        while !agentbox_testing::log_tail::tail(&spec.log, 100).contains("ready") {
            assert!(tokio::time::Instant::now() < deadline, "it never started");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(identity.is_alive());
        running.stop(&spec).await;
        assert!(!identity.is_alive());
    }
}
