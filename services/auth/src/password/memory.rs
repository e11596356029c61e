//! The memory of password hashes.
//!
//! A computation needs 19 MiB. If each allocated and freed its own, the allocator would keep as much for
//! every thread that ever ran one.
//!
//! * I1. At most the memory of as many computations is kept as ran at once.
//! * I2. All of it is freed a while after the last computation.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use argon2::Block;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

#[derive(Default)]
pub(super) struct Memory {
    /// That of computations that have ended.
    kept: Mutex<Vec<Vec<Block>>>,
    /// Notified when a computation has ended.
    returned: Notify,
}

impl Memory {
    /// Runs `work` in the memory of an earlier computation, or in new memory if none is kept.
    pub fn with<T>(&self, blocks: usize, work: impl FnOnce(&mut [Block]) -> T) -> T {
        let earlier = self.kept().pop();
        let mut memory = earlier.unwrap_or_else(|| vec![Block::new(); blocks]);
        let outcome = work(&mut memory);
        self.kept().push(memory);
        self.returned.notify_one();
        outcome
    }

    /// Frees the memory whenever no computation has ended for `pause`, until `shutdown`.
    pub async fn free_unused(&self, pause: Duration, shutdown: &CancellationToken) {
        loop {
            tokio::select! {
                () = self.returned.notified() => {}
                () = shutdown.cancelled() => return,
            }
            loop {
                tokio::select! {
                    () = self.returned.notified() => {}
                    () = tokio::time::sleep(pause) => break,
                    () = shutdown.cancelled() => return,
                }
            }
            let unused = std::mem::take(&mut *self.kept());
            drop(unused);
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Vec<Block>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of computations whose memory is kept.
    #[cfg(test)]
    pub fn kept_count(&self) -> usize {
        self.kept().len()
    }
}

#[cfg(test)]
mod tests {
    use agentbox_testing::eventually;

    use super::*;

    const BLOCKS: usize = 8;

    #[test]
    fn memory_of_an_earlier_computation_is_used_again() {
        let memory = Memory::default();
        let first = memory.with(BLOCKS, |blocks| blocks.as_ptr().addr());
        let second = memory.with(BLOCKS, |blocks| blocks.as_ptr().addr());
        assert_eq!((first, memory.kept_count()), (second, 1));
        // Two at once.
        memory.with(BLOCKS, |_| memory.with(BLOCKS, |_| ()));
        assert_eq!(memory.kept_count(), 2);
    }

    #[tokio::test]
    async fn unused_memory_is_freed_after_a_pause_each_time() {
        let memory = Memory::default();
        let shutdown = CancellationToken::new();
        let freeing = memory.free_unused(Duration::from_millis(10), &shutdown);
        let using = async {
            for _ in 0..2 {
                memory.with(BLOCKS, |_| ());
                eventually("it is freed", Duration::from_secs(10), async || {
                    memory.kept_count() == 0
                })
                .await;
            }
            shutdown.cancel();
        };
        tokio::join!(freeing, using);
    }
}
