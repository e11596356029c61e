//! The supervisor process of one test's instance.
//!
//! * I1. The instance ends when the value is dropped, and when this process ends in any way: this
//!   process holds the other end of a pipe that the supervisor reads.
//! * I2. The logs of a failed test are kept, and their directory is printed; also those of instances that
//!   several tests share, which nobody drops.

use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use crate::log_tail::{last_lines, tail};
use crate::paths::{self, Layout, NotBuilt, TEST_DIRECTORY};
use crate::plan::Plan;
use crate::shared_logs;
use crate::state::{Phase, State};
use crate::tool::ToolError;

/// A system or one of its components could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    NotBuilt(#[from] NotBuilt),
    #[error("cannot prepare the directory of a test: {0}")]
    Directory(std::io::Error),
    #[error("cannot start the supervisor: {0}")]
    Spawn(std::io::Error),
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The supervisor's error.
    #[error("{message} (logs: {logs})")]
    Failed { message: String, logs: PathBuf },
    #[error("not ready after {waited:?}: {last_step} (logs: {logs})")]
    Deadline {
        waited: Duration,
        last_step: String,
        logs: PathBuf,
    },
}

/// Building images in an empty cache takes a minute; everything else, seconds.
const START_DEADLINE: Duration = Duration::from_secs(600);
/// The sum of the supervisor's own deadlines is shorter.
const END_DEADLINE: Duration = Duration::from_secs(100);

#[derive(Debug)]
pub(crate) struct Instance {
    layout: Layout,
    directory: Option<tempfile::TempDir>,
    supervisor: Child,
    /// The supervisor stops when this is closed.
    stdin: Option<ChildStdin>,
}

impl Instance {
    pub(crate) async fn start(plan: &Plan) -> Result<Self, StartError> {
        use std::os::unix::fs::PermissionsExt;
        use std::os::unix::process::CommandExt;

        let program = paths::agentbox_local(&plan.bin_dir)?;
        let directory = tempfile::Builder::new()
            .prefix(TEST_DIRECTORY)
            .permissions(std::fs::Permissions::from_mode(0o711))
            .tempdir()
            .map_err(StartError::Directory)?;
        let layout = Layout::new(directory.path().to_owned());
        std::fs::create_dir_all(layout.logs()).map_err(StartError::Directory)?;
        let text = serde_json::to_vec(plan).map_err(|e| StartError::Directory(e.into()))?;
        std::fs::write(layout.plan(), text).map_err(StartError::Directory)?;
        let stderr = std::fs::File::options()
            .create(true)
            .append(true)
            .open(layout.log("supervisor"))
            .map_err(StartError::Directory)?;
        let mut supervisor = Command::new(program)
            .arg("--dir")
            .arg(directory.path())
            .args(["supervise", "--until-stdin-ends"])
            // Nothing is asked of, or pulled from, a registry outside.
            .env("AGENTBOX_IMAGES", "build")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .map_err(StartError::Spawn)?;
        let stdin = supervisor.stdin.take();
        shared_logs::register(&layout);
        let mut instance = Self {
            layout,
            directory: Some(directory),
            supervisor,
            stdin,
        };
        match instance.wait_ready().await {
            Ok(()) => Ok(instance),
            Err(error) => {
                instance.keep_logs();
                Err(error)
            }
        }
    }

    async fn wait_ready(&mut self) -> Result<(), StartError> {
        let logs = self.layout.logs();
        let started = Instant::now();
        let mut last_step = String::new();
        while started.elapsed() < START_DEADLINE {
            let has_exited = !matches!(self.supervisor.try_wait(), Ok(None));
            let state = State::read(&self.layout.state());
            match state.as_ref().map(|state| &state.phase) {
                Some(Phase::Ready) => return Ok(()),
                Some(Phase::Failed { message }) => {
                    return Err(StartError::Failed {
                        message: message.clone(),
                        logs,
                    });
                }
                _ if has_exited => {
                    let message = last_lines(&tail(&self.layout.log("supervisor"), 4096), 1);
                    return Err(StartError::Failed { message, logs });
                }
                _ => {}
            }
            if let Some(step) = state.and_then(|state| state.steps.last().cloned()) {
                last_step = step;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(StartError::Deadline {
            waited: START_DEADLINE,
            last_step,
            logs,
        })
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn state(&self) -> Option<State> {
        State::read(&self.layout.state())
    }

    /// Stops the instance and waits until the supervisor has exited.
    pub(crate) async fn stop(&mut self) {
        shared_logs::unregister(&self.layout);
        drop(self.stdin.take());
        let deadline = Instant::now() + END_DEADLINE;
        while matches!(self.supervisor.try_wait(), Ok(None)) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn keep_logs(&mut self) {
        if let Some(directory) = self.directory.take() {
            let _ = std::fs::write(self.layout.keep_marker(), "");
            // In the failed test's output, where a person looks for it.
            eprintln!(
                "logs are kept in {}",
                directory.keep().join("logs").display()
            );
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Before the supervisor stops, because the supervisor removes the logs.
        shared_logs::unregister(&self.layout);
        if std::thread::panicking() {
            self.keep_logs();
        }
        drop(self.stdin.take());
        let deadline = Instant::now() + END_DEADLINE;
        while matches!(self.supervisor.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.supervisor.kill();
                let _ = self.supervisor.wait();
                return;
            }
            // `drop` cannot await.
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
