//! Decides which boxes have a user namespace and a disk of their own, and describes what this machine
//! and its containerd lack for that.
//!
//! * I1. A requirement that is missing makes a box weaker only if the operator has not asked for it: with
//!   `user_namespaces` or `enforce_storage` set to `true` the box does not start.

use std::path::Path;

use agentbox_runtime::{BoxSpec, RuntimeError};

use crate::context::Context;
use crate::cri::CriError;
use crate::error::io_failure;
use crate::file_system::FileSystemUse;
use crate::user_range::{self, UserRange};
use crate::{disk, sandbox};

/// The first Linux whose overlay can have lower layers with mapped ids.
const MIN_KERNEL: (u32, u32) = (5, 19);

/// The parts of the isolation that depend on this machine and its containerd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    pub user_namespaces: bool,
    /// A disk for each box.
    pub disks: bool,
    /// Whether the directory of an image's `VOLUME` is a part of the root file system.
    pub image_volumes: bool,
}

impl Context {
    /// Whether the box gets a user namespace.
    ///
    /// # Errors
    /// When containerd does not answer, or `user_namespaces` is `true` and cannot be had.
    pub async fn has_user_namespace(&self, spec: &BoxSpec) -> Result<bool, RuntimeError> {
        if self.config.user_namespaces == Some(false) || !sandbox::shares_kernel(&self.config, spec)
        {
            return Ok(false);
        }
        let handler = sandbox::runtime_handler(&self.config, spec);
        match self.missing_for_user_namespaces(&handler).await? {
            Some(missing) if self.config.user_namespaces == Some(true) => {
                Err(RuntimeError::Cluster {
                    operation: "user namespace",
                    message: missing,
                })
            }
            missing => Ok(missing.is_none()),
        }
    }

    /// The ids of the box's user namespace; `None` if it has none of its own.
    ///
    /// # Errors
    /// As [`Self::has_user_namespace`], and when all ids are in use.
    pub async fn take_user_range(&self, spec: &BoxSpec) -> Result<Option<UserRange>, RuntimeError> {
        if !self.has_user_namespace(spec).await? {
            return Ok(None);
        }
        let range = user_range::take(&self.states.directory(&spec.id))
            .map_err(|error| io_failure("user ids of a box", &error))?;
        Ok(Some(range))
    }

    async fn missing_for_user_namespaces(&self, handler: &str) -> Result<Option<String>, CriError> {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        if !is_at_least(&release, MIN_KERNEL) {
            return Ok(Some("Linux is older than 5.19".to_owned()));
        }
        // runc reports what it was built with, and not what this kernel was.
        if !Path::new("/proc/self/ns/user").exists() {
            return Ok(Some("Linux was built without user namespaces".to_owned()));
        }
        let most = std::fs::read_to_string("/proc/sys/user/max_user_namespaces");
        if most.is_ok_and(|most| most.trim() == "0") {
            return Ok(Some("user.max_user_namespaces is 0".to_owned()));
        }
        let is_supported = self.cri.supports_user_namespaces(handler).await?;
        let missing = "containerd is older than 2.0, or its runtime than runc 1.2";
        Ok((!is_supported).then(|| missing.to_owned()))
    }

    /// Whether the box gets a disk. A box with a kernel of its own gets none: gVisor keeps written files
    /// in memory that it maps from a file, and a full disk would end its kernel.
    ///
    /// # Errors
    /// When the machine's disk has less free space than its reserve, or `enforce_storage` is `true` and
    /// the machine has no disks.
    pub fn has_disk(&self, spec: &BoxSpec) -> Result<bool, RuntimeError> {
        let storage = self
            .storage()
            .map_err(|error| io_failure("read free storage", &error))?;
        if storage.available < self.config.storage_reserve() {
            return Err(RuntimeError::Cluster {
                operation: "storage",
                message: "the machine's disk is full: its free space is below the reserve"
                    .to_owned(),
            });
        }
        if self.config.enforce_storage == Some(false) || !sandbox::shares_kernel(&self.config, spec)
        {
            return Ok(false);
        }
        match disk::missing_requirement() {
            Some(missing) if self.config.enforce_storage == Some(true) => {
                Err(RuntimeError::Cluster {
                    operation: "storage limit",
                    message: missing,
                })
            }
            missing => Ok(missing.is_none()),
        }
    }

    /// The use of the file system with the boxes' disks.
    pub fn storage(&self) -> std::io::Result<FileSystemUse> {
        FileSystemUse::of(&self.config.state_dir)
    }

    /// What boxes of the default runtime class have, for `/health`.
    pub async fn isolation(&self) -> Result<Isolation, CriError> {
        let class = self.config.default_runtime_class.as_deref();
        let shares_kernel = sandbox::is_runtime_of_this_kernel(class);
        let may_have = |setting: Option<bool>| shares_kernel && setting != Some(false);
        let handler = class.unwrap_or_default();
        let user_namespaces = may_have(self.config.user_namespaces)
            && self.missing_for_user_namespaces(handler).await?.is_none();
        let disks = may_have(self.config.enforce_storage) && disk::missing_requirement().is_none();
        Ok(Isolation {
            user_namespaces,
            disks,
            image_volumes: ignores_image_volumes(&self.cri.configuration().await?),
        })
    }
}

/// Whether containerd's configuration, in JSON, lets the directory of a VOLUME be a part of the root file
/// system.
fn ignores_image_volumes(configuration: &str) -> bool {
    let configuration: serde_json::Value = serde_json::from_str(configuration).unwrap_or_default();
    configuration["ignoreImageDefinedVolumes"] == true
}

/// Compares the first two numbers of a kernel's release.
fn is_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse::<u32>().ok());
    match (next(), next()) {
        (Some(major), Some(minor)) => (major, minor) >= wanted,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_volumes_are_ignored_only_if_containerd_says_so() {
        for (configuration, is_ignored) in [
            (
                r#"{"ignoreImageDefinedVolumes":true,"containerd":{}}"#,
                true,
            ),
            (r#"{"ignoreImageDefinedVolumes":false}"#, false),
            ("{}", false),
            ("", false),
        ] {
            assert_eq!(ignores_image_volumes(configuration), is_ignored);
        }
    }

    #[test]
    fn kernel_releases_are_compared_by_number() {
        for (release, is_enough) in [
            ("5.19.0-1-amd64\n", true),
            ("6.1.0", true),
            ("10.0", true),
            ("5.15.167.4-microsoft-standard-WSL2", false),
            ("4.19.0", false),
            ("unknown", false),
            ("", false),
        ] {
            assert_eq!(is_at_least(release, MIN_KERNEL), is_enough, "{release}");
        }
    }
}
