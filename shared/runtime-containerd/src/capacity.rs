//! The resources of the machine, and how much of them boxes have reserved.

use agentbox_contracts::environment::{Enforcement, LimitEnforcement};
use agentbox_contracts::units::{Bytes, MilliCpu};
use agentbox_runtime::{Capacity, RuntimeError};
use k8s_cri::v1::PodSandboxState;

use crate::config::Config;
use crate::context::Context;
use crate::error::io_failure;
use crate::isolation::Isolation;
use crate::labels::{self, Reserved};
use crate::preflight;

impl Context {
    pub async fn capacity(&self) -> Result<Capacity, RuntimeError> {
        let (version, handlers, bandwidth, isolation, sandboxes) = tokio::try_join!(
            self.cri.version(),
            self.runtime_handlers(),
            self.disk_bandwidth(),
            self.isolation(),
            // Of every deployment: they share the machine.
            self.cri.sandboxes(std::collections::HashMap::new()),
        )?;
        let reserved = sandboxes
            .iter()
            .filter(|sandbox| sandbox.state() == PodSandboxState::SandboxReady)
            .filter(|sandbox| sandbox.labels.contains_key(labels::DEPLOYMENT))
            .map(|sandbox| Reserved::read(&sandbox.annotations))
            .fold(Reserved::default(), |sum, one| Reserved {
                cpu: MilliCpu(sum.cpu.0.saturating_add(one.cpu.0)),
                memory: Bytes(sum.memory.0.saturating_add(one.memory.0)),
                storage: Bytes(sum.storage.0.saturating_add(one.storage.0)),
            });
        let cpus = std::thread::available_parallelism()
            .map_err(|error| io_failure("count processors", &error))?;
        let total_cpu = MilliCpu(cpus.get() as u64 * 1_000);
        let meminfo = tokio::fs::read_to_string("/proc/meminfo")
            .await
            .map_err(|error| io_failure("read memory", &error))?;
        let total_memory = memory_total(&meminfo);
        let reserve = self.config.storage_reserve();
        let storage = self
            .storage()
            .map_err(|error| io_failure("read free storage", &error))?;
        Ok(Capacity {
            version: format!(
                "{} {}",
                version.runtime_name,
                upstream(&version.runtime_version)
            ),
            nodes: 1,
            total_cpu,
            total_memory,
            available_cpu: MilliCpu(total_cpu.0.saturating_sub(reserved.cpu.0)),
            available_memory: Bytes(total_memory.0.saturating_sub(reserved.memory.0)),
            // At least 1: 0 means that a cluster does not report it.
            total_storage: Bytes(storage.total().saturating_sub(reserve).max(1)),
            available_storage: Bytes(storage.available.saturating_sub(reserve)),
            labels: preflight::node_labels(&self.config.labels),
            runtime_classes: handlers.into_iter().collect(),
            enforcement: enforcement(&self.config, !bandwidth.is_empty(), isolation),
        })
    }
}

fn enforcement(
    config: &Config,
    bounds_disk_bandwidth: bool,
    isolation: Isolation,
) -> LimitEnforcement {
    let enforced = |is_configured| Enforcement::when(is_configured, Enforcement::Enforced);
    LimitEnforcement {
        storage: if isolation.disks {
            Enforcement::Enforced
        } else {
            Enforcement::Measured
        },
        // Their directories are a part of the root file system, or have no limit.
        image_volumes: match (isolation.image_volumes, isolation.disks) {
            (true, true) => Enforcement::Enforced,
            (true, false) => Enforcement::Measured,
            (false, _) => Enforcement::Absent,
        },
        user_namespaces: enforced(isolation.user_namespaces),
        bandwidth: enforced(config.network_bandwidth.is_some()),
        connections: enforced(config.network_connections.is_some()),
        block_io: enforced(bounds_disk_bandwidth),
    }
}

/// The version without a distribution's suffix, as in `1.6.20~ds1`.
fn upstream(version: &str) -> &str {
    let version = version.strip_prefix('v').unwrap_or(version);
    version.split(['~', '+', '-']).next().unwrap_or(version)
}

fn memory_total(meminfo: &str) -> Bytes {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    Bytes(kib.unwrap_or(0).saturating_mul(1_024))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(bound: &str) -> Config {
        serde_json::from_value(serde_json::json!({
            "socket": "/s", "state_dir": "/d", "boxd": "/b", "subnet": "10.160.0.0/20",
            "bridge": "abx0", "deployment": "local", "dns_servers": [],
            "network_bandwidth": bound, "network_connections": bound,
        }))
        .unwrap()
    }

    #[test]
    fn version_is_reduced_to_the_upstream_version() {
        for (version, expected) in [
            ("1.6.20~ds1", "1.6.20"),
            ("v2.1.4", "2.1.4"),
            ("1.7.2-rc.1", "1.7.2"),
        ] {
            assert_eq!(upstream(version), expected);
        }
    }

    #[test]
    fn limit_that_is_not_configured_is_reported_as_absent() {
        for (bound, bounds_disk_bandwidth, expected) in [
            ("2M", true, Enforcement::Enforced),
            ("none", false, Enforcement::Absent),
        ] {
            let reported = enforcement(&config(bound), bounds_disk_bandwidth, Isolation::default());
            assert_eq!(reported.bandwidth, expected);
            assert_eq!(reported.connections, expected);
            assert_eq!(reported.block_io, expected);
        }
    }

    #[test]
    fn disks_volumes_and_user_namespaces_are_reported_as_they_are_enforced() {
        use Enforcement::{Absent, Enforced, Measured};
        for (disks, image_volumes, user_namespaces, expected) in [
            (true, true, true, [Enforced, Enforced, Enforced]),
            (false, true, false, [Measured, Measured, Absent]),
            (true, false, true, [Enforced, Absent, Enforced]),
        ] {
            let isolation = Isolation {
                user_namespaces,
                disks,
                image_volumes,
            };
            let reported = enforcement(&config("none"), false, isolation);
            let found = [
                reported.storage,
                reported.image_volumes,
                reported.user_namespaces,
            ];
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn total_memory_is_read_in_bytes() {
        assert_eq!(
            memory_total("MemTotal:       16 kB\nMemFree: 1 kB\n"),
            Bytes(16_384)
        );
        assert_eq!(memory_total(""), Bytes(0));
    }
}
