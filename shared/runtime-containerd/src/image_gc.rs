//! Removes images when their file system is almost full, and ends pulls when it is full.
//!
//! * I1. An image is removed only if this driver has pulled each of its names, no container uses it,
//!   and its last use is [`MIN_AGE`] ago. The one whose last use is the longest ago goes first.
//! * I2. Nothing is removed below the high watermark. Above it, images are removed until the use is at
//!   the low one, or none is left.
//! * I3. A check removes one image, so that it delays no other check of the same loop.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::{Duration, SystemTime};

use agentbox_contracts::ErrorChain;
use agentbox_runtime::RuntimeError;
use k8s_cri::v1::{Container, Image};

use crate::box_state::BoxLock;
use crate::context::Context;
use crate::error::io_failure;
use crate::file_system::FileSystemUse;
use crate::metrics;

/// The pause between two checks.
pub const INTERVAL: Duration = Duration::from_secs(30);
/// The pause after a check that removed an image.
pub const SHORT_INTERVAL: Duration = Duration::from_secs(1);
/// How long an image is kept after its last use: longer than the creation of its box takes.
const MIN_AGE: Duration = Duration::from_secs(600);
/// The pause between two checks of the file system during a pull.
const PULL_CHECK: Duration = Duration::from_millis(500);
/// The use of the file system, in percent, at which a pull ends.
pub const FULL_PERCENT: u64 = 95;

/// The garbage collection of one replica.
#[derive(Debug, Default)]
pub struct ImageCollection {
    /// The high watermark was reached, and the low one is not yet.
    is_active: bool,
}

impl ImageCollection {
    /// Whether an image is to be removed at this use.
    fn is_due(&mut self, percent: u64, high: u64, low: u64) -> bool {
        self.is_active = percent >= high || (self.is_active && percent > low);
        self.is_active
    }
}

/// An image to remove: the names that it has a record of.
#[derive(Debug, PartialEq, Eq)]
struct Removal {
    id: String,
    bytes: u64,
    names: Vec<String>,
}

/// The image to remove next.
fn choose(
    images: Vec<Image>,
    records: &BTreeMap<String, SystemTime>,
    containers: &[Container],
    now: SystemTime,
) -> Option<Removal> {
    let used: BTreeSet<&str> = containers
        .iter()
        .flat_map(|container| {
            let name = container.image.as_ref().map(|image| image.image.as_str());
            name.into_iter().chain([container.image_ref.as_str()])
        })
        .collect();
    let is_old = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age >= MIN_AGE);
    let candidates = images.into_iter().filter_map(|image| {
        let names: Vec<&String> = image.repo_tags.iter().chain(&image.repo_digests).collect();
        let is_used = used.contains(image.id.as_str())
            || names.iter().any(|name| used.contains(name.as_str()));
        let pulled = names.iter().filter(|name| records.contains_key(**name));
        let names: Vec<String> = pulled.map(|name| (**name).clone()).collect();
        // Without its tag the image was replaced by a newer one.
        let is_ours = image.repo_tags.iter().all(|tag| records.contains_key(tag))
            && (!names.is_empty() || is_replaced(&image, records));
        let last = names.iter().filter_map(|name| records.get(name)).max();
        let last = last.copied().unwrap_or(SystemTime::UNIX_EPOCH);
        let removal = Removal {
            bytes: image.size,
            names,
            id: image.id,
        };
        (!image.pinned && !is_used && is_ours && is_old(last)).then_some((last, removal))
    });
    let oldest = candidates.min_by(|(a, _), (b, _)| a.cmp(b))?;
    Some(oldest.1)
}

/// The records of pulls that have failed, and of images that somebody else has removed.
fn unused_records(
    images: &[Image],
    records: &BTreeMap<String, SystemTime>,
    now: SystemTime,
) -> Vec<String> {
    let present: BTreeSet<&String> = images
        .iter()
        .flat_map(|image| image.repo_tags.iter().chain(&image.repo_digests))
        .collect();
    let is_old = |at: SystemTime| now.duration_since(at).is_ok_and(|age| age >= MIN_AGE);
    records
        .iter()
        .filter(|(name, at)| !present.contains(name) && is_old(**at))
        .map(|(name, _)| name.clone())
        .collect()
}

/// Whether an image without a tag is of a repository that the driver has pulled from.
fn is_replaced(image: &Image, records: &BTreeMap<String, SystemTime>) -> bool {
    let mut digests = image.repo_digests.iter();
    image.repo_tags.is_empty()
        && digests.any(|name| {
            let repository = name.split('@').next().unwrap_or_default();
            let tags = format!("{repository}:");
            records.keys().any(|record| record.starts_with(&tags))
        })
}

impl Context {
    /// Removes one image if the file system is almost full. True: there may be more. `_lead` proves
    /// that no other replica does the same.
    pub async fn collect_images(
        &self,
        _lead: &BoxLock,
        collection: &mut ImageCollection,
    ) -> Result<bool, RuntimeError> {
        let Some(usage) = self.image_file_system().await? else {
            return Ok(false);
        };
        metrics::image_file_system(usage.used, usage.available);
        // The containers are read after the images: a new one may use an image of the list.
        let images = self.cri.images().await?;
        let containers = self.cri.containers(HashMap::new()).await?;
        let pulled = self.pulled_images.clone();
        let records = tokio::task::spawn_blocking(move || pulled.list())
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(|error| io_failure("records of images", &error))?;
        let records: BTreeMap<String, SystemTime> = records.into_iter().collect();
        let now = SystemTime::now();
        self.forget(&unused_records(&images, &records, now), now);
        let (high, low) = (
            u64::from(self.config.image_gc_high_percent),
            u64::from(self.config.image_gc_low_percent),
        );
        if !collection.is_due(usage.percent(), high, low) {
            return Ok(false);
        }
        let Some(removal) = choose(images, &records, &containers, now) else {
            if usage.percent() >= high {
                tracing::warn!(
                    percent = usage.percent(),
                    "the file system of images is almost full, and no image can be removed"
                );
            }
            return Ok(false);
        };
        self.cri.remove_image(&removal.id).await?;
        self.forget(&removal.names, now);
        metrics::image_removed(removal.bytes);
        tracing::info!(
            image = removal.id,
            names = ?removal.names,
            bytes = removal.bytes,
            percent = usage.percent(),
            "image removed"
        );
        Ok(true)
    }

    /// Removes the records of images that the machine does not have.
    fn forget(&self, names: &[String], now: SystemTime) {
        for name in names {
            if let Err(error) = self.pulled_images.forget(name, now - MIN_AGE) {
                tracing::warn!(
                    error = %ErrorChain(&error),
                    image = name,
                    "record of an image not removed"
                );
            }
        }
    }

    /// The use of the file system with the images.
    async fn image_file_system(&self) -> Result<Option<FileSystemUse>, RuntimeError> {
        let Some(directory) = self.cri.storage_directory().await? else {
            return Ok(None);
        };
        file_system_use(&directory).map(Some)
    }

    /// Returns when the file system with the images is full.
    pub async fn wait_until_full(&self) {
        let directory = match self.cri.storage_directory().await {
            Ok(Some(directory)) => directory,
            // containerd also fails the pull then.
            Ok(None) | Err(_) => return std::future::pending().await,
        };
        until_full(&directory).await;
    }
}

async fn until_full(directory: &str) {
    loop {
        match file_system_use(directory) {
            Ok(usage) if usage.percent() >= FULL_PERCENT => return,
            _ => tokio::time::sleep(PULL_CHECK).await,
        }
    }
}

fn file_system_use(directory: &str) -> Result<FileSystemUse, RuntimeError> {
    FileSystemUse::of(Path::new(directory)).map_err(|error| io_failure("read free storage", &error))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use k8s_cri::v1::ImageSpec;
    use nix::mount::MsFlags;

    use super::*;
    use crate::tmpfs;

    const NOW: u64 = 1_000_000;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn image(id: &str, tags: &[&str], digests: &[&str]) -> Image {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Image {
            id: id.to_owned(),
            repo_tags: owned(tags),
            repo_digests: owned(digests),
            size: 7,
            ..Default::default()
        }
    }

    fn chosen(
        images: Vec<Image>,
        records: &[(&str, u64)],
        containers: &[Container],
    ) -> Option<String> {
        let records = records
            .iter()
            .map(|(name, seconds)| ((*name).to_owned(), at(*seconds)))
            .collect();
        choose(images, &records, containers, at(NOW)).map(|removal| removal.id)
    }

    #[tokio::test]
    async fn pull_ends_when_its_file_system_is_full() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let none = MsFlags::empty();
        tmpfs::mount_fresh("full-test", path, none, "size=1m").unwrap();
        let name = path.to_str().unwrap();
        let is_full = until_full(name).now_or_never().is_some();
        let written = std::fs::write(path.join("layer"), vec![0; 1 << 20]);
        let ended = tokio::time::timeout(Duration::from_secs(20), until_full(name)).await;
        tmpfs::unmount(path).unwrap();
        assert!(!is_full && written.is_ok() && ended.is_ok());
    }

    #[test]
    fn least_recently_used_image_is_removed_first() {
        let images = || {
            vec![
                image("id-new", &["r/new:1"], &["r/new@sha256:1"]),
                image("id-old", &["r/old:1"], &["r/old@sha256:2"]),
                image("id-imported", &["r/imported:1"], &[]),
                image("id-both", &["r/both:1", "r/imported:2"], &[]),
                image("id-recent", &["r/recent:1"], &[]),
            ]
        };
        let records = [
            ("r/new:1", 20),
            ("r/old:1", 10),
            ("r/both:1", 1),
            ("r/recent:1", NOW - MIN_AGE.as_secs() + 1),
        ];
        assert_eq!(chosen(images(), &records, &[]).as_deref(), Some("id-old"));
        // The later use of another name counts.
        let mut by_digest = records.to_vec();
        by_digest.push(("r/old@sha256:2", 30));
        assert_eq!(chosen(images(), &by_digest, &[]).as_deref(), Some("id-new"));
        // A container has the id of its image, or its name.
        let container = |image_ref: &str, name: &str| Container {
            image_ref: image_ref.to_owned(),
            image: Some(ImageSpec {
                image: name.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let used = [container("id-old", ""), container("", "r/new:1")];
        assert_eq!(chosen(images(), &records, &used), None);
    }

    #[test]
    fn replaced_image_of_a_pulled_repository_is_removed() {
        let images = || {
            vec![
                image("id-replaced", &[], &["r/a@sha256:1"]),
                image("id-other", &[], &["r/ab@sha256:1"]),
            ]
        };
        let replaced = chosen(images(), &[("r/a:1", NOW)], &[]);
        assert_eq!(replaced.as_deref(), Some("id-replaced"));
        assert_eq!(chosen(images(), &[("r/abc:1", 1)], &[]), None);
        let mut pinned = images();
        pinned[0].pinned = true;
        assert_eq!(chosen(pinned, &[("r/a:1", 1)], &[]), None);
    }

    #[test]
    fn record_without_an_image_is_removed_after_a_while() {
        let images = [image("id", &["r/a:1"], &["r/a@sha256:1"])];
        let records = [("r/a:1", 1), ("r/gone:1", 1), ("r/begun:1", NOW)];
        let records = records.map(|(name, seconds)| (name.to_owned(), at(seconds)));
        let unused = unused_records(&images, &records.into(), at(NOW));
        assert_eq!(unused, ["r/gone:1"]);
    }

    #[test]
    fn collection_begins_at_the_high_and_ends_at_the_low_watermark() {
        let mut collection = ImageCollection::default();
        for (percent, is_due) in [
            (84, false),
            (85, true),
            (81, true),
            (80, false),
            (84, false),
            (99, true),
        ] {
            assert_eq!(collection.is_due(percent, 85, 80), is_due, "{percent}");
        }
    }

    #[test]
    fn use_is_computed_as_df_does() {
        for (used, available, percent) in
            [(0, 0, 0), (0, 9, 0), (1, 99, 1), (1, 999, 1), (9, 0, 100)]
        {
            let usage = FileSystemUse { used, available };
            assert_eq!(usage.percent(), percent, "{usage:?}");
        }
    }
}
