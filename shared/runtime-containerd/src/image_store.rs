//! Removes images that no box was created from lately, when the disk with containerd's images is nearly
//! full, and refuses images that are too large.
//!
//! An empty file for each image that the driver has pulled, named by the image's id, has the time of its
//! last use as its modification time. All replicas of the machine share the files.
//!
//! * I1. Only such images are removed: those that an operator has imported stay.
//! * I2. An image stays that a container uses, or that was pulled or used within [`MIN_UNUSED`].

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use agentbox_contracts::ErrorChain;
use agentbox_contracts::units::Bytes;
use agentbox_runtime::image_pull::printable_image;
use agentbox_runtime::{FailureReason, RuntimeError};

use crate::box_state::{BoxLock, Failure};
use crate::context::Context;
use crate::error::io_failure;

/// The pause between two checks.
pub const INTERVAL: Duration = Duration::from_secs(60);
/// An image may be between its pull and the creation of its container.
const MIN_UNUSED: Duration = Duration::from_secs(300);

/// An image that the driver has pulled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PulledImage {
    used_at: SystemTime,
    /// `sha256:` and hexadecimal digits.
    id: String,
}

impl Context {
    /// Records an image that was just pulled. Removes it if it is too large, and gives the failure.
    ///
    /// # Errors
    /// When containerd does not answer, or the record cannot be written.
    pub async fn accept_pulled(&self, name: &str) -> Result<Option<Failure>, RuntimeError> {
        let status = self.cri.image(name).await?;
        let Some(image) = status.and_then(|status| status.image) else {
            return Ok(None);
        };
        let limit = self.config.max_image_mib.saturating_mul(1 << 20);
        if limit > 0 && image.size > limit {
            self.cri.remove_image(&image.id).await?;
            return Ok(Some(Failure {
                reason: FailureReason::ImagePull,
                message: format!(
                    "cannot pull the image \"{}\": it has {} bytes, and the limit is {}",
                    printable_image(name),
                    image.size,
                    Bytes(limit)
                ),
            }));
        }
        if let Some(record) = record_of(&self.image_records(), &image.id) {
            std::fs::create_dir_all(self.image_records())
                .and_then(|()| File::create(record))
                .map_err(|error| io_failure("record an image", &error))?;
        }
        Ok(None)
    }

    /// Records that a box is created from an image, if the driver has pulled it.
    pub fn record_image_use(&self, id: &str) {
        let Some(record) = record_of(&self.image_records(), id) else {
            return;
        };
        let touched = File::options()
            .write(true)
            .open(record)
            .and_then(|file| file.set_modified(SystemTime::now()));
        match touched {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(
                    error = %ErrorChain(&error),
                    image.id = id,
                    "could not record the use of an image"
                );
            }
            _ => {}
        }
    }

    /// Removes unused images, the one used longest ago first, if the disk with images is fuller than
    /// the high watermark, until it is below the low one. `_lead` proves that no other replica does the
    /// same.
    pub async fn collect_images(&self, _lead: &BoxLock) -> Result<(), RuntimeError> {
        let (high, low) = (
            self.config.image_gc_high_percent,
            self.config.image_gc_low_percent,
        );
        let Some(disk) = self.cri.storage_directory().await? else {
            return Ok(());
        };
        if high == 0 || used_percent(&disk)? < high {
            return Ok(());
        }
        // Of every deployment: they share containerd's images.
        let containers = self.cri.containers(HashMap::new()).await?;
        let in_use: BTreeSet<String> = containers.into_iter().map(|c| c.image_ref).collect();
        let pulled = pulled_images(&self.image_records())
            .map_err(|error| io_failure("list records of images", &error))?;
        for image in removable(pulled, &in_use, SystemTime::now()) {
            self.cri.remove_image(&image.id).await?;
            if let Some(record) = record_of(&self.image_records(), &image.id) {
                std::fs::remove_file(record)
                    .map_err(|error| io_failure("remove the record of an image", &error))?;
            }
            tracing::info!(image.id = image.id.as_str(), "removed an unused image");
            if used_percent(&disk)? < low {
                break;
            }
        }
        Ok(())
    }

    fn image_records(&self) -> PathBuf {
        self.config.state_dir.join("images")
    }
}

/// The record of an image; `None` if its id is not a digest.
fn record_of(directory: &Path, id: &str) -> Option<PathBuf> {
    let digits = id.strip_prefix("sha256:")?;
    let is_digest = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    is_digest.then(|| directory.join(digits))
}

fn pulled_images(directory: &Path) -> io::Result<Vec<PulledImage>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut images = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let Some(digits) = entry.file_name().to_str() {
            images.push(PulledImage {
                used_at: entry.metadata()?.modified()?,
                id: format!("sha256:{digits}"),
            });
        }
    }
    Ok(images)
}

/// The images that may be removed, the one used longest ago first.
fn removable(
    mut images: Vec<PulledImage>,
    in_use: &BTreeSet<String>,
    now: SystemTime,
) -> Vec<PulledImage> {
    images.retain(|image| {
        let unused = now.duration_since(image.used_at).unwrap_or_default();
        unused >= MIN_UNUSED && !in_use.contains(&image.id)
    });
    images.sort();
    images
}

/// The share of a file system that is not free, in percent.
fn used_percent(path: &str) -> Result<u8, RuntimeError> {
    let stat = nix::sys::statvfs::statvfs(path)
        .map_err(|errno| io_failure("read free storage", &errno.into()))?;
    let total = u128::from(stat.blocks().max(1));
    let free = u128::from(stat.blocks_available()).min(total);
    Ok(u8::try_from(100 - free * 100 / total).unwrap_or(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(seconds: u64, id: &str) -> PulledImage {
        PulledImage {
            used_at: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            id: format!("sha256:{id}"),
        }
    }

    #[test]
    fn unused_images_are_removed_in_the_order_of_their_last_use() {
        let images = vec![
            image(500, "c"),
            image(100, "a"),
            image(300, "b"),
            image(900, "d"),
        ];
        let in_use = BTreeSet::from(["sha256:b".to_owned()]);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let expected = vec![image(100, "a"), image(500, "c")];
        assert_eq!(removable(images, &in_use, now), expected);
    }

    #[test]
    fn records_are_read_again_and_no_other_name_is_a_record() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        assert_eq!(pulled_images(&root.join("none")).unwrap(), Vec::new());
        for id in ["", "sha256:", "sha256:../x", "latest", "sha512:ab"] {
            assert_eq!(record_of(root, id), None, "{id}");
        }
        File::create(record_of(root, "sha256:0a1b").unwrap()).unwrap();
        let read = pulled_images(root).unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].id, "sha256:0a1b");
    }
}
