//! The cgroup that this process is in, version 1 or 2.
//!
//! In a container the hierarchies are usually mounted so that their root is the
//! container's own group; elsewhere the path of `/proc/self/cgroup` is below the mount.
//! A value that cannot be read is reported as 0.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::regular_file;

const MOUNT: &str = "/sys/fs/cgroup";
/// Version 1 writes "no limit" as a number near 2^63.
const NO_LIMIT: u64 = 1 << 60;
/// Far longer than any file of a group.
const MAX_FILE_BYTES: u64 = 64 * 1024;

#[derive(Debug, PartialEq, Eq)]
pub enum Cgroup {
    V2(PathBuf),
    V1 {
        cpuacct: PathBuf,
        memory: PathBuf,
        pids: PathBuf,
    },
}

impl Cgroup {
    /// This process's cgroup. Found once: a box does not change its cgroup.
    pub fn own() -> &'static Self {
        static OWN: OnceLock<Cgroup> = OnceLock::new();
        OWN.get_or_init(|| {
            let table = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            Self::find(Path::new(MOUNT), &table)
        })
    }

    fn find(mount: &Path, table: &str) -> Self {
        if mount.join("cgroup.controllers").exists() {
            return Self::V2(group(mount, path_of(table, "")));
        }
        let v1 = |controller| group(&mount.join(controller), path_of(table, controller));
        Self::V1 {
            cpuacct: v1("cpuacct"),
            memory: v1("memory"),
            pids: v1("pids"),
        }
    }

    /// CPU time since the group was created, in nanoseconds.
    pub fn cpu_nanos(&self) -> u64 {
        match self {
            Self::V2(group) => field(&group.join("cpu.stat"), "usage_usec").saturating_mul(1000),
            Self::V1 { cpuacct, .. } => number(&cpuacct.join("cpuacct.usage")),
        }
    }

    /// The working set: usage minus inactive file cache.
    pub fn memory_bytes(&self) -> u64 {
        let (used, stat, inactive) = match self {
            Self::V2(group) => (
                group.join("memory.current"),
                group.join("memory.stat"),
                "inactive_file",
            ),
            Self::V1 { memory, .. } => (
                memory.join("memory.usage_in_bytes"),
                memory.join("memory.stat"),
                "total_inactive_file",
            ),
        };
        number(&used).saturating_sub(field(&stat, inactive))
    }

    /// 0: no limit.
    pub fn memory_limit_bytes(&self) -> u64 {
        let limit = match self {
            Self::V2(group) => number(&group.join("memory.max")),
            Self::V1 { memory, .. } => number(&memory.join("memory.limit_in_bytes")),
        };
        if limit >= NO_LIMIT { 0 } else { limit }
    }

    pub fn pids(&self) -> u64 {
        match self {
            Self::V2(group) => number(&group.join("pids.current")),
            Self::V1 { pids, .. } => number(&pids.join("pids.current")),
        }
    }

    pub fn oom_kills(&self) -> u64 {
        match self {
            Self::V2(group) => field(&group.join("memory.events"), "oom_kill"),
            Self::V1 { memory, .. } => field(&memory.join("memory.oom_control"), "oom_kill"),
        }
    }
}

/// The group's path below its mount, from `/proc/self/cgroup` (cgroups(7)). In version 2
/// the controller's name is empty.
fn path_of<'table>(table: &'table str, controller: &str) -> &'table str {
    let line = table.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        names
            .split(',')
            .any(|name| name == controller)
            .then_some(path)
    });
    line.unwrap_or("/")
}

fn group(mount: &Path, path: &str) -> PathBuf {
    let below = mount.join(path.trim_start_matches('/'));
    if below.is_dir() {
        below
    } else {
        mount.to_owned()
    }
}

fn number(path: &Path) -> u64 {
    text(path).trim().parse().unwrap_or(0)
}

/// The text of a file. Where no hierarchy is mounted, the path is one of the box's own file system.
fn text(path: &Path) -> String {
    let bytes = regular_file::read(path, MAX_FILE_BYTES).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn field(path: &Path, name: &str) -> u64 {
    let text = text(path);
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn cgroup_v2_is_read_from_container_root() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("cgroup.controllers", "cpu memory pids\n"),
            ("cpu.stat", "usage_usec 1500\nuser_usec 1000\n"),
            ("memory.current", "1000\n"),
            ("memory.stat", "anon 1\ninactive_file 300\nactive_file 2\n"),
            ("memory.max", "max\n"),
            ("memory.events", "oom 3\noom_kill 2\noom_group_kill 0\n"),
            ("pids.current", "7\n"),
        ] {
            write(&dir.path().join(name), text);
        }
        let cgroup = Cgroup::find(dir.path(), "0::/kubepods/pod1/box\n");
        assert_eq!(cgroup, Cgroup::V2(dir.path().to_owned()));
        assert_eq!(
            (cgroup.cpu_nanos(), cgroup.memory_bytes()),
            (1_500_000, 700)
        );
        assert_eq!(
            (
                cgroup.memory_limit_bytes(),
                cgroup.pids(),
                cgroup.oom_kills()
            ),
            (0, 7, 2)
        );
    }

    #[test]
    fn cgroup_v1_is_read_below_each_controller_mount() {
        let dir = tempfile::tempdir().unwrap();
        let memory = dir.path().join("memory/box");
        write(&memory.join("memory.usage_in_bytes"), "5000\n");
        write(
            &memory.join("memory.stat"),
            "inactive_file 1\ntotal_inactive_file 1000\n",
        );
        write(
            &memory.join("memory.limit_in_bytes"),
            "9223372036854771712\n",
        );
        write(
            &memory.join("memory.oom_control"),
            "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
        );
        write(&dir.path().join("cpuacct/cpuacct.usage"), "123\n");
        let table = "5:memory:/box\n4:cpu,cpuacct:/elsewhere\n2:pids:/box\n0::/\n";
        let cgroup = Cgroup::find(dir.path(), table);
        assert_eq!((cgroup.cpu_nanos(), cgroup.memory_bytes()), (123, 4000));
        assert_eq!(
            (
                cgroup.memory_limit_bytes(),
                cgroup.pids(),
                cgroup.oom_kills()
            ),
            (0, 0, 4)
        );
    }
}
