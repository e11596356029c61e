//! Ways to write more than the storage limit. The kernel refuses each, the box keeps running, and
//! commands in it work. Boxes whose limits are together larger than the machine's disk leave its reserve free.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use agentbox_contracts::units::Bytes;
use agentbox_runtime::conformance::boxd::exec;
use agentbox_runtime::conformance::{Subject, Violation, check, eventually};
use agentbox_runtime::{BoxPhase, BoxSpec, ExitReason, Runtime as _};
use agentbox_runtime_containerd::{Config, Driver};
use futures::StreamExt as _;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::machine::{
    another_config, boxd_pid, config, subject, subject_of, subject_with_accounts,
};

const LIMIT: u64 = 16 << 20;
const MEMORY: u64 = 64 << 20;
/// The size of the output directory, a tmpfs.
const OUTPUT: u64 = 9 << 20;

/// Writes into `file` until the kernel refuses, and prints the errno and the number of bytes.
const FILL: &str = r"
import errno, os, shutil
def refused(write):
    total = 0
    try:
        while True: total += write(total)
    except OSError as error:
        print(error.errno, total, flush=True)
def create(path):
    return os.open(path, os.O_CREAT | os.O_RDWR)
def fill(file):
    refused(lambda _: os.write(file, b'x' * 65536))
";

/// What the bytes of a way count toward.
enum Limit {
    Storage,
    /// A tmpfs: the kernel refuses the write, or ends the writer.
    Memory(u64),
}

/// Each way: its name, a Python script, and its limit.
const WAYS: [(&str, &str, Limit); 11] = [
    (
        "root file system",
        "fill(create('/big')); os.unlink('/big')",
        Limit::Storage,
    ),
    (
        "/tmp",
        "fill(create('/tmp/big')); os.unlink('/tmp/big')",
        Limit::Storage,
    ),
    (
        "/etc/hosts",
        "fill(create('/etc/hosts')); os.truncate('/etc/hosts', 0)",
        Limit::Storage,
    ),
    (
        "/dev/shm",
        "file = create('/dev/shm/big'); os.unlink('/dev/shm/big'); fill(file)",
        Limit::Memory(MEMORY),
    ),
    (
        "output directory",
        "fill(create('/.agentbox/output/big')); os.unlink('/.agentbox/output/big')",
        Limit::Memory(OUTPUT),
    ),
    (
        "deleted and open",
        "file = create('/gone'); os.unlink('/gone'); fill(file)",
        Limit::Storage,
    ),
    (
        "sparse",
        "file = create('/sparse'); os.truncate(file, 1 << 40); os.lseek(file, 1 << 39, 0)\n\
         fill(file); os.unlink('/sparse')",
        Limit::Storage,
    ),
    (
        "fallocate",
        "file = create('/reserved')\n\
         refused(lambda at: os.posix_fallocate(file, at, 1 << 16) or 1 << 16)\n\
         os.unlink('/reserved')",
        Limit::Storage,
    ),
    (
        "a million empty files",
        "os.mkdir('/many')\n\
         def touch(at):\n\
         \x20   assert at < 4096 * 1000000\n\
         \x20   os.close(create(f'/many/{at}'))\n\
         \x20   return 4096\n\
         refused(touch)\n\
         shutil.rmtree('/many')",
        Limit::Storage,
    ),
    (
        "hard links",
        "os.mkdir('/links'); names = iter(range(10 ** 9)); source = None\n\
         def link(at):\n\
         \x20   global source\n\
         \x20   name = f'/links/{next(names):0250}'\n\
         \x20   try:\n\
         \x20       if source is None: raise OSError(errno.EMLINK, '')\n\
         \x20       os.link(source, name)\n\
         \x20   except OSError as error:\n\
         \x20       if error.errno != errno.EMLINK: raise\n\
         \x20       os.close(create(name)); source = name\n\
         \x20   return 0\n\
         refused(link)\n\
         used = os.statvfs('/')\n\
         print(28, (used.f_blocks - used.f_bavail) * used.f_frsize)\n\
         shutil.rmtree('/links')",
        Limit::Storage,
    ),
    (
        "a directory that becomes a link",
        "os.mkdir('/real'); state = [0]\n\
         def swap(_):\n\
         \x20   state[0] += 1\n\
         \x20   if os.path.islink('/real'):\n\
         \x20       os.unlink('/real'); os.rename('/hidden', '/real')\n\
         \x20   else:\n\
         \x20       os.rename('/real', '/hidden'); os.symlink('/', '/real')\n\
         \x20   path = '/hidden' if os.path.islink('/real') else '/real'\n\
         \x20   file = create(f'{path}/{state[0]}')\n\
         \x20   try: return os.write(file, b'x' * 65536)\n\
         \x20   finally: os.close(file)\n\
         refused(swap)\n\
         shutil.rmtree('/hidden' if os.path.islink('/real') else '/real')",
        Limit::Storage,
    ),
];

async fn try_way(
    s: &Subject<Driver>,
    spec: &BoxSpec,
    (name, script, limit): &(&str, &str, Limit),
) -> Result<(), Violation> {
    let script = format!("{FILL}{script}");
    let (output, code) = exec(s, spec, &["python3", "-c", &script]).await?;
    let numbers: Vec<u64> = output
        .lines()
        .last()
        .unwrap_or_default()
        .split(' ')
        .filter_map(|number| number.parse().ok())
        .collect();
    let is_refused = match (limit, &numbers[..]) {
        // ENOSPC, or EDQUOT.
        (Limit::Storage, [28 | 122, bytes]) => code == 0 && bytes.abs_diff(LIMIT) <= LIMIT / 20,
        (Limit::Memory(bound), [28, bytes]) => bytes <= bound,
        // The kernel ended the writer at the memory limit.
        (Limit::Memory(_), []) => code == 137,
        _ => false,
    };
    check(is_refused, || format!("{name}: exit {code}, {output}"))?;
    let (_, code) = exec(s, spec, &["true"]).await?;
    check(code == 0, || {
        format!("{name}: a command afterwards exits {code}")
    })?;
    let phase = s.first.get(&spec.id).await?.map(|observed| observed.phase);
    check(matches!(phase, Some(BoxPhase::Running { .. })), || {
        format!("{name}: {phase:?}")
    })?;
    let disk = config()
        .await
        .state_dir
        .join(spec.id.as_str())
        .join("disk.img");
    let used = std::fs::metadata(disk).map(|file| file.blocks() * 512);
    check(
        used.as_ref().is_ok_and(|used| *used < LIMIT + LIMIT / 8),
        || format!("{name}: the machine's disk has {used:?} bytes of the box"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn no_way_of_writing_exceeds_the_storage_limit() {
    let s = subject().await;
    let outcome = async {
        let mut spec = s.spec();
        spec.image.clone_from(&s.python);
        spec.resources.storage = Bytes(LIMIT);
        spec.resources.memory = Bytes(MEMORY);
        s.run(&spec).await?;
        for way in &WAYS {
            try_way(&s, &spec, way).await?;
        }
        Ok::<(), Violation>(())
    };
    let outcome = outcome.await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

/// The directory of a VOLUME is in the root file system, which has the limit.
#[tokio::test(flavor = "multi_thread")]
async fn image_volume_is_a_part_of_the_root_file_system() {
    let s = subject_with_accounts().await;
    let config = config().await;
    let outcome = async {
        let mut spec = s.spec();
        spec.image = "agentbox.local/accounts:volume".to_owned();
        s.run(&spec).await?;
        let pid = boxd_pid(&config.deployment, spec.id.as_str());
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        check(mounts.contains("/.agentbox/output"), || mounts.clone())?;
        check(!mounts.contains(" /data "), || mounts)
    };
    let outcome = outcome.await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_box_leaves_no_disk() {
    let s = subject().await;
    let directory = config().await.state_dir;
    let outcome = async {
        let spec = s.spec();
        s.run(&spec).await?;
        let own = directory.join(spec.id.as_str());
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let disk = own.join("disk");
        let is_mounted = || mounts().contains(&format!(" {} ", disk.display()));
        check(is_mounted(), || "the box has no disk".to_owned())?;
        s.first.remove(&spec.id).await?;
        check(!is_mounted() && !own.exists(), || {
            "the disk is left".to_owned()
        })
    };
    let outcome: Result<(), Violation> = outcome.await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

/// The directory of a running box's snapshot, in which the overlay's upper directory is.
fn snapshot_of(deployment: &str, id: &str) -> PathBuf {
    let pid = boxd_pid(deployment, id);
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let root = mounts.lines().find(|line| line.contains(" / / ")).unwrap();
    let mut options = root.rsplit(' ').next().unwrap().split(',');
    let upper = options.find_map(|option| option.strip_prefix("upperdir="));
    Path::new(upper.unwrap()).parent().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_that_a_killed_driver_left_over_the_snapshot_is_removed_with_the_box() {
    let s = subject().await;
    let config = config().await;
    let outcome = async {
        let spec = s.spec();
        s.run(&spec).await?;
        let id = spec.id.as_str();
        let (disk, snapshot) = (
            config.state_dir.join(id).join("disk"),
            snapshot_of(&config.deployment, id),
        );
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let is_mounted = || mounts().contains(&format!(" {} ", snapshot.display()));
        check(!is_mounted(), || "the disk is left by a start".to_owned())?;
        let none = None::<&str>;
        mount(Some(&disk), &snapshot, none, MsFlags::MS_BIND, none).unwrap();
        check(is_mounted(), || "the control: it is mounted".to_owned())?;
        s.first.remove(&spec.id).await?;
        check(!is_mounted(), || format!("{} is left", snapshot.display()))
    };
    let outcome: Result<(), Violation> = outcome.await;
    s.clean().await.unwrap();
    outcome.unwrap();
}

/// The file system with the disks of a deployment's boxes, which has 128 MiB.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount_at(directory: &Path) -> Self {
        std::fs::create_dir_all(directory).unwrap();
        let size = Some("size=128m");
        mount(
            Some("small"),
            directory,
            Some("tmpfs"),
            MsFlags::empty(),
            size,
        )
        .unwrap();
        Self(directory.to_owned())
    }

    fn available(&self) -> u64 {
        let disk = nix::sys::statvfs::statvfs(&self.0).unwrap();
        disk.blocks_available() * disk.fragment_size()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn largest_box_is_evicted_when_the_reserve_of_the_machines_disk_is_used() {
    const RESERVE_MIB: u64 = 32;
    let config = Config {
        storage_reserve_mib: RESERVE_MIB,
        enforce_storage: Some(true),
        ..another_config().await
    };
    let disk = SmallDisk::mount_at(&config.state_dir);
    let s = subject_of(&config);
    let scenario = async {
        let spec = || {
            let mut spec = s.spec();
            spec.resources.storage = Bytes(100 << 20);
            // The machine's disk is in memory here, which may count as the box's.
            spec.resources.memory = Bytes(512 << 20);
            spec
        };
        let (large, small) = (spec(), spec());
        s.run(&large).await?;
        s.run(&small).await?;
        for (spec, megabytes) in [(&large, 50), (&small, 10), (&large, 40)] {
            let script = format!("dd if=/dev/zero bs=1M count={megabytes} conv=fsync of=/$$");
            // The last write may end with its box.
            let written = exec(&s, spec, &["sh", "-c", &script]).await;
            let is_last = megabytes == 40;
            check(is_last || matches!(written, Ok((_, 0))), || {
                format!("{megabytes} MB: {written:?}")
            })?;
        }
        let end = s.end_of(&large.id).await?;
        check(
            end.reason == ExitReason::Evicted && end.message.contains("disk is full"),
            || format!("{end:?}"),
        )?;
        eventually("the reserve is free again", || async {
            Ok((disk.available() >= RESERVE_MIB << 20).then_some(()))
        })
        .await?;
        let (_, code) = exec(&s, &small, &["touch", "/after"]).await?;
        check(code == 0, || format!("the other box: {code}"))
    };
    let mut changes = s.first.watch().await.unwrap();
    let watching = async { while changes.next().await.is_some() {} };
    let outcome: Result<(), Violation> = tokio::select! {
        outcome = scenario => outcome,
        () = watching => Err(Violation("the watch ended".to_owned())),
    };
    s.clean().await.unwrap();
    outcome.unwrap();
}
