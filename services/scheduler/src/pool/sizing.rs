//! How many boxes a pool keeps ready, and which it starts and removes for that. Pure.
//!
//! * I1. A pool starts no box while a failed start postpones the next one, and never more than
//!   [`MAX_STARTING`] at a time; one at a time while half of it is ready, because starts slow claims down.
//! * I2. A box of another revision, or of an image that has changed, is removed; the others only while
//!   enough remain.

use std::collections::BTreeMap;
use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::pool::PoolSpec;
use chrono::{DateTime, Utc};

use crate::environment::store::{PoolRow, WarmBox, WarmStatus};

/// Boxes of one pool that start at a time.
pub const MAX_STARTING: u32 = 4;

/// The digest of a pool's image on each cluster that reports it.
pub type Digests = BTreeMap<String, String>;

/// What a pool changes now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resize {
    pub target: u32,
    /// Whether as many boxes are ready.
    pub is_complete: bool,
    /// Boxes to start.
    pub start: u32,
    /// Boxes to remove.
    pub drain: Vec<EnvironmentId>,
}

/// The boxes that a pool keeps ready: as many as its busiest minute of late needed, between the floor
/// and the ceiling.
#[must_use]
pub fn target(pool: &PoolSpec, requests_per_minute: &[u64]) -> u32 {
    let busiest = requests_per_minute.iter().copied().max().unwrap_or(0);
    u32::try_from(busiest)
        .unwrap_or(u32::MAX)
        .max(pool.min_ready)
        .min(pool.max_ready)
}

/// Whether the box is not one of the pool any more.
fn is_outdated(pool: &PoolRow, warm: &WarmBox, digests: &Digests) -> bool {
    let digest = digests.get(&warm.cluster);
    let image_changed = matches!(
        (&warm.image_digest, digest),
        (Some(started), Some(current)) if started != current
    );
    warm.revision != pool.revision || image_changed
}

fn age(warm: &WarmBox, now: DateTime<Utc>) -> Duration {
    (now - warm.created_at).to_std().unwrap_or_default()
}

/// What `pool` changes now. `boxes` are its boxes, the oldest first. A ready box that is older than
/// `max_age` is replaced, one at a time.
#[must_use]
pub fn resize(
    pool: &PoolRow,
    boxes: &[WarmBox],
    requests_per_minute: &[u64],
    digests: &Digests,
    max_age: Duration,
    now: DateTime<Utc>,
) -> Resize {
    let target = target(&pool.spec, requests_per_minute);
    let alive = boxes
        .iter()
        .filter(|warm| warm.status != WarmStatus::Draining);
    let (outdated, current): (Vec<&WarmBox>, Vec<&WarmBox>) =
        alive.partition(|warm| is_outdated(pool, warm, digests));
    let mut drain: Vec<EnvironmentId> = outdated.iter().map(|warm| warm.id.clone()).collect();
    let count = |status| current.iter().filter(|warm| warm.status == status).count();
    let starting = u32::try_from(count(WarmStatus::Starting)).unwrap_or(u32::MAX);
    let ready = u32::try_from(count(WarmStatus::Ready)).unwrap_or(u32::MAX);
    let have = ready.saturating_add(starting);
    let oldest_ready = current
        .iter()
        .filter(|warm| warm.status == WarmStatus::Ready);
    if have > target {
        // Those that start are not needed either; the sooner they end, the better.
        let surplus = have.saturating_sub(target);
        let starting = current
            .iter()
            .filter(|warm| warm.status == WarmStatus::Starting);
        let surplus = usize::try_from(surplus).unwrap_or(usize::MAX);
        drain.extend(
            starting
                .chain(oldest_ready)
                .take(surplus)
                .map(|warm| warm.id.clone()),
        );
        return Resize {
            target,
            is_complete: ready >= target,
            start: 0,
            drain,
        };
    }
    if starting == 0
        && ready == target
        && let Some(oldest) = oldest_ready.take(1).find(|warm| age(warm, now) > max_age)
    {
        drain.push(oldest.id.clone());
    }
    let is_postponed = pool.retry_at.is_some_and(|at| at > now);
    let at_a_time = match ready >= target.div_ceil(2) {
        true => 1,
        false => MAX_STARTING,
    };
    let start = if is_postponed {
        0
    } else {
        target
            .saturating_sub(have)
            .min(at_a_time.saturating_sub(starting))
    };
    Resize {
        target,
        is_complete: ready >= target,
        start,
        drain,
    }
}

#[cfg(test)]
mod tests;
