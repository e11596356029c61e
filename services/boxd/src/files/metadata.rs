//! The description of a file, and its ETag.

use std::os::fd::BorrowedFd;

use agentbox_contracts::files::{FileMetadata, FileType};
use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, Stat, readlinkat, statat};

use super::failure::{OnPath as _, Result};
use super::location::file_type;
use crate::user::Names;

/// The permission bits of a mode.
pub const PERMISSIONS: u32 = 0o7777;

/// Describes files; holds the names of the box's users.
pub struct Describer(Names);

impl Describer {
    #[must_use]
    pub fn read() -> Self {
        Self(Names::read())
    }

    #[must_use]
    pub fn names(&self) -> &Names {
        &self.0
    }

    /// The description of a path; of a symbolic link itself unless `follow`.
    ///
    /// # Errors
    /// As `stat(2)`, `readlink(2)`.
    pub fn describe(&self, path: &[u8], follow: bool) -> Result<FileMetadata> {
        let flags = if follow {
            AtFlags::empty()
        } else {
            AtFlags::SYMLINK_NOFOLLOW
        };
        let stat = statat(CWD, path, flags).on(path)?;
        Ok(self.with_target(path, &stat, CWD, path))
    }

    /// The metadata of `name` in a directory, with the target of a link. A link that is replaced
    /// meanwhile has none.
    #[must_use]
    pub fn with_target(
        &self,
        path: &[u8],
        stat: &Stat,
        directory: BorrowedFd<'_>,
        name: &[u8],
    ) -> FileMetadata {
        let mut metadata = self.metadata(path, stat);
        if file_type(stat).is_symlink() {
            metadata.target = readlinkat(directory, name, Vec::<u8>::new())
                .ok()
                .map(|target| Bytes::from(target.into_bytes()));
        }
        metadata
    }

    #[must_use]
    pub fn metadata(&self, path: &[u8], stat: &Stat) -> FileMetadata {
        let file_type = match file_type(stat) {
            rustix::fs::FileType::RegularFile => FileType::File,
            rustix::fs::FileType::Directory => FileType::Directory,
            rustix::fs::FileType::Symlink => FileType::Symlink,
            _ => FileType::Other,
        };
        FileMetadata {
            path: Bytes::copy_from_slice(path),
            file_type: file_type.into(),
            size: size(stat),
            mode: stat.st_mode & PERMISSIONS,
            uid: stat.st_uid,
            gid: stat.st_gid,
            owner: self.0.user(stat.st_uid),
            group: self.0.group(stat.st_gid),
            modified_unix_nanos: modified_unix_nanos(stat),
            target: None,
        }
    }
}

#[must_use]
pub fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn modified_unix_nanos(stat: &Stat) -> i64 {
    let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    stat.st_mtime
        .saturating_mul(1_000_000_000)
        .saturating_add(nanos)
}

/// The strong validator of a file's content, with quotes.
#[must_use]
pub fn etag(stat: &Stat) -> String {
    format!(
        "\"{:x}-{:x}-{:x}-{:x}.{:x}-{:x}.{:x}\"",
        stat.st_dev,
        stat.st_ino,
        size(stat),
        stat.st_mtime,
        stat.st_mtime_nsec,
        stat.st_ctime,
        stat.st_ctime_nsec
    )
}

/// Whether one of the ETags of `If-None-Match` matches (RFC 9110, 13.1.2: weak comparison).
#[must_use]
pub fn matches_weakly(given: &[String], etag: &str) -> bool {
    given
        .iter()
        .any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == etag)
}

/// Whether one of the ETags of `If-Match` matches (RFC 9110, 13.1.1: strong comparison).
#[must_use]
pub fn matches_strongly(given: &[String], etag: &str) -> bool {
    given.iter().any(|one| one == "*" || one == etag)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn etag_changes_with_content_size_times_and_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let tag = || etag(&rustix::fs::stat(&file).unwrap());
        fs::write(&file, "one").unwrap();
        let first = tag();
        assert_eq!(first, tag());
        assert!(first.starts_with('"') && first.ends_with('"'), "{first}");
        fs::write(&file, "longer").unwrap();
        let second = tag();
        assert_ne!(first, second);
        // The same content and time, in another file.
        fs::copy(&file, dir.path().join("other")).unwrap();
        fs::rename(dir.path().join("other"), &file).unwrap();
        assert_ne!(second, tag());
    }

    #[test]
    fn etags_are_compared_weakly_or_strongly() {
        let given = |text: &str| vec!["\"x\"".to_owned(), text.to_owned()];
        for (text, weakly, strongly) in [
            ("\"a\"", true, true),
            ("W/\"a\"", true, false),
            ("*", true, true),
            ("\"b\"", false, false),
            ("a", false, false),
        ] {
            assert_eq!(matches_weakly(&given(text), "\"a\""), weakly, "{text}");
            assert_eq!(matches_strongly(&given(text), "\"a\""), strongly, "{text}");
        }
        assert!(!matches_strongly(&[], "\"a\""));
    }

    #[test]
    fn description_is_of_the_link_or_of_its_target() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "12345").unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        let path = dir.path().join("link");
        let path = path.as_os_str().as_bytes();
        let link = Describer::read().describe(path, false).unwrap();
        assert_eq!(link.file_type, i32::from(FileType::Symlink));
        assert_eq!(link.target.as_deref(), Some(&b"file"[..]));
        let target = Describer::read().describe(path, true).unwrap();
        assert_eq!((target.size, target.target), (5, None));
        assert_eq!(target.path, path);
    }
}
