//! The scheduler's configuration.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use agentbox_box_protocol::secret::BoxSecret;
use agentbox_contracts::units::{Bytes, MilliCpu, QuantityError};
use agentbox_service::CommonConfig;

use crate::environment::quota::Quota;
use crate::environment::spec::BoxDefaults;

#[derive(clap::Parser)]
#[command(version, about = "AgentBox scheduler: the life of environments")]
pub struct Config {
    #[command(flatten)]
    pub common: CommonConfig,

    /// Postgres, as the owner of the schema `scheduler`. `?sslmode=verify-full&sslrootcert=FILE` encrypts
    /// the connection and verifies the server.
    #[arg(
        long,
        env = "AGENTBOX_DATABASE_URL",
        hide_env_values = true,
        hide = true
    )]
    pub database_url: String,

    /// Connections to Postgres that one replica holds, at least 4.
    #[arg(long, env = "AGENTBOX_DATABASE_CONNECTIONS", default_value_t = 16)]
    pub database_connections: u32,

    /// The secret under which box tokens are made, 32 bytes in hex.
    #[arg(long, env = "AGENTBOX_BOX_SECRET", hide_env_values = true, hide = true)]
    pub box_secret: BoxSecret,

    /// 64 hex digits, the same on every replica: a replica with another one does not start. The
    /// variables of environments, and users' logins at registries, are stored encrypted under it.
    #[arg(
        long,
        env = "AGENTBOX_SCHEDULER_SECRET",
        hide_env_values = true,
        hide = true
    )]
    pub scheduler_secret: String,

    /// The clusters file, JSON.
    #[arg(long, env = "AGENTBOX_CLUSTERS")]
    pub clusters: PathBuf,

    /// Environments that one user may have at a time; 0: no limit.
    #[arg(long, env = "AGENTBOX_QUOTA_ENVIRONMENTS", default_value_t = 100)]
    pub quota_environments: u64,

    /// CPU of one user's environments together, a Kubernetes quantity; 0: no limit.
    #[arg(long, env = "AGENTBOX_QUOTA_CPU", default_value = "32", value_parser = limit::<MilliCpu>)]
    pub quota_cpu: Limit<MilliCpu>,

    /// Memory of one user's environments together, a Kubernetes quantity; 0: no limit.
    #[arg(long, env = "AGENTBOX_QUOTA_MEMORY", default_value = "64Gi", value_parser = limit::<Bytes>)]
    pub quota_memory: Limit<Bytes>,

    /// Storage of one user's environments together, a Kubernetes quantity; 0: no limit.
    #[arg(long, env = "AGENTBOX_QUOTA_STORAGE", default_value = "100Gi", value_parser = limit::<Bytes>)]
    pub quota_storage: Limit<Bytes>,

    /// Storage of one environment, a Kubernetes quantity; 0: no limit. CPU and memory of one
    /// environment are limited by the largest cluster.
    #[arg(long, env = "AGENTBOX_MAX_STORAGE", default_value = "100Gi", value_parser = limit::<Bytes>)]
    pub max_storage: Limit<Bytes>,

    /// The most processes and threads of one box.
    #[arg(long, env = "AGENTBOX_BOX_PIDS", default_value_t = 512)]
    pub box_pids: u32,

    /// Seconds that an environment may take until it is running; after that it fails.
    #[arg(long, env = "AGENTBOX_START_TIMEOUT", default_value_t = 300)]
    pub start_timeout_s: u64,

    /// Seconds between SIGTERM and SIGKILL when a box is stopped.
    #[arg(long, env = "AGENTBOX_STOP_GRACE", default_value_t = 10)]
    pub stop_grace_s: u64,

    /// Seconds between two comparisons of a cluster's boxes with the database, at least 1.
    #[arg(long, env = "AGENTBOX_RESYNC_INTERVAL", default_value_t = 30)]
    pub resync_interval_s: u64,

    /// Days that ended environments stay listed.
    #[arg(long, env = "AGENTBOX_RETENTION_DAYS", default_value_t = 7)]
    pub retention_days: u32,

    /// The pools file, JSON: the warm pools of the configuration. Default: there are none, except those
    /// that administrators define.
    #[arg(long, env = "AGENTBOX_POOLS")]
    pub pools: Option<PathBuf>,

    /// Seconds after which a ready box of a pool is replaced by a new one.
    #[arg(long, env = "AGENTBOX_POOL_BOX_MAX_AGE", default_value_t = 3600)]
    pub pool_box_max_age_s: u64,

    /// Environments of each cluster that one replica reconciles at a time. Most of them wait
    /// for their cluster, some for a slow image, and must not delay the others.
    #[arg(long, env = "AGENTBOX_MAX_RECONCILES", default_value_t = 128)]
    pub max_reconciles: usize,
}

impl AsRef<CommonConfig> for Config {
    fn as_ref(&self) -> &CommonConfig {
        &self.common
    }
}

/// A limit from the configuration; `None`: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit<T>(pub Option<T>);

fn limit<T: FromStr<Err = QuantityError>>(text: &str) -> Result<Limit<T>, QuantityError> {
    if text.trim() == "0" {
        Ok(Limit(None))
    } else {
        text.parse().map(|value| Limit(Some(value)))
    }
}

impl Config {
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            quota: Quota {
                environments: (self.quota_environments > 0).then_some(self.quota_environments),
                cpu: self.quota_cpu.0,
                memory: self.quota_memory.0,
                storage: self.quota_storage.0,
            },
            max_storage: self.max_storage.0,
            boxes: BoxDefaults {
                pids: self.box_pids,
                secret: self.box_secret.clone(),
            },
            start_timeout: Duration::from_secs(self.start_timeout_s),
            stop_grace: Duration::from_secs(self.stop_grace_s),
            resync_interval: Duration::from_secs(self.resync_interval_s.max(1)),
            retention: Duration::from_secs(u64::from(self.retention_days) * 24 * 3600),
            pool_box_max_age: Duration::from_secs(self.pool_box_max_age_s),
            max_reconciles: self.max_reconciles.max(1),
        }
    }
}

/// The configuration in the types that the service uses.
#[derive(Clone, Debug)]
pub struct Settings {
    pub quota: Quota,
    /// The largest storage of one environment. `None`: no limit.
    pub max_storage: Option<Bytes>,
    pub boxes: BoxDefaults,
    pub start_timeout: Duration,
    pub stop_grace: Duration,
    pub resync_interval: Duration,
    pub retention: Duration,
    /// The age at which a ready box of a pool is replaced.
    pub pool_box_max_age: Duration,
    pub max_reconciles: usize,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn configuration_reference_matches_code() {
        agentbox_service::configuration::check("scheduler", &Config::command()).unwrap();
    }

    #[test]
    fn limit_of_zero_is_none_and_invalid_text_is_refused() {
        assert_eq!(limit::<MilliCpu>("0").unwrap(), Limit(None));
        assert_eq!(
            limit::<MilliCpu>("1500m").unwrap(),
            Limit(Some(MilliCpu(1_500)))
        );
        assert!(limit::<Bytes>("lots").is_err());
    }
}
