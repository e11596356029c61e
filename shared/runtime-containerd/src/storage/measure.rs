//! Measures the bytes that a box has on disk.
//!
//! The sum has every block allocated under the upper directory, each hard-linked file once; at
//! least [`MIN_FILE_BYTES`] for each file, because empty files use inodes; and deleted files that
//! a process of the box holds open or mapped.
//!
//! * I1. No link and no mount in a box is followed, also if the box replaces a directory by a link
//!   meanwhile.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// The least size that counts for a file: an empty one uses an inode.
pub const MIN_FILE_BYTES: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// Files below such a directory cannot be counted.
    #[error("a directory of the box has a path longer than 4096 bytes")]
    TooDeep,
    #[error("the box's files cannot be listed")]
    List(#[from] io::Error),
}

fn size(metadata: &fs::Metadata) -> u64 {
    metadata.blocks().saturating_mul(512).max(MIN_FILE_BYTES)
}

/// Whether the box has removed or replaced a file since it was listed.
fn is_replaced(error: &io::Error) -> bool {
    [Errno::ENOENT, Errno::ENOTDIR, Errno::ELOOP]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// Opens a directory below `root`; `ELOOP` for a path with a link.
fn open_below(root: &fs::File, path: &Path) -> io::Result<fs::File> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(fs::File::from(openat2(root, path, how)?))
}

/// Counts the bytes under a directory, up to a little over `enough`. Files that are deleted or
/// replaced meanwhile do not count.
///
/// # Errors
/// When a directory cannot be listed.
pub fn written(root: &Path, enough: u64) -> Result<u64, MeasureError> {
    let root = match fs::File::open(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        opened => opened?,
    };
    let mut total = 0u64;
    let mut linked = HashSet::new();
    // The path of the parent is shared: a box may have many directories with a long path.
    let mut pending: Vec<(Rc<Path>, OsString)> = vec![(Rc::from(Path::new("")), ".".into())];
    while let Some((parent, name)) = pending.pop() {
        let path: Rc<Path> = Rc::from(parent.join(name));
        let directory = match open_below(&root, &path) {
            Err(error) if is_replaced(&error) => continue,
            Err(error) if error.raw_os_error() == Some(Errno::ENAMETOOLONG as i32) => {
                return Err(MeasureError::TooDeep);
            }
            opened => opened?,
        };
        let entries = match fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd())) {
            Err(error) if is_replaced(&error) => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = match entry {
                Err(error) if is_replaced(&error) => break,
                entry => entry?,
            };
            // The entry's own metadata: links are not followed.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let is_first =
                metadata.nlink() < 2 || metadata.is_dir() || linked.insert(metadata.ino());
            if is_first {
                total = total.saturating_add(size(&metadata));
            }
            if metadata.is_dir() {
                pending.push((Rc::clone(&path), entry.file_name()));
            }
        }
        if total > enough {
            break;
        }
    }
    Ok(total)
}

/// Counts the bytes of deleted files that `processes` hold, only on the file systems of `paths`:
/// others (a tmpfs, an anonymous file) are memory. A process that ends meanwhile holds nothing.
///
/// # Errors
/// When the metadata of a path cannot be read.
pub fn deleted_but_open(paths: &[&Path], processes: &[u32]) -> Result<u64, MeasureError> {
    let devices = paths
        .iter()
        .map(|path| fs::metadata(path).map(|metadata| metadata.dev()))
        .collect::<io::Result<HashSet<u64>>>()?;
    let mut counted = HashSet::new();
    let mut total = 0u64;
    for process in processes {
        let process = PathBuf::from(format!("/proc/{process}"));
        for held in open_files(&process)
            .into_iter()
            .chain(deleted_maps(&process))
        {
            // The kernel's link leads to the file itself, also when the file has no name any more.
            let Ok(metadata) = fs::metadata(held) else {
                continue;
            };
            if metadata.nlink() == 0
                && devices.contains(&metadata.dev())
                && counted.insert((metadata.dev(), metadata.ino()))
            {
                total = total.saturating_add(size(&metadata));
            }
        }
    }
    Ok(total)
}

fn open_files(process: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(process.join("fd")).into_iter().flatten();
    entries.flatten().map(|entry| entry.path()).collect()
}

fn deleted_maps(process: &Path) -> Vec<PathBuf> {
    let maps = fs::read_to_string(process.join("maps")).unwrap_or_default();
    let deleted = maps.lines().filter(|line| line.ends_with(" (deleted)"));
    deleted
        .filter_map(|line| line.split(' ').next())
        .map(|range| process.join("map_files").join(range))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn usage_counts_blocks_and_each_hard_link_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let data = dir.path().join("sub/data");
        fs::write(&data, vec![7u8; 1 << 20]).unwrap();
        fs::hard_link(&data, dir.path().join("again")).unwrap();
        symlink("/", dir.path().join("link")).unwrap();
        fs::File::create(dir.path().join("sparse"))
            .unwrap()
            .set_len(1 << 40)
            .unwrap();
        let used = written(dir.path(), u64::MAX).unwrap();
        assert!((1 << 20..1 << 21).contains(&used), "{used}");
    }

    #[test]
    fn directory_that_was_replaced_by_a_link_or_a_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/", dir.path().join("link")).unwrap();
        symlink(".", dir.path().join("inner")).unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("file"), []).unwrap();
        let root = fs::File::open(dir.path()).unwrap();
        for path in ["./link", "./link/etc", "./inner/sub", "./file", "./none"] {
            let error = open_below(&root, Path::new(path)).unwrap_err();
            assert!(is_replaced(&error), "{path}: {error}");
        }
        open_below(&root, Path::new("./sub")).unwrap();
        assert_eq!(written(&dir.path().join("none"), 0).unwrap(), 0);
    }

    #[test]
    fn empty_file_counts_as_minimum_size() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..100 {
            fs::write(dir.path().join(n.to_string()), []).unwrap();
        }
        let used = written(dir.path(), u64::MAX).unwrap();
        assert_eq!(used, 100 * MIN_FILE_BYTES);
        assert!(written(dir.path(), MIN_FILE_BYTES).unwrap() > MIN_FILE_BYTES);
    }

    #[test]
    fn deleted_file_counts_once_while_open_on_the_measured_file_system() {
        use std::io::Write as _;
        let (dir, other) = (tempfile::tempdir().unwrap(), Path::new("/dev/shm"));
        let path = dir.path().join("deleted");
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(&vec![7u8; 1 << 20]).unwrap();
        file.sync_all().unwrap();
        let again = file.try_clone().unwrap();
        fs::remove_file(&path).unwrap();
        let own = [std::process::id()];
        // Other tests of this process may have deleted files open too, small ones.
        let used = deleted_but_open(&[dir.path()], &own).unwrap();
        assert!((1 << 20..2 << 20).contains(&used), "{used}");
        assert!(deleted_but_open(&[other], &own).unwrap() < 1 << 20);
        drop((file, again));
        assert!(deleted_but_open(&[dir.path()], &own).unwrap() < 1 << 20);
    }

    #[test]
    fn too_deep_tree_returns_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let name = "d".repeat(200);
        let mut handle = fs::File::open(dir.path()).unwrap();
        for _ in 0..25 {
            nix::sys::stat::mkdirat(&handle, name.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
            let flags = nix::fcntl::OFlag::O_DIRECTORY;
            let below =
                nix::fcntl::openat(&handle, name.as_str(), flags, nix::sys::stat::Mode::empty());
            handle = below.unwrap().into();
        }
        let outcome = written(dir.path(), u64::MAX);
        assert!(matches!(outcome, Err(MeasureError::TooDeep)), "{outcome:?}");
        assert!(
            std::process::Command::new("rm")
                .arg("-rf")
                .arg(dir.path())
                .status()
                .unwrap()
                .success()
        );
    }
}
