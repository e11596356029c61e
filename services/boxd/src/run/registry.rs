//! The runs of the box, by id.
//!
//! Invariants:
//! * I1. An id is reserved before its command is started: each id starts at most once.
//! * I2. An active run holds a slot. Ended runs are kept for readers that resume, within the
//!   limits of the constants.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{Run, RunId};
use crate::process::{NoSlot, Slot, Slots};

/// How long an ended run is kept.
const KEEP_FINISHED: Duration = Duration::from_secs(30);
const MAX_FINISHED: usize = 64;
/// The limit for the output that ended runs hold, in bytes.
const MAX_FINISHED_BYTES: usize = 4 * 1024 * 1024;
/// The shortest pause between two sweeps that remove old runs.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// How long a resume waits for a run that is being started.
const START_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    #[error("run {0} already exists")]
    Exists(RunId),
    #[error(transparent)]
    Full(#[from] NoSlot),
    #[error("run {0} does not exist")]
    Unknown(RunId),
    #[error("the box is shutting down")]
    Closed,
}

enum Entry {
    Starting,
    Active {
        run: Arc<Run>,
        /// Free again when the run has ended.
        _slot: Slot,
    },
    Finished(Arc<Run>),
}

#[derive(Default)]
struct Entries {
    entries: HashMap<RunId, Entry>,
    /// The ended runs that are kept, in the order of their ends.
    finished: VecDeque<(Arc<Run>, Instant)>,
    closed: bool,
}

pub struct Registry {
    slots: Slots,
    runs: Mutex<Entries>,
    /// Incremented when a start has succeeded or failed.
    started: watch::Sender<u64>,
    /// Notified when a run has ended.
    finished: Notify,
}

/// A reserved id; released on drop unless committed.
pub struct Reservation {
    registry: Arc<Registry>,
    id: RunId,
    /// `None` once committed.
    slot: Option<Slot>,
}

impl Registry {
    #[must_use]
    pub fn new(slots: Slots) -> Self {
        Self {
            slots,
            runs: Mutex::default(),
            started: watch::Sender::new(0),
            finished: Notify::new(),
        }
    }

    /// # Errors
    /// [`RegistryError::Exists`], [`RegistryError::Full`], [`RegistryError::Closed`].
    pub fn reserve(self: &Arc<Self>, id: &RunId) -> Result<Reservation, RegistryError> {
        self.sweep();
        let mut runs = self.runs.lock();
        if runs.closed {
            return Err(RegistryError::Closed);
        }
        if runs.entries.contains_key(id) {
            return Err(RegistryError::Exists(id.clone()));
        }
        let slot = self.slots.take()?;
        runs.entries.insert(id.clone(), Entry::Starting);
        Ok(Reservation {
            registry: Arc::clone(self),
            id: id.clone(),
            slot: Some(slot),
        })
    }

    /// Finds an active or ended run; waits for one that is being started.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    pub async fn find(&self, id: &RunId) -> Result<Arc<Run>, RegistryError> {
        let mut started = self.started.subscribe();
        let found = async {
            loop {
                match self.runs.lock().entries.get(id) {
                    Some(Entry::Active { run, .. } | Entry::Finished(run)) => {
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

    /// Marks a run as ended; it is kept for a while for readers that resume.
    pub fn finish(&self, run: &Arc<Run>) {
        let mut runs = self.runs.lock();
        let entry = Entry::Finished(Arc::clone(run));
        runs.entries.insert(run.id().clone(), entry);
        runs.finished.push_back((Arc::clone(run), Instant::now()));
        drop(runs);
        self.sweep();
        self.finished.notify_waiters();
    }

    /// Removes a run whose output is incomplete: it cannot be resumed.
    pub fn remove(&self, run: &Run) {
        self.runs.lock().entries.remove(run.id());
    }

    /// Removes ended runs that are too old, then the oldest over the limits. Returns when the oldest
    /// of the others becomes too old.
    fn sweep(&self) -> Option<Instant> {
        let mut runs = self.runs.lock();
        let runs = &mut *runs;
        let mut bytes = 0;
        let newest_first = runs.finished.iter().rev().enumerate();
        let kept = newest_first.take_while(|(number, (run, at))| {
            bytes += run.buffered_bytes();
            // The newest always stays: its exit may not have been read yet.
            let over_limit = *number > 0 && (*number >= MAX_FINISHED || bytes > MAX_FINISHED_BYTES);
            !over_limit && at.elapsed() <= KEEP_FINISHED
        });
        let removed = runs.finished.len() - kept.count();
        for (run, _) in runs.finished.drain(..removed) {
            runs.entries.remove(run.id());
        }
        let oldest = runs.finished.front();
        oldest.map(|(_, at)| *at + KEEP_FINISHED)
    }

    /// Removes ended runs that have become too old, until `stop`. Has no timer while none is kept.
    pub async fn remove_expired(self: Arc<Self>, stop: CancellationToken) {
        loop {
            // Before the sweep: a run that ends after it is noticed.
            let finished = self.finished.notified();
            let expiry = self.sweep();
            let due = async {
                match expiry {
                    Some(due) => sleep_until(due.max(Instant::now() + SWEEP_PAUSE)).await,
                    None => finished.await,
                }
            };
            tokio::select! {
                () = due => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Refuses new runs from now on.
    pub fn close(&self) {
        self.runs.lock().closed = true;
    }
}

impl Reservation {
    /// Adds the started run to the registry. Returns `true` when the box is shutting down: then
    /// the caller must kill the run.
    pub fn commit(mut self, run: Arc<Run>) -> bool {
        let mut runs = self.registry.runs.lock();
        if let Some(slot) = self.slot.take() {
            let entry = Entry::Active { run, _slot: slot };
            runs.entries.insert(self.id.clone(), entry);
        }
        let closed = runs.closed;
        drop(runs);
        self.registry.started.send_modify(|count| *count += 1);
        closed
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.slot.is_some() {
            self.registry.runs.lock().entries.remove(&self.id);
            self.registry.started.send_modify(|count| *count += 1);
        }
    }
}
