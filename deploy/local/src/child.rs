//! Starting and ending one child process.
//!
//! * I1. A child does not outlive the supervisor, however that ends: the kernel signals
//!   it (`PR_SET_PDEATHSIG`, set by `setpriv`, so that this crate needs no `unsafe`).
//! * I2. Its output goes to its bounded log file and never blocks it for long.
//! * I3. Ending it waits at most its grace and then kills it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::identity::ProcessIdentity;
use crate::log_file::{LIMIT_BYTES, LogFile};
use crate::tool::search_path;

/// What to start, and how to end it.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// Its name in the log directory and in `status`: `auth-0`.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: BTreeMap<String, String>,
    /// The system user to become; `None` stays.
    pub(crate) user: Option<String>,
    /// Asks it to end.
    pub(crate) stop_signal: Signal,
    /// What it gets when the supervisor is gone.
    pub(crate) orphan_signal: Signal,
    /// From `stop_signal` to SIGKILL.
    pub(crate) grace: Duration,
    pub(crate) log: PathBuf,
}

/// A started child.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) identity: ProcessIdentity,
    child: Child,
    output: JoinHandle<()>,
}

impl Launch {
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub(crate) fn start(&self) -> io::Result<Running> {
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
            .arg(&self.program)
            .args(&self.arguments)
            .env("PATH", search_path())
            .envs(&self.environment)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(writer.try_clone()?)
            .stderr(writer)
            // A terminal's Ctrl-C is for the supervisor, which then ends them in order.
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
        Ok(Running {
            identity,
            child,
            output: tokio::task::spawn(copy_output(reader, log)),
        })
    }
}

async fn copy_output(mut reader: pipe::Receiver, mut log: LogFile) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count) = reader.read(&mut buffer).await {
        if count == 0 {
            return;
        }
        // A full disk must not stop the child: what cannot be kept is dropped.
        let _ = log.write(&buffer[..count]);
    }
}

impl Running {
    /// Waits for its end; cancel-safe.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks it to end, and kills it after `launch.grace`. Returns when it is gone and its
    /// last output is in the log.
    pub(crate) async fn end(mut self, launch: &Launch) {
        self.identity.signal(launch.stop_signal);
        if tokio::time::timeout(launch.grace, self.child.wait())
            .await
            .is_err()
        {
            let _ = self.child.kill().await;
        }
        self.finish().await;
    }

    /// After its end: takes the rest of its output. A grandchild may still hold the pipe,
    /// so not for long.
    pub(crate) async fn finish(mut self) {
        let _ = tokio::time::timeout(Duration::from_millis(300), &mut self.output).await;
        self.output.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(directory: &std::path::Path, script: &str, grace: Duration) -> Launch {
        Launch {
            name: "child".to_owned(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            environment: BTreeMap::new(),
            user: None,
            stop_signal: Signal::SIGTERM,
            orphan_signal: Signal::SIGKILL,
            grace,
            log: directory.join("child.log"),
        }
    }

    #[tokio::test]
    async fn both_streams_of_a_child_are_in_its_log_when_it_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let launch = launch(dir.path(), "echo out; echo err >&2", Duration::from_secs(5));
        let mut running = launch.start().unwrap();
        assert!(running.wait().await.unwrap().success());
        running.finish().await;
        let log = std::fs::read_to_string(&launch.log).unwrap();
        assert_eq!(log, "out\nerr\n");
    }

    #[tokio::test]
    async fn a_child_that_ignores_the_stop_signal_is_killed_after_its_grace() {
        let dir = tempfile::tempdir().unwrap();
        let script = "trap '' TERM; echo ready; while :; do sleep 1; done";
        let launch = launch(dir.path(), script, Duration::from_millis(100));
        let running = launch.start().unwrap();
        let identity = running.identity;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        while !crate::log_file::tail(&launch.log, 100).contains("ready") {
            assert!(tokio::time::Instant::now() < deadline, "it never started");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(identity.is_alive());
        running.end(&launch).await;
        assert!(!identity.is_alive());
    }
}
