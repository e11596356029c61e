//! The bound of the output that all executions keep together.
//!
//! The memory of boxd is charged to its box, so the sum is bounded too:
//! * I1. At the limit the output of ended executions is dropped, that of the one that ended first
//!   first. Then running executions with `drop` keep no more than they have, or [`MIN_KEPT`].
//! * I2. Executions with `block` are not restricted: a command that waits for its reader holds at
//!   most its own bound. When it has ended, its output is dropped only while it has no follower.
//! * I3. The more of them run, and the more those that have ended still keep, the less each keeps of what its
//!   followers were given ([`KeptOutput::in_flight_bytes`]), but never less than can be on its way to a
//!   client's machine.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::output::Output;

/// What each stream of a running execution may keep in any case, in bytes.
pub const MIN_KEPT: usize = 64 * 1024;
/// How much of what followers were given all running executions with `block` keep together, with what those
/// that have ended keep, unless that is less than [`MIN_IN_FLIGHT`] for each.
const IN_FLIGHT_TOTAL: usize = 12 * 1024 * 1024;
/// How much of it one keeps of each stream at most.
pub const MAX_IN_FLIGHT: usize = 4 * 1024 * 1024;
/// How much of it one keeps of each stream in any case.
pub const MIN_IN_FLIGHT: usize = 1536 * 1024;

pub struct KeptOutput {
    limit: usize,
    bytes: AtomicUsize,
    /// The number of running executions with `block`.
    blocking: AtomicUsize,
    /// What the complete outputs of executions with `block` keep.
    complete_bytes: AtomicUsize,
    /// The outputs of executions that have ended, the first one first.
    ended: Mutex<VecDeque<Weak<Output>>>,
}

impl KeptOutput {
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            bytes: AtomicUsize::new(0),
            blocking: AtomicUsize::new(0),
            complete_bytes: AtomicUsize::new(0),
            ended: Mutex::default(),
        }
    }

    /// An execution with `block` runs.
    pub fn blocking_started(&self) {
        self.blocking.fetch_add(1, Ordering::Relaxed);
    }

    /// It runs no more.
    pub fn blocking_ended(&self) {
        self.blocking.fetch_sub(1, Ordering::Relaxed);
    }

    /// A complete output of an execution with `block` keeps so much.
    pub fn complete_added(&self, bytes: usize) {
        self.complete_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// It keeps it no more.
    pub fn complete_dropped(&self, bytes: usize) {
        self.complete_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// How much of what its followers were given an execution with `block` keeps of each stream now.
    #[must_use]
    pub fn in_flight_bytes(&self) -> usize {
        let executions = self.blocking.load(Ordering::Relaxed).max(1);
        let left = IN_FLIGHT_TOTAL.saturating_sub(self.complete_bytes.load(Ordering::Relaxed));
        (left / executions).clamp(MIN_IN_FLIGHT, MAX_IN_FLIGHT)
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
