//! What boxes have written, and what is too much.
//!
//! A box's storage is the upper directory of its container's overlay: every block
//! allocated there, each hard-linked file once. It is measured in place, since CRI's own
//! figure is up to 10 s old.
//!
//! * I1. One replica measures at a time; another takes over within a second.
//! * I2. Measuring costs little: a box is measured when the file system has lost enough
//!   free space since its last measurement that it could be over its limit, and every
//!   [`LONGEST`] in any case.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::units::Bytes;
use agentbox_runtime::RuntimeError;
use k8s_cri::v1::ContainerState;

use crate::driver::{Inner, io_failure};
use crate::facts::BoxLock;
use crate::labels::Promised;

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
            let Some(upper) = upper_directory(&mounts, &container) else {
                continue;
            };
            let Some(free) = free_bytes(&upper) else {
                continue;
            };
            if limit == 0 || !is_due(ledger.measured.get(&id).copied(), limit, free, now) {
                continue;
            }
            let measure = tokio::task::spawn_blocking(move || written(&upper, limit));
            match measure.await {
                Ok(Ok(used)) => {
                    ledger.measured.insert(
                        id.clone(),
                        Measured {
                            used,
                            free,
                            at: now,
                        },
                    );
                    if let Some(message) = verdict(used, limit)
                        && let Err(error) = self.evict(&id, message).await
                    {
                        tracing::warn!(%error, environment.id = %id, "cannot evict a box");
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, environment.id = %id, "cannot measure a box's storage");
                }
                Err(error) => {
                    tracing::warn!(%error, environment.id = %id, "measuring a box's storage broke off");
                }
            }
        }
        Ok(())
    }
}

fn free_bytes(path: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// From `/proc/self/mountinfo`: where the container's writes go.
fn upper_directory(mountinfo: &str, container: &str) -> Option<PathBuf> {
    let end = format!("/{container}/rootfs");
    let line = mountinfo.lines().find(|line| {
        line.split(' ')
            .nth(4)
            .is_some_and(|mount_point| mount_point.ends_with(&end))
    })?;
    let options = line.rsplit(' ').next()?;
    let upper = options
        .split(',')
        .find_map(|option| option.strip_prefix("upperdir="))?;
    Some(PathBuf::from(upper))
}

/// Bytes allocated under a directory; stops counting once over `enough`. Files that
/// vanish meanwhile count as nothing.
fn written(root: &Path, enough: u64) -> io::Result<u64> {
    let mut total = 0u64;
    let mut linked = HashSet::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        let entries = match fs::read_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            // Of the entry itself: links are not followed.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let is_first =
                metadata.nlink() < 2 || metadata.is_dir() || linked.insert(metadata.ino());
            if is_first {
                total = total.saturating_add(metadata.blocks().saturating_mul(512));
            }
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
        if total > enough {
            break;
        }
    }
    Ok(total)
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
        assert_eq!(upper_directory(mountinfo, "bbb"), Some("/snap/2/fs".into()));
        assert_eq!(upper_directory(mountinfo, "ccc"), None);
    }

    #[test]
    fn blocks_are_counted_not_lengths_and_each_linked_file_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let data = dir.path().join("sub/data");
        fs::write(&data, vec![7u8; 1 << 20]).unwrap();
        fs::hard_link(&data, dir.path().join("again")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        fs::File::create(dir.path().join("sparse"))
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        let used = written(dir.path(), u64::MAX).unwrap();
        assert!((1 << 20..1 << 21).contains(&used), "{used}");
    }
}
