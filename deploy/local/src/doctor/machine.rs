//! The checks of the machine: the kernel, control groups, namespaces, limits of storage, the clock and
//! the disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use agentbox_testing::tool::find;
use chrono::{DateTime, TimeZone as _, Utc};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access, geteuid};

use super::Finding;

/// The first kernel with `openat2`, by which the driver opens files of images.
const MIN_KERNEL: (u32, u32) = (5, 6);
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
const GIB: u64 = 1 << 30;
/// Images, logs and the databases of a new instance need about as much.
const MIN_DISK: u64 = 2 * GIB;
/// Less is soon full of images.
const ENOUGH_DISK: u64 = 10 * GIB;

pub(super) fn examine(directory: &Path) -> Vec<Finding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![
        kernel(release.trim()),
        rights(geteuid().is_root()),
        cgroups(Path::new("/sys/fs/cgroup")),
        namespaces(Path::new("/proc")),
        quotas(
            &fs::read_to_string("/proc/filesystems").unwrap_or_default(),
            Path::new("/dev/loop-control").exists(),
            find("mkfs.ext4").is_some(),
        ),
        disk(directory, free_bytes(directory)),
        clock(Utc::now()),
    ]
}

/// The major and the minor version of `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel(release: &str) -> Finding {
    let (major, minor) = MIN_KERNEL;
    let advice = format!("use Linux {major}.{minor} or newer");
    match version(release) {
        Some(version) if version >= MIN_KERNEL => Finding::ok("kernel", format!("Linux {release}")),
        Some(_) => Finding::failure("kernel", format!("Linux {release} is too old"), advice),
        None => Finding::failure(
            "kernel",
            format!("the version `{release}` is unknown"),
            advice,
        ),
    }
}

fn rights(is_root: bool) -> Finding {
    if is_root {
        Finding::ok("rights", "this user is root")
    } else {
        Finding::failure(
            "rights",
            "this user is not root",
            "run it with sudo: containers, networks and mounts need root",
        )
    }
}

fn cgroups(root: &Path) -> Finding {
    let advice =
        "mount cgroup v2 at /sys/fs/cgroup, writable, with the controllers cpu, memory and pids";
    let (kind, present): (&str, Vec<String>) =
        match fs::read_to_string(root.join("cgroup.controllers")) {
            Ok(controllers) => {
                let names = controllers.split_whitespace().map(ToOwned::to_owned);
                ("v2", names.collect())
            }
            Err(_) => {
                let names = CONTROLLERS
                    .into_iter()
                    .filter(|name| root.join(name).is_dir());
                ("v1", names.map(ToOwned::to_owned).collect())
            }
        };
    let missing: Vec<&str> = CONTROLLERS
        .into_iter()
        .filter(|name| !present.iter().any(|present| present == name))
        .collect();
    if !missing.is_empty() {
        let found = format!("cgroup {kind} without {}", missing.join(", "));
        return Finding::failure("cgroups", found, advice);
    }
    let groups = match kind {
        "v2" => root.to_owned(),
        _ => root.join("memory"),
    };
    match access(&groups, AccessFlags::W_OK) {
        Ok(()) => Finding::ok(
            "cgroups",
            format!("cgroup {kind} with cpu, memory and pids"),
        ),
        Err(error) => Finding::failure(
            "cgroups",
            format!("{} is not writable: {error}", groups.display()),
            advice,
        ),
    }
}

fn namespaces(proc: &Path) -> Finding {
    let missing: Vec<&str> = NAMESPACES
        .into_iter()
        .filter(|name| fs::symlink_metadata(proc.join("self/ns").join(name)).is_err())
        .collect();
    if missing.iter().any(|name| *name != "user") {
        return Finding::failure(
            "namespaces",
            format!("the kernel has no namespaces of {}", missing.join(", ")),
            "use a kernel with CONFIG_NAMESPACES and all its kinds",
        );
    }
    let most = fs::read_to_string(proc.join("sys/user/max_user_namespaces")).unwrap_or_default();
    if missing.is_empty() && most.trim() != "0" {
        return Finding::ok("namespaces", "all kinds, user namespaces included");
    }
    Finding::warning(
        "namespaces",
        "no user namespaces: root in a box is root of the machine, with fewer capabilities",
        "set the sysctl user.max_user_namespaces to 15000, or use gVisor",
    )
}

/// How limits of storage are enforced: by a file system of its own for each box, on a loop device.
fn quotas(filesystems: &str, has_loop_devices: bool, has_mkfs: bool) -> Finding {
    let has_ext4 = filesystems
        .lines()
        .any(|line| line.split_whitespace().last() == Some("ext4"));
    let missing: Vec<&str> = [
        (has_ext4, "ext4"),
        (has_loop_devices, "/dev/loop-control"),
        (has_mkfs, "mkfs.ext4"),
    ]
    .into_iter()
    .filter_map(|(is_present, name)| (!is_present).then_some(name))
    .collect();
    if missing.is_empty() {
        return Finding::ok(
            "quotas",
            "limits of storage are enforced by ext4 on loop devices",
        );
    }
    Finding::warning(
        "quotas",
        format!(
            "without {} limits of storage are measured, not enforced",
            missing.join(", ")
        ),
        "load the modules ext4 and loop, and install e2fsprogs",
    )
}

/// The free bytes of the file system that `directory` is or will be in.
fn free_bytes(directory: &Path) -> io::Result<u64> {
    let existing = directory
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .map_or_else(|| PathBuf::from("/"), Path::to_owned);
    let stats = statvfs(&existing)?;
    Ok(stats
        .blocks_available()
        .saturating_mul(stats.fragment_size()))
}

fn disk(directory: &Path, free: io::Result<u64>) -> Finding {
    let place = directory.display();
    let advice = "free some space, or choose another directory with --dir";
    match free {
        Ok(free) => {
            let found = format!("{} GiB free for {place}", free / GIB);
            match free {
                ..MIN_DISK => Finding::failure("disk", found, advice),
                MIN_DISK..ENOUGH_DISK => Finding::warning("disk", found, advice),
                _ => Finding::ok("disk", found),
            }
        }
        Err(error) => Finding::failure(
            "disk",
            format!("the free space for {place} is unknown: {error}"),
            advice,
        ),
    }
}

/// The marks that time services leave while the clock is synchronized.
const SYNCHRONIZED: [&str; 2] = [
    "/run/systemd/timesync/synchronized",
    "/run/chrony/chronyd.pid",
];

fn clock(now: DateTime<Utc>) -> Finding {
    let text = now.format("%Y-%m-%dT%H:%M:%SZ");
    // The year of this program: a clock before it was never set.
    let is_set = Utc
        .with_ymd_and_hms(2026, 1, 1, 0, 0, 0)
        .single()
        .is_some_and(|first| now >= first);
    if !is_set {
        return Finding::failure(
            "clock",
            format!("the clock is at {text}, which is in the past"),
            "set the clock: certificates and tokens are not valid at that time",
        );
    }
    if SYNCHRONIZED.iter().any(|mark| Path::new(mark).exists()) {
        return Finding::ok("clock", format!("{text}, synchronized by a time service"));
    }
    Finding::warning(
        "clock",
        format!("{text}; no time service was found"),
        "run systemd-timesyncd or chrony, unless the host of this machine sets its clock",
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::Level;
    use super::*;

    #[test]
    fn old_or_unknown_kernel_fails() {
        for (release, level) in [
            ("6.1.0-18-amd64", Level::Ok),
            ("5.6.0", Level::Ok),
            ("5.4.0-generic", Level::Failure),
            ("4.19", Level::Failure),
            ("", Level::Failure),
            ("what", Level::Failure),
        ] {
            assert_eq!(kernel(release).level, level, "{release}");
        }
        assert_eq!(rights(true).level, Level::Ok);
        assert_eq!(rights(false).level, Level::Failure);
    }

    #[test]
    fn both_versions_of_cgroups_are_found_and_a_missing_controller_fails() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        assert_eq!(cgroups(path).level, Level::Failure);
        for controller in CONTROLLERS {
            fs::create_dir(path.join(controller)).unwrap();
        }
        let v1 = cgroups(path);
        assert_eq!(v1.level, Level::Ok);
        assert!(v1.found.contains("v1"), "{v1}");
        fs::write(path.join("cgroup.controllers"), "cpuset cpu memory\n").unwrap();
        let without_pids = cgroups(path);
        assert_eq!(without_pids.level, Level::Failure);
        assert!(
            without_pids.found.ends_with("without pids"),
            "{without_pids}"
        );
        fs::write(path.join("cgroup.controllers"), "cpu io memory pids\n").unwrap();
        assert_eq!(cgroups(path).level, Level::Ok);
    }

    #[test]
    fn missing_user_namespaces_are_a_warning_and_other_kinds_a_failure() {
        let root = tempfile::tempdir().unwrap();
        let (proc, kinds) = (root.path(), root.path().join("self/ns"));
        fs::create_dir_all(&kinds).unwrap();
        fs::create_dir_all(proc.join("sys/user")).unwrap();
        assert_eq!(namespaces(proc).level, Level::Failure);
        for kind in NAMESPACES {
            symlink(format!("{kind}:[1]"), kinds.join(kind)).unwrap();
        }
        assert_eq!(namespaces(proc).level, Level::Ok);
        fs::write(proc.join("sys/user/max_user_namespaces"), "0\n").unwrap();
        assert_eq!(namespaces(proc).level, Level::Warning);
        fs::remove_file(kinds.join("net")).unwrap();
        assert_eq!(namespaces(proc).level, Level::Failure);
    }

    #[test]
    fn missing_part_of_enforced_storage_is_named() {
        let filesystems = "nodev\ttmpfs\n\text4\n";
        assert_eq!(quotas(filesystems, true, true).level, Level::Ok);
        let measured = quotas("nodev\ttmpfs\n", false, true);
        assert_eq!(measured.level, Level::Warning);
        assert!(
            measured.found.contains("ext4, /dev/loop-control"),
            "{measured}"
        );
    }

    #[test]
    fn little_disk_space_is_a_warning_and_almost_none_a_failure() {
        let place = Path::new("/data");
        for (free, level) in [
            (0, Level::Failure),
            (MIN_DISK - 1, Level::Failure),
            (MIN_DISK, Level::Warning),
            (ENOUGH_DISK, Level::Ok),
        ] {
            assert_eq!(disk(place, Ok(free)).level, level, "{free}");
        }
        let unknown = Err(io::Error::other("no such device"));
        assert_eq!(disk(place, unknown).level, Level::Failure);
        assert!(free_bytes(Path::new("/no/such/directory")).unwrap() > 0);
    }

    #[test]
    fn clock_that_was_never_set_fails() {
        let unset = DateTime::<Utc>::UNIX_EPOCH;
        assert_eq!(clock(unset).level, Level::Failure);
        assert_ne!(clock(Utc::now()).level, Level::Failure);
    }
}
