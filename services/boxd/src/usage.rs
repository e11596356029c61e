//! The box's resource usage, from its own cgroup and its network interfaces.

mod cgroup;
mod network;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agentbox_box_protocol::proto;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use cgroup::Cgroup;

const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// The number of processes in the box that the kernel's OOM killer has killed; 0 when it
/// cannot be read.
#[must_use]
pub fn oom_kills() -> u64 {
    Cgroup::own().oom_kills()
}

/// Samples CPU usage, which is the difference of two readings.
#[derive(Default)]
pub struct UsageSampler {
    cpu_milli: AtomicU64,
}

impl UsageSampler {
    /// Samples every second until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = interval(SAMPLE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last: Option<(Instant, u64)> = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            let now = (Instant::now(), Cgroup::own().cpu_nanos());
            if let Some((then, before)) = last {
                let milli = cpu_milli(now.1.saturating_sub(before), now.0 - then);
                self.cpu_milli.store(milli, Ordering::Relaxed);
            }
            last = Some(now);
        }
    }

    /// The current usage; CPU is the average of about the last second.
    #[must_use]
    pub fn read(&self) -> proto::UsageReply {
        let cgroup = Cgroup::own();
        proto::UsageReply {
            cpu_usage_nanos: cgroup.cpu_nanos(),
            cpu_milli: self.cpu_milli.load(Ordering::Relaxed),
            memory_bytes: cgroup.memory_bytes(),
            memory_limit_bytes: cgroup.memory_limit_bytes(),
            pids: cgroup.pids(),
            oom_kills: cgroup.oom_kills(),
            egress_bytes: network::egress_bytes(),
        }
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
}
