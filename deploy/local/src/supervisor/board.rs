//! The supervisor's account of itself: the state file and its own log.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::log_file::{LIMIT_BYTES, LogFile};
use crate::plan::Layout;
use crate::state::{Phase, ProcessState, State};

/// A handle; all clones are of one account.
#[derive(Clone)]
pub(super) struct Board(Arc<Inner>);

struct Inner {
    path: PathBuf,
    state: Mutex<State>,
    log: Mutex<LogFile>,
}

impl Board {
    pub(super) fn new(layout: &Layout, state: State) -> std::io::Result<Self> {
        state.write(&layout.state())?;
        Ok(Self(Arc::new(Inner {
            path: layout.state(),
            state: Mutex::new(state),
            log: Mutex::new(LogFile::open(&layout.log("supervisor"), LIMIT_BYTES)?),
        })))
    }

    /// Changes the account and writes it down.
    pub(super) fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        // A full disk must not end the supervisor, which alone can clean up.
        let _ = state.write(&self.0.path);
    }

    pub(super) fn process(&self, name: &str, change: impl FnOnce(&mut ProcessState)) {
        self.update(|state| change(state.processes.entry(name.to_owned()).or_default()));
    }

    pub(super) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.0.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn deployment(&self) -> String {
        self.read(|state| state.deployment.clone())
    }

    /// One line in the log; while starting also a step for a person who waits.
    pub(super) fn say(&self, what: &str) {
        let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
        if let Ok(mut log) = self.0.log.lock() {
            let _ = log.write(format!("{now} {what}\n").as_bytes());
        }
        self.update(|state| {
            if state.phase == Phase::Starting {
                state.steps.push(what.to_owned());
            }
        });
    }
}
