//! The bound of a box's disk bandwidth: `io.max` of cgroup v2, for the disk with the writable layers.
//!
//! * I1. A bound that cannot be enforced (cgroup v1, or a file system without a disk of its own, such
//!   as btrfs) does not keep boxes from starting. `/health` reports it as absent.

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
pub struct DiskLimit {
    /// Its numbers, as `8:0`.
    device: String,
    bytes_per_second: u64,
}

impl DiskLimit {
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
    /// The bound of each box; `None` if the operator set none, or it cannot be enforced.
    pub async fn disk_limit(&self) -> Result<Option<DiskLimit>, CriError> {
        let Some(bytes_per_second) = self.config.disk_bandwidth else {
            return Ok(None);
        };
        if !cgroup::can_limit_disk() {
            return Ok(None);
        }
        let directory = self.cri.storage_directory().await?;
        let device = directory.and_then(|directory| {
            let device = fs::metadata(directory).ok()?.st_dev();
            disk_of(Path::new(BLOCK_DEVICES), major(device), minor(device))
        });
        Ok(device.map(|device| DiskLimit {
            device,
            bytes_per_second,
        }))
    }
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
    fn limit_bounds_reads_and_writes() {
        let limit = DiskLimit {
            device: "8:0".to_owned(),
            bytes_per_second: 50_000_000,
        };
        assert_eq!(limit.line(), "8:0 rbps=50000000 wbps=50000000");
    }
}
