//! The runs of the box by name.
//!
//! Invariants:
//! * I1. A name is taken before its command is started: one name, one start.
//! * I2. At most [`ACTIVE`] run at a time, and what has ended is kept for those who come
//!   back for it only as long and as much as the constants say.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::{Run, RunId};
use crate::lock::lock;

/// Commands at a time.
pub const ACTIVE: usize = 256;
const KEEP_FINISHED: Duration = Duration::from_secs(30);
const FINISHED: usize = 64;
const FINISHED_BYTES: usize = 4 * 1024 * 1024;
/// How long a start may take before who resumes it is sent away.
const START_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    #[error("run {0} exists already")]
    Exists(RunId),
    #[error("{ACTIVE} commands run already")]
    Full,
    #[error("run {0} is not known")]
    Unknown(RunId),
    #[error("the box is ending")]
    Closed,
}

enum Entry {
    Starting,
    Active(Arc<Run>),
    Finished(Arc<Run>, Instant),
}

#[derive(Default)]
struct Runs {
    entries: HashMap<RunId, Entry>,
    closed: bool,
}

#[derive(Default)]
pub struct Registry {
    runs: Mutex<Runs>,
    /// Rises when a start has succeeded or failed.
    started: watch::Sender<u64>,
}

/// A name that is taken; given back when the start fails.
pub struct Slot {
    registry: Arc<Registry>,
    id: RunId,
    filled: bool,
}

impl Registry {
    /// # Errors
    /// [`RegistryError::Exists`], [`RegistryError::Full`], [`RegistryError::Closed`].
    pub fn reserve(self: &Arc<Self>, id: &RunId) -> Result<Slot, RegistryError> {
        self.sweep();
        let mut runs = lock(&self.runs);
        if runs.closed {
            return Err(RegistryError::Closed);
        }
        if runs.entries.contains_key(id) {
            return Err(RegistryError::Exists(id.clone()));
        }
        if runs.active() >= ACTIVE {
            return Err(RegistryError::Full);
        }
        runs.entries.insert(id.clone(), Entry::Starting);
        Ok(Slot {
            registry: Arc::clone(self),
            id: id.clone(),
            filled: false,
        })
    }

    /// A run, ended ones too; waits for one that is being started.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    pub async fn find(&self, id: &RunId) -> Result<Arc<Run>, RegistryError> {
        let mut started = self.started.subscribe();
        let found = async {
            loop {
                match lock(&self.runs).entries.get(id) {
                    Some(Entry::Active(run) | Entry::Finished(run, _)) => {
                        return Some(Arc::clone(run));
                    }
                    Some(Entry::Starting) => {}
                    None => return None,
                }
                started.changed().await.ok()?;
            }
        };
        let found = timeout(START_DEADLINE, found).await.unwrap_or(None);
        found.ok_or_else(|| RegistryError::Unknown(id.clone()))
    }

    /// Its command has ended; it stays for a while for who comes back.
    pub fn finish(&self, run: &Arc<Run>) {
        let entry = Entry::Finished(Arc::clone(run), Instant::now());
        lock(&self.runs).entries.insert(run.id().clone(), entry);
        self.sweep();
    }

    /// Its output is lost: nobody may come back to it.
    pub fn forget(&self, run: &Run) {
        lock(&self.runs).entries.remove(run.id());
    }

    /// Drops what has ended: the old, then the oldest beyond the bounds.
    pub fn sweep(&self) {
        let mut runs = lock(&self.runs);
        let mut finished: Vec<(Instant, usize, RunId)> = runs
            .entries
            .iter()
            .filter_map(|(id, entry)| match entry {
                Entry::Finished(run, at) => Some((*at, run.held(), id.clone())),
                Entry::Starting | Entry::Active(_) => None,
            })
            .collect();
        finished.sort_by_key(|(at, _, _)| std::cmp::Reverse(*at));
        let mut bytes = 0;
        for (number, (at, held, id)) in finished.into_iter().enumerate() {
            bytes += held;
            // The newest always stays: its exit has perhaps not been read yet.
            let beyond = number > 0 && (number >= FINISHED || bytes > FINISHED_BYTES);
            if beyond || at.elapsed() > KEEP_FINISHED {
                runs.entries.remove(&id);
            }
        }
    }

    #[must_use]
    pub fn active(&self) -> usize {
        lock(&self.runs).active()
    }

    /// Takes no more.
    pub fn close(&self) {
        lock(&self.runs).closed = true;
    }
}

impl Runs {
    fn active(&self) -> usize {
        let ended = |entry: &&Entry| !matches!(entry, Entry::Finished(..));
        self.entries.values().filter(ended).count()
    }
}

impl Slot {
    /// `true` when the box is ending: the run must end too.
    pub fn fill(mut self, run: Arc<Run>) -> bool {
        self.filled = true;
        let mut runs = lock(&self.registry.runs);
        runs.entries.insert(self.id.clone(), Entry::Active(run));
        let closed = runs.closed;
        drop(runs);
        self.registry.started.send_modify(|count| *count += 1);
        closed
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.filled {
            lock(&self.registry.runs).entries.remove(&self.id);
            self.registry.started.send_modify(|count| *count += 1);
        }
    }
}
