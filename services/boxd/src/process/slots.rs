//! The commands of callers that may run in the box at once: runs and executions together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the box already runs {0} commands, the most that may run at once")]
pub struct NoSlot(pub usize);

/// Held by a command from its start to its end; free again when dropped.
pub type Slot = OwnedSemaphorePermit;

#[derive(Clone)]
pub struct Slots {
    free: Arc<Semaphore>,
    limit: usize,
}

impl Slots {
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        Self {
            free: Arc::new(Semaphore::new(limit)),
            limit,
        }
    }

    /// # Errors
    /// [`NoSlot`].
    pub fn take(&self) -> Result<Slot, NoSlot> {
        Arc::clone(&self.free)
            .try_acquire_owned()
            .map_err(|_| NoSlot(self.limit))
    }

    /// The number of commands that start or run.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.limit - self.free.available_permits()
    }
}
