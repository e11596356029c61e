//! The bound of the output that all executions keep together.
//!
//! The memory of boxd is charged to its box, so the sum is bounded too:
//! * I1. At the limit the output of ended executions is dropped, that of the one that ended first
//!   first. Then running executions with `drop` keep no more than they have, or [`MIN_KEPT`].
//! * I2. Executions with `block` are not restricted: a command that waits for its reader holds at
//!   most its own bound. When it has ended, its output is dropped only while it has no follower.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::output::Output;

/// What each stream of a running execution may keep in any case, in bytes.
pub const MIN_KEPT: usize = 64 * 1024;

pub struct KeptOutput {
    limit: usize,
    bytes: AtomicUsize,
    /// The outputs of executions that have ended, the first one first.
    ended: Mutex<VecDeque<Weak<Output>>>,
}

impl KeptOutput {
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: AtomicUsize::new(0),
            ended: Mutex::default(),
        }
    }

    /// Drops output of ended executions until `more` bytes fit; `false` when they do not. The
    /// caller holds no lock of an output.
    pub fn make_room(&self, more: usize) -> bool {
        if self.fits(more) {
            return true;
        }
        let mut ended = self.ended.lock();
        while !self.fits(more) {
            let oldest = ended.iter().position(is_droppable);
            let Some(oldest) = oldest.and_then(|oldest| ended.remove(oldest)) else {
                return false;
            };
            if let Some(output) = oldest.upgrade() {
                output.drop_kept();
            }
        }
        true
    }

    fn fits(&self, more: usize) -> bool {
        self.bytes.load(Ordering::Relaxed).saturating_add(more) <= self.limit
    }

    /// The output of an execution that has ended may be dropped from now on.
    pub fn add_ended(&self, output: &Arc<Output>) {
        let mut ended = self.ended.lock();
        ended.retain(|output| output.strong_count() > 0);
        ended.push_back(Arc::downgrade(output));
    }

    /// The kept output of one stream has changed its size.
    pub fn resized(&self, before: usize, after: usize) {
        if after >= before {
            self.bytes.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

fn is_droppable(output: &Weak<Output>) -> bool {
    output
        .upgrade()
        .is_none_or(|output| !output.must_be_delivered())
}
