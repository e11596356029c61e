//! Ends boxes that use too much of the machine's disk.
//!
//! The kernel enforces the limit of a box that has a disk of its own ([`crate::disk`]). The limits of all
//! boxes together may be larger than the machine's disk. Therefore, when the disk's free space is
//! below the operator's reserve, the box whose disk uses most is evicted.
//!
//! The storage of a box without a disk is measured: the upper directory of its container's overlay
//! ([`measure`]). The driver walks that directory, because CRI's own figure is up to 10 s old.
//!
//! * I1. One replica measures at a time; another takes over within a second.
//! * I2. A box is measured at least every [`MAX_INTERVAL`]. It is measured earlier when the file
//!   system has lost so much free space since the last measurement that the box could be over its
//!   limit.
//! * I3. A box that cannot be measured counts as over its limit, so that it cannot hide files.
//! * I4. A box with very many files does not delay the check of other boxes: a check waits for
//!   measurements for [`MAX_WAIT`] in total, and the next one collects those that took longer.

mod measure;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::units::Bytes;
use agentbox_runtime::RuntimeError;
use k8s_cri::v1::ContainerState;
use tokio::task::JoinHandle;

use crate::box_state::BoxLock;
use crate::cgroup;
use crate::context::Context;
use crate::error::io_failure;
use crate::labels::Reserved;
use crate::mountinfo;
use measure::{MIN_FILE_BYTES, MeasureError};

/// The pause between two checks.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// The longest pause between two measurements of one box.
const MAX_INTERVAL: Duration = Duration::from_secs(10);
/// How long one check waits for all of its measurements.
const MAX_WAIT: Duration = Duration::from_millis(500);

/// One box's last measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Measured {
    used: u64,
    /// The free bytes of its file system at that time.
    free: u64,
    at: Instant,
}

/// The last measurements of the measuring replica.
#[derive(Debug, Default)]
pub struct StorageUsage {
    measured: BTreeMap<EnvironmentId, Measured>,
    /// The measurements that were not finished at the end of a check.
    unfinished: BTreeMap<EnvironmentId, Measurement>,
}

/// A running measurement.
#[derive(Debug)]
struct Measurement {
    /// The free bytes of the box's file system at its begin.
    free: u64,
    used: JoinHandle<Result<u64, MeasureError>>,
}

/// Whether the box could be over its limit. The margin is half of its headroom, because another box
/// may have freed space meanwhile.
fn is_due(last: Option<Measured>, limit: u64, free: u64, now: Instant) -> bool {
    let Some(last) = last else { return true };
    let headroom = limit.saturating_sub(last.used) / 2;
    now.duration_since(last.at) >= MAX_INTERVAL || last.free.saturating_sub(free) >= headroom.max(1)
}

fn over_limit(used: u64, limit: u64) -> Option<String> {
    (used > limit).then(|| {
        format!(
            "the box wrote {used} bytes, its storage limit is {} ({limit} bytes)",
            Bytes(limit)
        )
    })
}

impl StorageUsage {
    /// Drops the measurements. They become outdated while another replica measures.
    pub fn clear(&mut self) {
        self.measured.clear();
        self.unfinished.clear();
    }
}

impl Context {
    /// Measures the boxes that are due, and evicts those over their limit. `_lead` proves that no
    /// other replica does the same. An error of one box is logged and does not affect the others.
    pub async fn check_storage(
        &self,
        _lead: &BoxLock,
        usage: &mut StorageUsage,
    ) -> Result<(), RuntimeError> {
        let mut running = BTreeMap::new();
        for (id, objects) in self.all_objects().await? {
            let container = objects.container();
            if let Some(c) = container.filter(|c| c.state() == ContainerState::ContainerRunning) {
                let reserved = Reserved::read(&c.annotations);
                running.insert(id, (c.id.clone(), reserved.storage.0));
            }
        }
        usage.measured.retain(|id, _| running.contains_key(id));
        usage.unfinished.retain(|id, _| running.contains_key(id));
        if running.is_empty() {
            return Ok(());
        }
        let mounts = tokio::fs::read_to_string("/proc/self/mountinfo")
            .await
            .map_err(|error| io_failure("read mounts", &error))?;
        let now = Instant::now();
        let wait_until = tokio::time::Instant::now() + MAX_WAIT;
        let running = self.enforce_reserve(running, &mounts).await;
        for (id, (container, limit)) in running {
            let Some(paths) = OverlayPaths::find(&mounts, &container) else {
                continue;
            };
            let Some(free) = free_bytes(&paths.upper) else {
                continue;
            };
            let last = usage.measured.get(&id).copied();
            let mut measurement = match usage.unfinished.remove(&id) {
                Some(begun) => begun,
                None if limit == 0 || !is_due(last, limit, free, now) => continue,
                None => self.begin_measurement(&id, paths, limit, free),
            };
            // Past this instant, a finished measurement is still returned.
            let waited = tokio::time::timeout_at(wait_until, &mut measurement.used).await;
            let Ok(outcome) = waited else {
                usage.unfinished.insert(id, measurement);
                continue;
            };
            let free = measurement.free;
            let message = match outcome {
                Ok(Ok(used)) => {
                    let at = now;
                    usage
                        .measured
                        .insert(id.clone(), Measured { used, free, at });
                    over_limit(used, limit)
                }
                Ok(Err(error @ MeasureError::TooDeep)) => Some(error.to_string()),
                Ok(Err(error)) => {
                    tracing::warn!(
                        error = %ErrorChain(&error),
                        environment.id = %id,
                        "could not measure the storage of a box"
                    );
                    None
                }
                Err(error) => {
                    tracing::warn!(
                        error = %ErrorChain(&error),
                        environment.id = %id,
                        "the storage measurement of a box panicked"
                    );
                    None
                }
            };
            if let Some(message) = message
                && let Err(error) = self.evict(&id, message).await
            {
                // The next check measures it again.
                usage.measured.remove(&id);
                tracing::warn!(
                    error = %ErrorChain(&error),
                    environment.id = %id,
                    "could not evict a box"
                );
            }
        }
        Ok(())
    }

    /// Begins to measure a box, whose file system has `free` bytes, on a thread of its own.
    fn begin_measurement(
        &self,
        id: &EnvironmentId,
        paths: OverlayPaths,
        limit: u64,
        free: u64,
    ) -> Measurement {
        let (deployment, box_id) = (self.config.deployment.clone(), id.clone());
        let used = tokio::task::spawn_blocking(move || {
            let written = measure::written(&paths.upper, limit)?;
            let processes = cgroup::processes(&deployment, &box_id);
            let held = measure::deleted_but_open(&[&paths.root, &paths.upper], &processes)?;
            Ok::<u64, MeasureError>(written.saturating_add(held))
        });
        Measurement { free, used }
    }
}

/// The box that uses most of the machine's disk.
fn largest(disks: impl Iterator<Item = (EnvironmentId, u64)>) -> Option<(EnvironmentId, u64)> {
    disks.max_by(|(a, a_bytes), (b, b_bytes)| a_bytes.cmp(b_bytes).then_with(|| b.cmp(a)))
}

impl Context {
    /// Evicts the box whose disk uses most if the machine's disk has less free space than the reserve.
    /// Returns the boxes without a disk.
    async fn enforce_reserve(
        &self,
        running: BTreeMap<EnvironmentId, (String, u64)>,
        mounts: &str,
    ) -> BTreeMap<EnvironmentId, (String, u64)> {
        let points = mountinfo::points(mounts);
        let (with_disk, measured): (BTreeMap<_, _>, BTreeMap<_, _>) = running
            .into_iter()
            .partition(|(id, _)| self.disk(id).is_mounted(&points));
        let reserve = self.config.storage_reserve();
        let is_full = self
            .storage()
            .is_ok_and(|storage| storage.available < reserve);
        if !is_full {
            return measured;
        }
        let disks = with_disk.into_keys().filter_map(|id| {
            let used = self.disk(&id).used_bytes().ok()?;
            Some((id, used))
        });
        if let Some((id, used)) = largest(disks) {
            tracing::warn!(
                environment.id = %id,
                used_bytes = used,
                reserve_bytes = reserve,
                "the machine's disk was full, evicted the box that used most"
            );
            let message =
                format!("the machine's disk is full, and the box used most of it: {used} bytes");
            let evicted = match self.evict(&id, message).await {
                // At once, or the next box would be evicted before this one is removed.
                Ok(()) => self.discard_disk(&id).await,
                Err(error) => Err(error),
            };
            if let Err(error) = evicted {
                tracing::warn!(
                    error = %ErrorChain(&error),
                    environment.id = %id,
                    "could not evict a box"
                );
            }
        }
        measured
    }
}

/// The free space of a file system plus its free inodes, each at the size that [`measure`] counts.
/// A loss of either makes boxes due.
fn free_bytes(path: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    let space = stat.blocks_available().saturating_mul(stat.fragment_size());
    let files = stat.files_available().saturating_mul(MIN_FILE_BYTES);
    Some(space.saturating_add(files))
}

/// The root of a container's file system, and the directory with its writes.
#[derive(Debug, PartialEq, Eq)]
struct OverlayPaths {
    root: PathBuf,
    upper: PathBuf,
}

impl OverlayPaths {
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
            root: mountinfo::path(root),
            upper: mountinfo::path(upper),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_is_measured_when_possibly_over_limit_and_periodically() {
        let now = Instant::now();
        let last = Measured {
            used: 600,
            free: 10_000,
            at: now,
        };
        for (case, last, free, after, due) in [
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
            assert_eq!(is_due(last, 1_000, free, at), due, "{case}");
        }
    }

    #[test]
    fn box_that_uses_most_is_the_largest() {
        let (a, b) = (EnvironmentId::random(), EnvironmentId::random());
        let least = std::cmp::min(&a, &b).clone();
        for (sizes, expected) in [
            ([1, 2], Some((b.clone(), 2))),
            ([2, 1], Some((a.clone(), 2))),
            ([1, 1], Some((least, 1))),
        ] {
            let disks = [a.clone(), b.clone()].into_iter().zip(sizes);
            assert_eq!(largest(disks), expected);
        }
        assert_eq!(largest(std::iter::empty()), None);
    }

    #[test]
    fn storage_over_limit_message_has_both_numbers() {
        assert_eq!(over_limit(1 << 20, 1 << 20), None);
        let message = over_limit((1 << 20) + 1, 1 << 20).unwrap();
        assert!(
            message.contains("1048577") && message.contains("1Mi"),
            "{message}"
        );
    }

    #[test]
    fn overlay_paths_of_the_container_are_found() {
        let mountinfo = "30 1 0:9 / /run/x/state/k8s.io/aaa/rootfs rw - overlay overlay \
                         rw,lowerdir=/l,upperdir=/snap/1/fs,workdir=/snap/1/work\n\
                         31 1 0:9 / /run/x/state/k8s.io/bbb/rootfs rw shared:7 - overlay overlay \
                         rw,lowerdir=/l,upperdir=/snap/2/fs,workdir=/snap/2/work\n";
        let paths = OverlayPaths {
            root: "/run/x/state/k8s.io/bbb/rootfs".into(),
            upper: "/snap/2/fs".into(),
        };
        assert_eq!(OverlayPaths::find(mountinfo, "bbb"), Some(paths));
        assert_eq!(OverlayPaths::find(mountinfo, "ccc"), None);
    }
}
