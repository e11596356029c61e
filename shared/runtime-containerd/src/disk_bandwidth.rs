//! The bound of a box's disk bandwidth: `io.max` of cgroup v2, for the disks with the writable layers and
//! with the boxes' own disks ([`crate::disk`]). The kernel counts what a loop device writes as the box's.
//!
//! * I1. A bound that cannot be enforced (cgroup v1, or a file system without a disk of its own, such
//!   as btrfs) does not keep boxes from starting. `/health` reports it as absent. A bound that the kernel
//!   refuses is logged at each box.

use std::collections::BTreeSet;
use std::fs;
use std::os::linux::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::stat::{major, minor};

use crate::cgroup;
use crate::context::Context;
use crate::cri::CriError;

const BLOCK_DEVICES: &str = "/sys/dev/block";

/// The bound of one disk, in each direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskBandwidth {
    /// Its numbers, as `8:0`.
    pub device: String,
    pub bytes_per_second: u64,
}

impl DiskBandwidth {
    /// The line of `io.max`.
    pub fn line(&self) -> String {
        let Self {
            device,
            bytes_per_second: bytes,
        } = self;
        format!("{device} rbps={bytes} wbps={bytes}")
    }
}

impl Context {
    /// The bounds of each box, one for each disk; empty if the operator set none, or they cannot be
    /// enforced.
    pub async fn disk_bandwidth(&self) -> Result<Vec<DiskBandwidth>, CriError> {
        let Some(bytes_per_second) = self.config.disk_bandwidth else {
            return Ok(Vec::new());
        };
        if !cgroup::can_bound_disk_bandwidth() {
            return Ok(Vec::new());
        }
        let Some(layers) = self.cri.storage_directory().await? else {
            return Ok(Vec::new());
        };
        let devices = [Path::new(&layers), self.config.state_dir.as_path()]
            .into_iter()
            .map(disk_with)
            .collect::<Option<BTreeSet<String>>>();
        let bound = |device| DiskBandwidth {
            device,
            bytes_per_second,
        };
        Ok(devices.into_iter().flatten().map(bound).collect())
    }
}

/// The numbers of the disk with a directory.
fn disk_with(directory: &Path) -> Option<String> {
    let device = fs::metadata(directory).ok()?.st_dev();
    disk_of(Path::new(BLOCK_DEVICES), major(device), minor(device))
}

/// The numbers of the disk that a device is, or is a partition of: the kernel bounds whole disks.
fn disk_of(block_devices: &Path, major: u64, minor: u64) -> Option<String> {
    let device = fs::canonicalize(block_devices.join(format!("{major}:{minor}"))).ok()?;
    let disk = if device.join("partition").exists() {
        device.parent()?
    } else {
        device.as_path()
    };
    let numbers = fs::read_to_string(disk.join("dev")).ok()?;
    Some(numbers.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_is_replaced_by_its_disk_and_a_file_system_without_one_has_none() {
        let sys = tempfile::tempdir().unwrap();
        let (disk, partition) = (sys.path().join("sda"), sys.path().join("sda/sda1"));
        fs::create_dir_all(&partition).unwrap();
        fs::write(disk.join("dev"), "8:0\n").unwrap();
        fs::write(partition.join("dev"), "8:1\n").unwrap();
        fs::write(partition.join("partition"), "1\n").unwrap();
        for (numbers, device) in [("8:0", &disk), ("8:1", &partition)] {
            std::os::unix::fs::symlink(device, sys.path().join(numbers)).unwrap();
        }
        assert_eq!(disk_of(sys.path(), 8, 0).as_deref(), Some("8:0"));
        assert_eq!(disk_of(sys.path(), 8, 1).as_deref(), Some("8:0"));
        assert_eq!(disk_of(sys.path(), 0, 42), None);
    }

    #[test]
    fn bound_is_of_reads_and_of_writes() {
        let bound = DiskBandwidth {
            device: "8:0".to_owned(),
            bytes_per_second: 50_000_000,
        };
        assert_eq!(bound.line(), "8:0 rbps=50000000 wbps=50000000");
    }
}
