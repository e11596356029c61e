//! The box's resource usage, from its own cgroup and its network interfaces.

mod cgroup;
mod network;

use std::sync::Arc;
use std::time::Duration;

use agentbox_box_protocol::proto;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use cgroup::Cgroup;

/// For how long a reading is used again, however many ask.
const MAX_AGE: Duration = Duration::from_secs(1);
/// How often an idle box is read: CPU usage is the average since the last reading.
const IDLE_INTERVAL: Duration = Duration::from_secs(30);

/// The number of processes in the box that the kernel's OOM killer has killed; 0 when it
/// cannot be read.
#[must_use]
pub fn oom_kills() -> u64 {
    Cgroup::own().oom_kills()
}

/// Reads usage when it is asked for. CPU usage is the difference of two readings.
#[derive(Default)]
pub struct UsageSampler {
    last: Mutex<Option<Reading>>,
    /// The counters when a warm box was configured. Locked after `last`.
    begun: Mutex<Counters>,
}

/// What the box has used since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    cpu_nanos: u64,
    egress_bytes: u64,
}

impl Counters {
    fn read() -> Self {
        Self {
            cpu_nanos: Cgroup::own().cpu_nanos(),
            egress_bytes: network::egress_bytes(),
        }
    }

    fn since(self, begun: Self) -> Self {
        Self {
            cpu_nanos: self.cpu_nanos.saturating_sub(begun.cpu_nanos),
            egress_bytes: self.egress_bytes.saturating_sub(begun.egress_bytes),
        }
    }
}

struct Reading {
    at: Instant,
    usage: proto::UsageReply,
}

impl UsageSampler {
    /// Reads every 30 seconds until `stop`, so that the first caller after a pause does not receive the
    /// average of a longer time.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = interval(IDLE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let _ = self.read();
                }
                () = stop.cancelled() => return,
            }
        }
    }

    /// Lets the counters begin now: a user is not charged for what a warm box used before its claim.
    pub fn restart(&self) {
        let mut last = self.last.lock();
        *self.begun.lock() = Counters::read();
        *last = None;
    }

    /// The usage, at most one second old. CPU is the average since the reading before, which was 1 to
    /// 30 seconds earlier.
    #[must_use]
    pub fn read(&self) -> proto::UsageReply {
        let mut last = self.last.lock();
        let now = Instant::now();
        let before = match &*last {
            Some(reading) if now - reading.at < MAX_AGE => return reading.usage,
            Some(reading) => Some((reading.at, reading.usage.cpu_usage_nanos)),
            None => None,
        };
        let cgroup = Cgroup::own();
        let used = Counters::read().since(*self.begun.lock());
        let usage = proto::UsageReply {
            cpu_usage_nanos: used.cpu_nanos,
            cpu_milli: before.map_or(0, |(at, before)| {
                cpu_milli(used.cpu_nanos.saturating_sub(before), now - at)
            }),
            memory_bytes: cgroup.memory_bytes(),
            memory_limit_bytes: cgroup.memory_limit_bytes(),
            pids: cgroup.pids(),
            oom_kills: cgroup.oom_kills(),
            egress_bytes: used.egress_bytes,
        };
        *last = Some(Reading { at: now, usage });
        usage
    }
}

/// CPU usage in thousandths of a core: `used` nanoseconds of CPU time in `elapsed`.
fn cpu_milli(used: u64, elapsed: Duration) -> u64 {
    let elapsed = elapsed.as_nanos().max(1);
    u64::try_from(u128::from(used) * 1000 / elapsed).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_core_is_500_milli_cpu() {
        assert_eq!(cpu_milli(1_000_000_000, Duration::from_secs(2)), 500);
        assert_eq!(cpu_milli(u64::MAX, Duration::ZERO), u64::MAX);
    }

    #[test]
    fn counter_that_cannot_be_read_any_more_is_0() {
        let counters = |cpu_nanos, egress_bytes| Counters {
            cpu_nanos,
            egress_bytes,
        };
        assert_eq!(counters(7, 9).since(counters(5, 4)), counters(2, 5));
        assert_eq!(counters(0, 9).since(counters(5, 4)), counters(0, 5));
    }

    #[test]
    fn reading_is_used_again_for_a_second() {
        let sampler = UsageSampler::default();
        let first = sampler.read();
        let read_at = || sampler.last.lock().as_ref().map(|reading| reading.at);
        let remember = |at: Instant| {
            let usage = proto::UsageReply {
                pids: 4242,
                ..first
            };
            *sampler.last.lock() = Some(Reading { at, usage });
        };
        // Not older than a second, however long this test stands still.
        let recent = Instant::now() + Duration::from_secs(60);
        remember(recent);
        assert_eq!((sampler.read().pids, read_at()), (4242, Some(recent)));
        let old = Instant::now() - MAX_AGE;
        remember(old);
        assert_ne!(sampler.read().pids, 4242);
        assert!(read_at() > Some(old));
    }
}
