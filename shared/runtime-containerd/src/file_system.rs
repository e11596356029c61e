//! The use of a file system of this machine.

use std::io;
use std::path::Path;

/// The use of a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSystemUse {
    pub used: u64,
    /// What can still be written.
    pub available: u64,
}

impl FileSystemUse {
    /// The use of the file system with a path.
    ///
    /// # Errors
    /// As `statvfs(3)`.
    pub fn of(path: &Path) -> io::Result<Self> {
        let read = nix::sys::statvfs::statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(read.fragment_size());
        Ok(Self {
            used: bytes(read.blocks().saturating_sub(read.blocks_free())),
            available: bytes(read.blocks_available()),
        })
    }

    /// Without what only the machine's root may write.
    pub fn total(self) -> u64 {
        self.used.saturating_add(self.available)
    }

    /// As `df` computes it, rounded up.
    pub fn percent(self) -> u64 {
        let total = u128::from(self.total().max(1));
        let percent = (u128::from(self.used) * 100).div_ceil(total);
        u64::try_from(percent).unwrap_or(100)
    }
}
