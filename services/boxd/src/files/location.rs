//! Where a path leads: an opened directory and a name in it.
//!
//! The steps after the lookup use the directory's descriptor, so that a directory on the way may be
//! moved or replaced meanwhile without a change of the target.

use std::os::fd::{AsFd as _, OwnedFd};

use agentbox_contracts::error::ErrorCode;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use rustix::io::Errno;

use super::failure::{Failure, OnPath as _, Result};

/// The most symbolic links that are followed, as the kernel's limit.
const MAX_LINKS: usize = 40;
/// The longest path, without its NUL, as the kernel's limit.
pub const MAX_PATH_BYTES: usize = 4095;
pub const DEFAULT_DIRECTORY_MODE: u32 = 0o755;
/// The most levels of a tree that is copied or packed. Each takes a few descriptors.
pub const MAX_LEVELS: usize = 256;

/// A name in an opened directory. The name may not exist.
pub struct Location {
    /// Opened with `O_PATH`.
    pub directory: OwnedFd,
    pub name: Vec<u8>,
    /// The path of the request, for messages.
    pub path: Vec<u8>,
}

impl Location {
    /// The last name of `path` itself, also when it is a symbolic link.
    ///
    /// # Errors
    /// [`Failure`] when the directory cannot be opened; `InvalidPath` for a path without a name.
    pub fn of(path: &[u8]) -> Result<Self> {
        let no_name = || {
            let rule = "must end with the name of a file or directory";
            Failure::at(path, ErrorCode::InvalidPath, rule)
        };
        let (parent, name) = split(path).ok_or_else(no_name)?;
        Ok(Self {
            directory: open_directory(CWD, parent).on(path)?,
            name: name.to_vec(),
            path: path.to_vec(),
        })
    }

    /// The file that `path` leads to, through symbolic links. It may not exist.
    ///
    /// # Errors
    /// As [`Location::of`]; `IsADirectory` when the path has no last name.
    pub fn of_target(path: &[u8]) -> Result<Self> {
        let mut base = open_directory(CWD, b"/").on(path)?;
        let mut rest = path.to_vec();
        for _ in 0..=MAX_LINKS {
            let Some((parent, name)) = split(&rest) else {
                return Err(Failure::of(path, Errno::ISDIR));
            };
            let directory = open_directory(&base, parent).on(path)?;
            match readlinkat(&directory, name, Vec::<u8>::new()) {
                Ok(target) => {
                    rest = target.into_bytes();
                    base = directory;
                }
                // No symbolic link, or nothing.
                Err(Errno::INVAL | Errno::NOENT) => {
                    return Ok(Self {
                        name: name.to_vec(),
                        directory,
                        path: path.to_vec(),
                    });
                }
                Err(errno) => return Err(Failure::of(path, errno)),
            }
        }
        Err(Failure::of(path, Errno::LOOP))
    }

    /// The file's description, of a link itself. `None`: it does not exist.
    ///
    /// # Errors
    /// As `lstat(2)`.
    pub fn stat(&self) -> Result<Option<Stat>> {
        match statat(
            &self.directory,
            self.name.as_slice(),
            AtFlags::SYMLINK_NOFOLLOW,
        ) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Failure::of(&self.path, errno)),
        }
    }

    /// The same, of a file that must exist.
    ///
    /// # Errors
    /// `FileNotFound`, and as `lstat(2)`.
    pub fn existing(&self) -> Result<Stat> {
        self.stat()?
            .ok_or_else(|| Failure::of(&self.path, Errno::NOENT))
    }
}

/// Checks the form of a path.
///
/// # Errors
/// `InvalidPath`.
pub fn check_path(path: &[u8]) -> Result<()> {
    if path.first() != Some(&b'/') || path.contains(&0) || path.len() > MAX_PATH_BYTES {
        return Err(Failure::new(
            ErrorCode::InvalidPath,
            format!(
                "path: must be absolute, without NUL, and have at most {MAX_PATH_BYTES} bytes, is \
                 `{}`",
                super::failure::shown(path)
            ),
        ));
    }
    Ok(())
}

#[must_use]
pub fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The path without its last name, and the name. `None`: there is no name, as in `/` and `/a/..`.
#[must_use]
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = path.iter().rposition(|byte| *byte != b'/')? + 1;
    let path = path.get(..end)?;
    let start = path
        .iter()
        .rposition(|byte| *byte == b'/')
        .map_or(0, |slash| slash + 1);
    let (parent, name) = path.split_at_checked(start)?;
    (name != b"." && name != b"..").then_some((parent, name))
}

/// Opens a directory below `base`, for lookups only. An empty path is `base` itself.
///
/// # Errors
/// As `openat(2)`.
pub fn open_directory(base: impl std::os::fd::AsFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(base, path, flags, Mode::empty())
}

/// Creates the missing directories of the path before its last name.
///
/// # Errors
/// As `mkdir(2)`.
pub fn create_parents(path: &[u8]) -> Result<()> {
    let Some((parent, _)) = split(path) else {
        return Ok(());
    };
    let is_missing = |part: &[u8]| matches!(open_directory(CWD.as_fd(), part), Err(Errno::NOENT));
    if !is_missing(parent) {
        return Ok(());
    }
    let ends = parent
        .iter()
        .enumerate()
        .filter(|(index, byte)| *index > 0 && **byte == b'/')
        .map(|(index, _)| index);
    for end in ends {
        let part = parent.get(..end).unwrap_or(parent);
        if is_missing(part) {
            match rustix::fs::mkdir(part, Mode::from_raw_mode(DEFAULT_DIRECTORY_MODE)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(Failure::of(part, errno)),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_is_split_at_its_last_name() {
        for (path, expected) in [
            ("/a", Some(("/", "a"))),
            ("/a/b", Some(("/a/", "b"))),
            ("/a//b//", Some(("/a//", "b"))),
            ("b", Some(("", "b"))),
            ("../b", Some(("../", "b"))),
            ("/", None),
            ("//", None),
            ("", None),
            ("/a/.", None),
            ("/a/..", None),
            ("..", None),
        ] {
            let expected = expected.map(|(parent, name)| (parent.as_bytes(), name.as_bytes()));
            assert_eq!(split(path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn path_that_is_relative_long_or_has_a_nul_is_invalid() {
        assert_eq!(check_path(b"/a\nb\xff"), Ok(()));
        assert_eq!(check_path(&[b'/'; MAX_PATH_BYTES]), Ok(()));
        for path in [&b""[..], b"a", b"/a\0", &[b'/'; MAX_PATH_BYTES + 1]] {
            assert_eq!(check_path(path).unwrap_err().code, ErrorCode::InvalidPath);
        }
    }

    #[test]
    fn target_is_found_through_relative_absolute_and_dangling_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir(root.join("sub")).unwrap();
        let link = std::os::unix::fs::symlink::<&std::path::Path, _>;
        link("sub/second".as_ref(), root.join("first")).unwrap();
        link("../missing".as_ref(), root.join("sub/second")).unwrap();
        let first = root.join("first");
        link(&first, root.join("absolute")).unwrap();
        link("loop".as_ref(), root.join("loop")).unwrap();
        let bytes = |name: &str| root.join(name).into_os_string().into_encoded_bytes();
        let found = Location::of_target(&bytes("absolute")).unwrap();
        assert_eq!(found.name, b"missing");
        assert!(found.stat().unwrap().is_none());
        std::fs::write(root.join("missing"), "x").unwrap();
        assert_eq!(found.existing().unwrap().st_size, 1);
        let code = |name: &str| Location::of_target(&bytes(name)).err().unwrap().code;
        assert_eq!(code("loop"), ErrorCode::TooManyLinks);
        assert_eq!(code("missing/x"), ErrorCode::NotADirectory);
        assert_eq!(code("nothing/x"), ErrorCode::FileNotFound);
        assert_eq!(Location::of(&bytes("loop")).unwrap().name, b"loop");
    }
}
