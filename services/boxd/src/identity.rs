//! The identity that an image would give to all of its boxes: its machine id and its random seeds.
//!
//! An image that brings a machine id gets another one in each box, before the box has a command. Seeds of
//! random numbers are removed: the kernel needs none, and software that finds none makes its own. Host keys
//! of SSH stay, because clients of the image may know them, and a server may not start without them.
//!
//! * I1. No symbolic link is followed, in no part of a path: an image leads boxd to no other file.
//! * I2. Only regular files with content are changed. An image without them is left as it is.
//! * I3. The box starts in any case. boxd cannot change files of another user unless it is root, nor a
//!   root file system that is read-only.

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, fchown};
use std::path::Path;

use nix::errno::Errno;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, openat, renameat, statat, unlinkat};
use uuid::Uuid;

use crate::stderr;

/// machine-id(5), and D-Bus's copy of it where that is no link.
const MACHINE_IDS: [&str; 2] = ["etc/machine-id", "var/lib/dbus/machine-id"];
/// The seeds of systemd, of Debian's urandom and of Red Hat's.
const RANDOM_SEEDS: [&str; 3] = [
    "var/lib/systemd/random-seed",
    "var/lib/urandom/random-seed",
    "var/lib/random-seed",
];

/// Renews the identity in the file system at `root`.
pub fn renew(root: &Path) {
    let id = format!("{}\n", Uuid::new_v4().simple());
    for path in MACHINE_IDS {
        report(path, replace(root, path, id.as_bytes()));
    }
    for path in RANDOM_SEEDS {
        report(path, remove(root, path));
    }
}

fn report(path: &str, outcome: io::Result<()>) {
    let Err(error) = outcome else { return };
    match error.raw_os_error().map(Errno::from_raw) {
        // The image has no such file, or a link in the path.
        Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
        // boxd is not root, or the root file system is read-only (I3).
        Some(Errno::EACCES | Errno::EPERM | Errno::EROFS) => {}
        _ => stderr::line(&format!("boxd: /{path} stays as the image has it: {error}")),
    }
}

/// The directory of `path`, and its name there.
fn parent<'path>(root: &Path, path: &'path str) -> io::Result<(OwnedFd, &'path str)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut directory = openat(CWD, root, flags, Mode::empty())?;
    let mut name = path;
    while let Some((part, rest)) = name.split_once('/') {
        directory = openat(&directory, part, flags, Mode::empty())?;
        name = rest;
    }
    Ok((directory, name))
}

fn has_content(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size > 0
}

/// Replaces the file at once: a hard link to it elsewhere keeps its content.
fn replace(root: &Path, path: &str, content: &[u8]) -> io::Result<()> {
    let (directory, name) = parent(root, path)?;
    let old = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if !has_content(&old) {
        return Ok(());
    }
    let temporary = format!(".agentbox-{}", Uuid::new_v4().simple());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o600);
    let file = openat(&directory, temporary.as_str(), flags, mode)?;
    let replaced = write_as(&old, file.into(), content)
        .and_then(|()| Ok(renameat(&directory, temporary.as_str(), &directory, name)?));
    if replaced.is_err() {
        let _ = unlinkat(&directory, temporary.as_str(), AtFlags::empty());
    }
    replaced
}

/// Writes the content, and gives the file owner and permissions of the old one.
fn write_as(old: &Stat, mut file: File, content: &[u8]) -> io::Result<()> {
    file.write_all(content)?;
    fchown(&file, Some(old.st_uid), Some(old.st_gid))?;
    file.set_permissions(Permissions::from_mode(old.st_mode & 0o777))
}

fn remove(root: &Path, path: &str) -> io::Result<()> {
    let (directory, name) = parent(root, path)?;
    if has_content(&statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?) {
        unlinkat(&directory, name, AtFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    const OF_IMAGE: &str = "0123456789abcdef0123456789abcdef\n";

    fn image(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    fn read(root: &tempfile::TempDir, path: &str) -> String {
        fs::read_to_string(root.path().join(path)).unwrap()
    }

    #[test]
    fn each_box_has_a_machine_id_of_its_own_and_no_seed() {
        let mut ids = Vec::new();
        for _ in 0..2 {
            let files = MACHINE_IDS.map(|path| (path, OF_IMAGE));
            let seeds = RANDOM_SEEDS.map(|path| (path, "seed"));
            let root = image(&[files.as_slice(), seeds.as_slice()].concat());
            let path = root.path().join("etc/machine-id");
            fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
            renew(root.path());
            let id = read(&root, "etc/machine-id");
            let digits = id.trim_end().bytes();
            assert!(digits.len() == 32 && id.ends_with('\n'), "{id}");
            assert!(
                digits.clone().all(|digit| digit.is_ascii_hexdigit()),
                "{id}"
            );
            assert_eq!(read(&root, "var/lib/dbus/machine-id"), id);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o444);
            for seed in RANDOM_SEEDS {
                assert!(!root.path().join(seed).exists(), "{seed}");
            }
            assert_eq!(fs::read_dir(root.path().join("etc")).unwrap().count(), 1);
            ids.push(id);
        }
        assert_ne!(ids[0], ids[1]);
        assert_ne!(ids[0], OF_IMAGE);
    }

    #[test]
    fn image_without_these_files_is_left_as_it_is() {
        let root = image(&[("etc/machine-id", ""), ("etc/hostname", "x")]);
        renew(root.path());
        assert_eq!(read(&root, "etc/machine-id"), "");
        assert_eq!(fs::read_dir(root.path().join("etc")).unwrap().count(), 2);
        assert!(!root.path().join("var").exists());
        let empty = tempfile::tempdir().unwrap();
        renew(empty.path());
        assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
    }

    #[test]
    fn links_are_not_followed_and_other_names_keep_their_content() {
        let root = image(&[
            ("victim", OF_IMAGE),
            ("elsewhere/systemd/random-seed", "seed"),
            ("etc/machine-id", OF_IMAGE),
        ]);
        let at = |path: &str| root.path().join(path);
        fs::hard_link(at("etc/machine-id"), at("linked")).unwrap();
        fs::create_dir_all(at("var/lib/dbus")).unwrap();
        symlink(at("victim"), at("var/lib/dbus/machine-id")).unwrap();
        symlink(at("elsewhere/systemd"), at("var/lib/systemd")).unwrap();
        fs::create_dir_all(at("var/lib/urandom/random-seed")).unwrap();
        renew(root.path());
        assert_ne!(read(&root, "etc/machine-id"), OF_IMAGE);
        for kept in ["victim", "linked", "var/lib/dbus/machine-id"] {
            assert_eq!(read(&root, kept), OF_IMAGE, "{kept}");
        }
        assert_eq!(read(&root, "elsewhere/systemd/random-seed"), "seed");
        assert!(at("var/lib/urandom/random-seed").is_dir());
    }
}
