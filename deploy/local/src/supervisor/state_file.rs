//! Writes the instance's state file and the supervisor's own log.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use agentbox_testing::paths::Layout;
use agentbox_testing::state::{Phase, ProcessState, State};

use crate::log_file::{LIMIT_BYTES, LogFile};

/// A handle to the state file; all clones share one state.
#[derive(Clone)]
pub(super) struct StateFile(Arc<Inner>);

struct Inner {
    path: PathBuf,
    state: Mutex<State>,
    log: Mutex<LogFile>,
}

impl StateFile {
    pub(super) fn new(layout: &Layout, state: State) -> std::io::Result<Self> {
        state.write(&layout.state())?;
        Ok(Self(Arc::new(Inner {
            path: layout.state(),
            state: Mutex::new(state),
            log: Mutex::new(LogFile::open(&layout.log("supervisor"), LIMIT_BYTES)?),
        })))
    }

    /// Changes the state and writes the file.
    pub(super) fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        // A full disk must not end the supervisor: no other process cleans up.
        let _ = state.write(&self.0.path);
    }

    /// Changes the state of one process and writes the file.
    pub(super) fn update_process(&self, name: &str, change: impl FnOnce(&mut ProcessState)) {
        self.update(|state| change(state.processes.entry(name.to_owned()).or_default()));
    }

    pub(super) fn read<T>(&self, select: impl FnOnce(&State) -> T) -> T {
        select(&self.0.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn deployment(&self) -> String {
        self.read(|state| state.deployment.clone())
    }

    /// Writes a line to the supervisor's log; during the start, also to the steps that `up`
    /// prints.
    pub(super) fn log_step(&self, step: &str) {
        let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        if let Ok(mut log) = self.0.log.lock() {
            let _ = log.write(format!("{now} {step}\n").as_bytes());
        }
        self.update(|state| {
            if state.phase == Phase::Starting {
                state.steps.push(step.to_owned());
            }
        });
    }
}
