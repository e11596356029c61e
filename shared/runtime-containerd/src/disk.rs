//! The disk of a box: a sparse file on this machine with an ext4 file system that is as large as the
//! box's storage limit. Everything that the box writes to its root file system is on it, so the kernel
//! enforces the limit, whatever the box does: a write beyond it fails with `ENOSPC`.
//!
//! The overlay of a container writes into two directories of containerd's snapshotter. Between the
//! container's creation and its start, both are empty and unused. For this time the driver mounts the
//! disk over the directory that they are in, with two such directories. The overlay that the start
//! mounts uses these, and keeps them in use without the mount.
//!
//! * I1. A disk belongs to one creation of a box: each creation makes a new one.
//! * I2. Only the kernel reads the file's content. The box has no access to the file or its device,
//!   so that the file system on it is never a hostile one.
//! * I3. There is an inode for each [`BYTES_PER_FILE`]: empty files cannot use more of the
//!   machine's disk than the limit.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use agentbox_contracts::units::Bytes;
use agentbox_runtime::RuntimeError;
use nix::mount::{MsFlags, mount};
use tokio::process::Command;

use crate::context::search_path;
use crate::snapshots::WritableDirectories;
use crate::{mountinfo, tmpfs};

const LOOP_CONTROL: &str = "/dev/loop-control";
/// The bytes of the limit for each inode: as many files as of one block each.
const BYTES_PER_FILE: u64 = 4_096;
/// The size of a block.
const BLOCK_BYTES: u64 = 4_096;
/// The size of an inode in the file system's tables.
const INODE_BYTES: u64 = 256;
/// The smallest file system: less has no place for its own tables.
const MIN_LIMIT_BYTES: u64 = 1 << 20;
/// The other tables: a constant part, and a part of the limit.
const TABLES_BYTES: u64 = 128 << 10;
const LIMIT_PER_TABLE_BYTE: u64 = 8_192;
/// ext4 keeps a fiftieth of its blocks for itself, and at most this.
const MAX_RESERVED_BYTES: u64 = 4_096 * BLOCK_BYTES;
const LIMIT_PER_RESERVED_BYTE: u64 = 50;
/// Chosen one by one, so that every version of mkfs makes the same file system. There is no journal: a
/// disk does not outlive the machine's crash.
const FEATURES: &str = "none,ext_attr,extent,dir_index,filetype,flex_bg,sparse_super,large_file,\
                        huge_file,dir_nlink,extra_isize,64bit,metadata_csum";

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("cannot run {program}")]
    Start {
        program: &'static str,
        source: io::Error,
    },
    #[error("{program} failed: {stderr}")]
    Failed {
        program: &'static str,
        stderr: String,
    },
    #[error("{program} did not finish within {after:?}")]
    Deadline {
        program: &'static str,
        after: Duration,
    },
    #[error("cannot use {path}")]
    Io { path: PathBuf, source: io::Error },
}

impl From<DiskError> for RuntimeError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Deadline { after, .. } => Self::Deadline(after),
            other => Self::Cluster {
                operation: "disk of a box",
                message: agentbox_contracts::ErrorChain(&other).to_string(),
            },
        }
    }
}

/// Why this machine has no disks for boxes; `None` if it has.
pub fn missing_requirement() -> Option<String> {
    // Opened, because it may exist without the kernel's module, or be denied to a container.
    if let Err(error) = std::fs::File::open(LOOP_CONTROL) {
        return Some(format!("loop devices: cannot open {LOOP_CONTROL}: {error}"));
    }
    let path = search_path();
    let is_missing = |program: &&str| {
        let mut directories = path.split(':').filter(|directory| !directory.is_empty());
        !directories.any(|directory| Path::new(directory).join(program).is_file())
    };
    ["mkfs.ext4", "mount"]
        .iter()
        .find(|program| is_missing(program))
        .map(|program| format!("the program {program} is missing"))
}

/// The disk's file and the directory where its file system is mounted.
#[derive(Clone, Debug)]
pub struct Disk {
    file: PathBuf,
    directory: PathBuf,
}

impl Disk {
    /// The disk of the box with this directory.
    pub fn of(box_directory: &Path) -> Self {
        Self {
            file: box_directory.join("disk.img"),
            directory: box_directory.join("disk"),
        }
    }

    /// Where its file system is mounted.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes and mounts an empty disk. An earlier one of the box was removed by [`Self::discard`].
    ///
    /// # Errors
    /// When the machine has no space, loop device or program for it.
    pub async fn create(&self, limit: Bytes, within: Duration) -> Result<(), DiskError> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |source| DiskError::Io { path, source }
        };
        let limit = limit.0.max(MIN_LIMIT_BYTES);
        std::fs::File::options()
            .write(true)
            .create_new(true)
            .open(&self.file)
            .and_then(|file| {
                file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
                file.set_len(file_bytes(limit))
            })
            .map_err(io_error(&self.file))?;
        std::fs::create_dir_all(&self.directory).map_err(io_error(&self.directory))?;
        let file = self.file.to_string_lossy().into_owned();
        let directory = self.directory.to_string_lossy().into_owned();
        let (block, inode) = (BLOCK_BYTES.to_string(), INODE_BYTES.to_string());
        let files = files(limit).to_string();
        // Without `-m 0` a part of the disk is for the machine's root only. The file is all zeros, so
        // no table needs to be written.
        #[rustfmt::skip]
        let arguments = [
            "-q", "-F", "-b", block.as_str(), "-I", inode.as_str(), "-N", files.as_str(), "-m", "0",
            "-O", FEATURES, "-E", "lazy_itable_init=1,nodiscard", "-e", "remount-ro", file.as_str(),
        ];
        run("mkfs.ext4", &arguments, within).await?;
        let options = "loop,noatime,nodev,noinit_itable";
        let arguments = [
            "-t",
            "ext4",
            "-o",
            options,
            file.as_str(),
            directory.as_str(),
        ];
        run("mount", &arguments, within).await
    }

    /// Puts the disk in the place of a created container's directories, until [`Self::detach`].
    ///
    /// # Errors
    /// When a directory cannot be made or the disk cannot be mounted there.
    pub fn attach(&self, container: &WritableDirectories) -> io::Result<()> {
        for name in [&container.upper, &container.work] {
            let (theirs, ours) = (container.parent.join(name), self.directory.join(name));
            let metadata = std::fs::metadata(theirs)?;
            std::fs::create_dir(&ours)?;
            std::fs::set_permissions(&ours, metadata.permissions())?;
            // containerd gives the upper directory to root of the box's user namespace.
            std::os::unix::fs::chown(&ours, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        let none = None::<&str>;
        mount(
            Some(&self.directory),
            &container.parent,
            none,
            MsFlags::MS_BIND,
            none,
        )?;
        Ok(())
    }

    /// Whether the overlay of a started container is on the disk: the kernel makes a directory `work` in
    /// the work directory of each overlay, and does not remove it.
    pub fn is_used_by(&self, container: &WritableDirectories) -> bool {
        self.directory.join(&container.work).join("work").is_dir()
    }

    /// Removes the mount of [`Self::attach`]. A started container keeps its overlay.
    ///
    /// # Errors
    /// As `umount2(2)`.
    pub fn detach(container: &WritableDirectories) -> io::Result<()> {
        tmpfs::unmount(&container.parent)
    }

    /// Whether the box has a disk, by the [`mountinfo::points`] of the machine.
    pub fn is_mounted(&self, points: &HashSet<PathBuf>) -> bool {
        points.contains(&self.directory)
    }

    /// The bytes of the machine's disk that the box's disk uses.
    pub fn used_bytes(&self) -> io::Result<u64> {
        Ok(std::fs::metadata(&self.file)?.blocks().saturating_mul(512))
    }

    /// Unmounts the disk wherever it is mounted, and removes its file; a missing disk is not an error. The
    /// space is free when no container uses the disk.
    ///
    /// # Errors
    /// As `umount2(2)` and `unlink(2)`.
    pub fn discard(&self) -> io::Result<()> {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
        if let Some(device) = device_of(&mountinfo, &self.directory) {
            // A killed or failed call may have left the mount of `attach`.
            for point in mount_points(&mountinfo, device) {
                tmpfs::unmount(&point)?;
            }
        }
        match std::fs::remove_file(&self.file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// The number of files of a disk.
fn files(limit: u64) -> u64 {
    limit.div_ceil(BYTES_PER_FILE)
}

/// The size of a disk's file: the limit, and what the file system needs for itself.
fn file_bytes(limit: u64) -> u64 {
    let tables = TABLES_BYTES + limit / LIMIT_PER_TABLE_BYTE + files(limit) * INODE_BYTES;
    let reserved = (limit / LIMIT_PER_RESERVED_BYTE).min(MAX_RESERVED_BYTES);
    limit
        .saturating_add(tables + reserved)
        .next_multiple_of(BLOCK_BYTES)
}

/// The number of the device that is mounted at a directory.
fn device_of<'a>(mountinfo: &'a str, directory: &Path) -> Option<&'a str> {
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let (device, _root, point) = (fields.next()?, fields.next()?, fields.next()?);
        (mountinfo::path(point) == directory).then_some(device)
    })
}

/// The mount points of a device, the newest first.
fn mount_points(mountinfo: &str, device: &str) -> Vec<PathBuf> {
    let mut points: Vec<PathBuf> = mountinfo
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(2);
            let is_of_device = fields.next()? == device;
            let point = fields.nth(1).filter(|_| is_of_device)?;
            Some(mountinfo::path(point))
        })
        .collect();
    points.reverse();
    points
}

async fn run(program: &'static str, arguments: &[&str], within: Duration) -> Result<(), DiskError> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("PATH", search_path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(within, command.output())
        .await
        .map_err(|_| DiskError::Deadline {
            program,
            after: within,
        })?
        .map_err(|source| DiskError::Start { program, source })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(DiskError::Failed {
        program,
        stderr: stderr.trim().chars().take(1_000).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_is_larger_than_the_limit_by_its_tables_only() {
        for limit in [1 << 20, 16 << 20, 1 << 30, 100 << 30] {
            let (file, files) = (file_bytes(limit), files(limit));
            assert_eq!(files, limit / 4_096);
            assert_eq!(file % BLOCK_BYTES, 0);
            let tables = file - limit;
            assert!(tables > files * INODE_BYTES, "{limit}");
            assert!(tables <= limit / 16 + limit / 49 + (256 << 10), "{limit}");
        }
    }

    #[test]
    fn every_mount_of_a_disk_is_found_and_no_other() {
        let mountinfo = "30 1 8:1 / / rw - ext4 /dev/sda rw\n\
                         31 30 7:3 / /boxes/a/disk rw - ext4 /dev/loop3 rw\n\
                         32 30 7:4 / /boxes/b/disk rw - ext4 /dev/loop4 rw\n\
                         33 30 7:3 / /c/snapshots/9 rw - ext4 /dev/loop3 rw\n\
                         34 30 0:50 / /run/rootfs rw - overlay overlay rw,upperdir=/c/snapshots/9/fs\n";
        let device = device_of(mountinfo, Path::new("/boxes/a/disk")).unwrap();
        assert_eq!(device, "7:3");
        assert_eq!(
            mount_points(mountinfo, device),
            [Path::new("/c/snapshots/9"), Path::new("/boxes/a/disk")]
        );
        let points = mountinfo::points(mountinfo);
        assert!(Disk::of(Path::new("/boxes/b")).is_mounted(&points));
        assert!(!Disk::of(Path::new("/boxes/c")).is_mounted(&points));
    }

    #[test]
    fn disk_with_a_space_in_its_path_is_found() {
        let mountinfo = "31 30 7:3 / /my\\040boxes/a/disk rw - ext4 /dev/loop3 rw\n";
        let disk = Disk::of(Path::new("/my boxes/a"));
        assert_eq!(device_of(mountinfo, disk.directory()), Some("7:3"));
        assert!(disk.is_mounted(&mountinfo::points(mountinfo)));
        assert_eq!(
            mount_points(mountinfo, "7:3"),
            [Path::new("/my boxes/a/disk")]
        );
    }

    #[test]
    fn overlay_on_the_disk_is_known_by_its_work_directory() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::of(root.path());
        let container = WritableDirectories {
            parent: "/c/snapshots/7".into(),
            upper: "fs".to_owned(),
            work: "work".to_owned(),
        };
        let work = disk.directory().join("work");
        std::fs::create_dir_all(&work).unwrap();
        assert!(!disk.is_used_by(&container));
        std::fs::create_dir(work.join("work")).unwrap();
        assert!(disk.is_used_by(&container));
    }
}
