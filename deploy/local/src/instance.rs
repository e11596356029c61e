//! A test's own instance: a supervisor process bound to this one.
//!
//! * I1. It ends with the value, and with this process, however that ends: the
//!   supervisor watches a pipe whose other end is here.
//! * I2. A failed test's logs are kept, and their place is printed.

use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use crate::plan::{Layout, Plan, TEST_DIRECTORY};
use crate::services::{NotBuilt, require};
use crate::state::{Phase, State};

/// A system or a part of it could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    NotBuilt(#[from] NotBuilt),
    #[error("cannot prepare a test's directory: {0}")]
    Directory(std::io::Error),
    #[error("cannot start the supervisor: {0}")]
    Spawn(std::io::Error),
    /// The supervisor's one line.
    #[error("{message} (logs: {logs})")]
    Failed { message: String, logs: PathBuf },
    #[error("it is not ready after {waited:?}: {last_step} (logs: {logs})")]
    Deadline {
        waited: Duration,
        last_step: String,
        logs: PathBuf,
    },
}

/// Building images in an empty cache takes a minute; everything else, seconds.
const START_DEADLINE: Duration = Duration::from_secs(600);
/// The supervisor's own bounds add up to less.
const END_DEADLINE: Duration = Duration::from_secs(100);

#[derive(Debug)]
pub(crate) struct Instance {
    layout: Layout,
    directory: Option<tempfile::TempDir>,
    supervisor: Child,
    lifeline: Option<ChildStdin>,
}

/// Where the product's programs are: `AGENTBOX_BIN_DIR`, or beside this test's target
/// directory.
#[must_use]
pub fn bin_dir() -> PathBuf {
    if let Some(directory) = std::env::var_os("AGENTBOX_BIN_DIR") {
        return directory.into();
    }
    let own = std::env::current_exe().unwrap_or_default();
    let directory = own.parent().unwrap_or(Path::new("."));
    let is_inner = directory.ends_with("deps") || directory.ends_with("examples");
    directory
        .parent()
        .filter(|_| is_inner)
        .unwrap_or(directory)
        .to_owned()
}

/// Where the static `boxd` is: `AGENTBOX_BOXD`, or where `make boxd` puts it.
#[must_use]
pub fn boxd() -> PathBuf {
    if let Some(path) = std::env::var_os("AGENTBOX_BOXD") {
        return path.into();
    }
    let target = bin_dir().parent().map(Path::to_owned).unwrap_or_default();
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    target.join("static").join(triple).join("boxd/boxd")
}

impl Instance {
    pub(crate) async fn start(plan: &Plan) -> Result<Self, StartError> {
        use std::os::unix::fs::PermissionsExt;
        use std::os::unix::process::CommandExt;

        let program = require(
            plan.bin_dir.join("agentbox-local"),
            "cargo build -p agentbox-local",
        )?;
        let directory = tempfile::Builder::new()
            .prefix(TEST_DIRECTORY)
            .permissions(std::fs::Permissions::from_mode(0o711))
            .tempdir()
            .map_err(StartError::Directory)?;
        let layout = Layout::new(directory.path().to_owned());
        std::fs::create_dir_all(layout.logs()).map_err(StartError::Directory)?;
        let text = serde_json::to_vec(plan).map_err(|e| StartError::Directory(e.into()))?;
        std::fs::write(layout.plan(), text).map_err(StartError::Directory)?;
        let own_words = std::fs::File::options()
            .create(true)
            .append(true)
            .open(layout.log("supervisor"))
            .map_err(StartError::Directory)?;
        let mut supervisor = Command::new(program)
            .arg("--dir")
            .arg(directory.path())
            .args(["supervise", "--until-stdin-ends"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(own_words)
            .process_group(0)
            .spawn()
            .map_err(StartError::Spawn)?;
        let lifeline = supervisor.stdin.take();
        let mut instance = Self {
            layout,
            directory: Some(directory),
            supervisor,
            lifeline,
        };
        match instance.until_ready().await {
            Ok(()) => Ok(instance),
            Err(error) => {
                instance.keep_logs();
                Err(error)
            }
        }
    }

    async fn until_ready(&mut self) -> Result<(), StartError> {
        let logs = self.layout.logs();
        let begun = Instant::now();
        let mut last_step = String::new();
        while begun.elapsed() < START_DEADLINE {
            let ended = !matches!(self.supervisor.try_wait(), Ok(None));
            let state = State::read(&self.layout.state());
            match state.as_ref().map(|state| &state.phase) {
                Some(Phase::Ready) => return Ok(()),
                Some(Phase::Failed { message }) => {
                    return Err(StartError::Failed {
                        message: message.clone(),
                        logs,
                    });
                }
                _ if ended => {
                    let words = crate::log_file::tail(&self.layout.log("supervisor"), 4096);
                    let message = crate::tool::last_lines(&words, 1);
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

    /// Takes it down and waits until nothing is left.
    pub(crate) async fn stop(&mut self) {
        drop(self.lifeline.take());
        let deadline = Instant::now() + END_DEADLINE;
        while matches!(self.supervisor.try_wait(), Ok(None)) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn keep_logs(&mut self) {
        if let Some(directory) = self.directory.take() {
            let _ = std::fs::write(self.layout.keep_marker(), "");
            // Where a person looks for it: in the failed test's output.
            eprintln!(
                "logs are kept in {}",
                directory.keep().join("logs").display()
            );
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Before the supervisor hears of the end, or it would remove them.
        if std::thread::panicking() {
            self.keep_logs();
        }
        drop(self.lifeline.take());
        let deadline = Instant::now() + END_DEADLINE;
        while matches!(self.supervisor.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.supervisor.kill();
                let _ = self.supervisor.wait();
                return;
            }
            // Drop cannot await; it has nothing else to do.
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
