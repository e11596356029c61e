//! The commands of callers that may run in the box at once: runs and executions together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the box already runs {0} commands, the most that may run at once")]
pub struct NoSlot(pub usize);

/// Held by a command from its start to its end; free again when dropped.
pub struct Slot {
    _permit: OwnedSemaphorePermit,
    last_end: Arc<Mutex<Instant>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        *self.last_end.lock() = Instant::now();
    }
}

#[derive(Clone)]
pub struct Slots {
    free: Arc<Semaphore>,
    limit: usize,
    /// When the last command ended, or boxd started or was configured.
    last_end: Arc<Mutex<Instant>>,
}

impl Slots {
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Self {
            free: Arc::new(Semaphore::new(limit)),
            limit,
            last_end: Arc::new(Mutex::new(Instant::now())),
        }
    }

    /// # Errors
    /// [`NoSlot`].
    pub fn take(&self) -> Result<Slot, NoSlot> {
        let permit = Arc::clone(&self.free)
            .try_acquire_owned()
            .map_err(|_| NoSlot(self.limit))?;
        Ok(Slot {
            _permit: permit,
            last_end: Arc::clone(&self.last_end),
        })
    }

    /// Makes the box idle since now: the time of a warm box before its claim does not count.
    pub fn restart_idle(&self) {
        *self.last_end.lock() = Instant::now();
    }

    /// How long no command has run. `None`: one does.
    #[must_use]
    pub fn idle(&self) -> Option<Duration> {
        (self.in_use() == 0).then(|| self.last_end.lock().elapsed())
    }

    /// The number of commands that start or run.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.limit - self.free.available_permits()
    }
}
