//! What boxes have written, and what is too much.
//!
//! A box's storage is the upper directory of its container's overlay ([`measure`]). It is
//! measured in place, since CRI's own figure is up to 10 s old.
//!
//! * I1. One replica measures at a time; another takes over within a second.
//! * I2. Measuring costs little: a box is measured when the file system has lost enough
//!   free space since its last measurement that it could be over its limit, and every
//!   [`LONGEST`] in any case.
//! * I3. What cannot be measured is over its limit: a box cannot hide what it wrote.

mod measure;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::units::Bytes;
use agentbox_runtime::RuntimeError;
use k8s_cri::v1::ContainerState;

use crate::cgroup;
use crate::driver::{Inner, io_failure};
use crate::facts::BoxLock;
use crate::labels::Promised;
use measure::{MIN_FILE_BYTES, MeasureError};

/// Between two looks.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// Between two measurements of one box.
const LONGEST: Duration = Duration::from_secs(10);

/// One box's last measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Measured {
    used: u64,
    /// Of its file system, then.
    free: u64,
    at: Instant,
}

/// What the measuring replica remembers.
#[derive(Debug, Default)]
pub struct Ledger {
    measured: BTreeMap<EnvironmentId, Measured>,
}

/// Whether the box may be over its limit. Half of what it may still write is the
/// margin, since another box may have given free space back meanwhile.
fn is_due(last: Option<Measured>, limit: u64, free: u64, now: Instant) -> bool {
    let Some(last) = last else { return true };
    let headroom = limit.saturating_sub(last.used) / 2;
    now.duration_since(last.at) >= LONGEST || last.free.saturating_sub(free) >= headroom.max(1)
}

fn verdict(used: u64, limit: u64) -> Option<String> {
    (used > limit).then(|| {
        format!(
            "the box wrote {used} bytes, its storage limit is {} ({limit} bytes)",
            Bytes(limit)
        )
    })
}

impl Ledger {
    /// Another replica measures: what is remembered here grows old.
    pub fn forget(&mut self) {
        self.measured.clear();
    }
}

impl Inner {
    /// Measures what is due and ends what is over; `_lead` shows that no other replica
    /// does.  One box's trouble is logged and does
    /// not keep the others from being measured.
    pub async fn check_storage(
        &self,
        _lead: &BoxLock,
        ledger: &mut Ledger,
    ) -> Result<(), RuntimeError> {
        let mut running = BTreeMap::new();
        for (id, objects) in self.all_objects().await? {
            let container = objects.container();
            if let Some(c) = container.filter(|c| c.state() == ContainerState::ContainerRunning) {
                let promised = Promised::read(&c.annotations);
                running.insert(id, (c.id.clone(), promised.storage.0));
            }
        }
        ledger.measured.retain(|id, _| running.contains_key(id));
        if running.is_empty() {
            return Ok(());
        }
        let mounts = tokio::fs::read_to_string("/proc/self/mountinfo")
            .await
            .map_err(|error| io_failure("read mounts", &error))?;
        let now = Instant::now();
        for (id, (container, limit)) in running {
            let Some(place) = Place::find(&mounts, &container) else {
                continue;
            };
            let Some(free) = free_bytes(&place.upper) else {
                continue;
            };
            if limit == 0 || !is_due(ledger.measured.get(&id).copied(), limit, free, now) {
                continue;
            }
            let (deployment, of) = (self.config.deployment.clone(), id.clone());
            let measure = tokio::task::spawn_blocking(move || {
                let written = measure::written(&place.upper, limit)?;
                let processes = cgroup::processes(&deployment, &of);
                let held = measure::unlinked(&[&place.root, &place.upper], &processes)?;
                Ok::<u64, MeasureError>(written.saturating_add(held))
            });
            let message = match measure.await {
                Ok(Ok(used)) => {
                    let at = now;
                    ledger
                        .measured
                        .insert(id.clone(), Measured { used, free, at });
                    verdict(used, limit)
                }
                Ok(Err(error @ MeasureError::TooDeep)) => Some(error.to_string()),
                Ok(Err(error)) => {
                    tracing::warn!(%error, environment.id = %id, "cannot measure a box's storage");
                    None
                }
                Err(error) => {
                    tracing::warn!(%error, environment.id = %id, "measuring a box's storage broke off");
                    None
                }
            };
            if let Some(message) = message
                && let Err(error) = self.evict(&id, message).await
            {
                tracing::warn!(%error, environment.id = %id, "cannot evict a box");
            }
        }
        Ok(())
    }
}

/// What the file system has left: space, and files as [`measure`] counts them, so that a
/// loss of either makes boxes due.
fn free_bytes(path: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let space = stat.blocks_available().saturating_mul(stat.fragment_size());
    let files = stat.files_available().saturating_mul(MIN_FILE_BYTES);
    Some(space.saturating_add(files))
}

/// Where a container's root file system is, and where its writes go.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    root: PathBuf,
    upper: PathBuf,
}

impl Place {
    /// From `/proc/self/mountinfo`.
    fn find(mountinfo: &str, container: &str) -> Option<Self> {
        let end = format!("/{container}/rootfs");
        let (root, line) = mountinfo.lines().find_map(|line| {
            let root = line.split(' ').nth(4)?;
            root.ends_with(&end).then_some((root, line))
        })?;
        let options = line.rsplit(' ').next()?;
        let upper = options
            .split(',')
            .find_map(|option| option.strip_prefix("upperdir="))?;
        Some(Self {
            root: root.into(),
            upper: upper.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_is_measured_when_it_could_be_over_and_now_and_then() {
        let now = Instant::now();
        let last = Measured {
            used: 600,
            free: 10_000,
            at: now,
        };
        for (what, last, free, after, due) in [
            ("never measured", None, 10_000, 0, true),
            ("nothing was written", Some(last), 10_000, 5, false),
            ("space was given back", Some(last), 20_000, 5, false),
            (
                "less than half of the headroom",
                Some(last),
                9_801,
                5,
                false,
            ),
            ("half of the headroom", Some(last), 9_800, 1, true),
            ("long ago", Some(last), 10_000, 10, true),
            (
                "over already",
                Some(Measured {
                    used: 2_000,
                    ..last
                }),
                9_999,
                1,
                true,
            ),
        ] {
            let at = now + Duration::from_secs(after);
            assert_eq!(is_due(last, 1_000, free, at), due, "{what}");
        }
    }

    #[test]
    fn only_more_than_the_limit_is_too_much_and_the_message_has_both_numbers() {
        assert_eq!(verdict(1 << 20, 1 << 20), None);
        let message = verdict((1 << 20) + 1, 1 << 20).unwrap();
        assert!(
            message.contains("1048577") && message.contains("1Mi"),
            "{message}"
        );
    }

    #[test]
    fn the_containers_own_upper_directory_is_found() {
        let mountinfo = "30 1 0:9 / /run/x/state/k8s.io/aaa/rootfs rw - overlay overlay \
                         rw,lowerdir=/l,upperdir=/snap/1/fs,workdir=/snap/1/work\n\
                         31 1 0:9 / /run/x/state/k8s.io/bbb/rootfs rw shared:7 - overlay overlay \
                         rw,lowerdir=/l,upperdir=/snap/2/fs,workdir=/snap/2/work\n";
        let place = Place {
            root: "/run/x/state/k8s.io/bbb/rootfs".into(),
            upper: "/snap/2/fs".into(),
        };
        assert_eq!(Place::find(mountinfo, "bbb"), Some(place));
        assert_eq!(Place::find(mountinfo, "ccc"), None);
    }
}
