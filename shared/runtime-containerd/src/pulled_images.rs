//! The images that this driver has pulled, and when each was last used: a file for each, with its name,
//! whose modification time is the last use.
//!
//! * I1. The record is written before the pull, so that an image of a killed pull is found too.
//! * I2. An image without a record was imported by the operator, and is never removed.
//! * I3. A failed pull leaves at most one file, until the collection removes it.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use agentbox_runtime::image_reference::complete;
use sha2::{Digest as _, Sha256};

/// The directory of the records, in the directory for records of images.
const DIRECTORY: &str = "pulled-images";
/// The end of the name of a record that is about to be removed.
const ASIDE: &str = "@@";
/// The most records that one list reads.
const MAX_RECORDS: usize = 100_000;

/// The file name of the record of `name`, which may be too long for one.
pub fn record_name(name: &str) -> String {
    hex::encode(Sha256::digest(name))
}

/// The records of one machine.
#[derive(Clone, Debug)]
pub struct PulledImages {
    directory: PathBuf,
}

impl PulledImages {
    pub fn new(records_dir: &Path) -> Self {
        Self {
            directory: records_dir.join(DIRECTORY),
        }
    }

    /// Records that an image is pulled, or used.
    ///
    /// # Errors
    /// When the record cannot be stored.
    pub fn record(&self, image: &str, now: SystemTime) -> io::Result<()> {
        std::fs::create_dir_all(&self.directory)?;
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.path(image))?;
        // The same text each time.
        file.write_all(complete(image).as_bytes())?;
        file.set_modified(now)
    }

    /// Whether this driver has pulled the image by this name. A record that cannot be read counts.
    pub fn contains(&self, image: &str) -> bool {
        self.path(image).try_exists().unwrap_or(true)
    }

    /// Records the use of an image, if it was pulled.
    ///
    /// # Errors
    /// When its record cannot be changed.
    pub fn touch(&self, image: &str, now: SystemTime) -> io::Result<()> {
        match File::options().write(true).open(self.path(image)) {
            Ok(file) => file.set_modified(now),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes the record of an image that the machine does not have, unless it was recorded after
    /// `before`: then another pull has begun.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn forget(&self, image: &str, before: SystemTime) -> io::Result<()> {
        let path = self.path(image);
        let mut aside = path.clone().into_os_string();
        aside.push(ASIDE);
        match std::fs::rename(&path, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            outcome => outcome?,
        }
        // A pull that begins now makes a new record.
        if std::fs::metadata(&aside)?.modified()? > before {
            match std::fs::hard_link(&aside, &path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        std::fs::remove_file(&aside)
    }

    /// Every image with a record, by its complete reference, with its last use.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<(String, SystemTime)>> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut images = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let read = std::fs::read_to_string(&path)
                .and_then(|image| Ok((image, std::fs::metadata(&path)?.modified()?)));
            match read {
                Ok((image, at)) if self.path(&image) == path => images.push((image, at)),
                // One that is being written, or removed.
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::InvalidData
                    ) => {}
                Err(error) => return Err(error),
            }
            if images.len() >= MAX_RECORDS {
                tracing::warn!(
                    records = MAX_RECORDS,
                    "records of images left out: too many"
                );
                break;
            }
        }
        Ok(images)
    }

    fn path(&self, image: &str) -> PathBuf {
        self.directory.join(record_name(&complete(image)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn record_has_the_last_use_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let images = PulledImages::new(directory.path());
        assert_eq!(images.list().unwrap(), []);
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let pinned = format!("registry.example:5000/a@sha256:{}", "0a".repeat(32));
        images.record("busybox", at(1)).unwrap();
        images.record("registry.example:5000/a/b:1", at(2)).unwrap();
        images.record(&pinned, at(3)).unwrap();
        images
            .touch("docker.io/library/busybox:latest", at(4))
            .unwrap();
        images.touch("not-pulled", at(5)).unwrap();
        assert!(images.contains("busybox:latest") && !images.contains("not-pulled"));
        let mut listed = images.list().unwrap();
        listed.sort();
        let expected = [
            ("docker.io/library/busybox:latest".to_owned(), at(4)),
            ("registry.example:5000/a/b:1".to_owned(), at(2)),
            (pinned.clone(), at(3)),
        ];
        assert_eq!(listed, expected);
        // Another pull has begun.
        images.forget(&pinned, at(2)).unwrap();
        assert_eq!(images.list().unwrap().len(), 3);
        for _ in 0..2 {
            images.forget(&pinned, at(3)).unwrap();
        }
        assert_eq!(images.list().unwrap().len(), 2);
        // An interrupted write.
        std::fs::write(directory.path().join(DIRECTORY).join("00"), "").unwrap();
        assert_eq!(images.list().unwrap().len(), 2);
    }

    #[test]
    fn record_of_the_longest_name_is_one_file() {
        let directory = tempfile::tempdir().unwrap();
        let images = PulledImages::new(directory.path());
        let image = format!("{}a:{}", "a/".repeat(127), "t".repeat(128));
        images.record(&image, SystemTime::UNIX_EPOCH).unwrap();
        let listed = images.list().unwrap();
        assert_eq!(listed, [(complete(&image), SystemTime::UNIX_EPOCH)]);
        let entries = std::fs::read_dir(directory.path().join(DIRECTORY)).unwrap();
        assert_eq!(entries.count(), 1);
    }
}
