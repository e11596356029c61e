//! The configuration of webhooks. Secrets are read from the environment only.

use std::time::Duration;

use agentbox_service::CommonConfig;
use ipnet::IpNet;

use crate::delivery::retry::Retries;

#[derive(Clone, clap::Parser)]
#[command(
    name = "agentbox-webhooks",
    version,
    about = "Sends events of environments to URLs"
)]
pub struct Config {
    #[command(flatten)]
    pub common: CommonConfig,

    /// Postgres, as a URL. Webhooks uses only schema `webhooks`.
    /// `?sslmode=verify-full&sslrootcert=FILE` encrypts the connection and verifies the server.
    #[arg(long, env = "AGENTBOX_DATABASE_URL", hide_env_values = true)]
    pub database_url: String,

    /// Connections to Postgres that one replica holds.
    #[arg(long, env = "AGENTBOX_DATABASE_CONNECTIONS", default_value_t = 4)]
    pub database_connections: u32,

    /// 64 hex digits, the same on every replica. The stored keys of signatures are unreadable under
    /// another one.
    #[arg(
        long,
        env = "AGENTBOX_WEBHOOKS_SECRET",
        hide_env_values = true,
        hide = true
    )]
    pub webhooks_secret: String,

    /// Networks that webhooks may reach although they are not public, also without TLS, separated by
    /// commas: the receivers of tests, or of the operator's own network. Default: none.
    #[arg(long, env = "AGENTBOX_WEBHOOK_ALLOWED_NETWORKS", value_delimiter = ',')]
    pub allowed_networks: Vec<IpNet>,

    /// How long one attempt may take, in seconds, 1 to 60.
    #[arg(long, env = "AGENTBOX_WEBHOOK_TIMEOUT", default_value_t = 15,
          value_parser = clap::value_parser!(u32).range(1..=60))]
    pub attempt_timeout_s: u32,

    /// The attempts of one delivery before it is dead, 1 to 20.
    #[arg(long, env = "AGENTBOX_WEBHOOK_ATTEMPTS", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=20))]
    pub attempts: u32,

    /// The wait before the second attempt, in milliseconds. Each next wait is three times as long, at
    /// most 6 hours.
    #[arg(long, env = "AGENTBOX_WEBHOOK_FIRST_RETRY", default_value_t = 5_000)]
    pub first_retry_ms: u32,

    /// Deliveries of one webhook that may wait. More events become dead deliveries at once.
    #[arg(long, env = "AGENTBOX_WEBHOOK_MAX_PENDING", default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub max_pending: u32,

    /// How long an ended delivery is kept, in seconds, at least 8 days: longer than events are kept, so
    /// that no event is delivered twice after a loss of data of NATS.
    #[arg(long, env = "AGENTBOX_WEBHOOK_RETENTION", default_value_t = 8 * 86_400,
          value_parser = clap::value_parser!(u32).range(8 * 86_400..))]
    pub retention_s: u32,

    /// How often old deliveries, and webhooks of deleted users, are removed, in seconds, at least 1.
    #[arg(long, env = "AGENTBOX_SWEEP_INTERVAL", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub sweep_interval_s: u32,
}

impl Config {
    #[must_use]
    pub fn attempt_timeout(&self) -> Duration {
        Duration::from_secs(self.attempt_timeout_s.into())
    }

    #[must_use]
    pub fn sweep_interval(&self) -> Duration {
        Duration::from_secs(self.sweep_interval_s.into())
    }

    #[must_use]
    pub fn retention(&self) -> Duration {
        Duration::from_secs(self.retention_s.into())
    }

    pub(crate) fn retries(&self) -> Retries {
        Retries {
            attempts: self.attempts,
            first: Duration::from_millis(self.first_retry_ms.into()),
        }
    }
}

impl AsRef<CommonConfig> for Config {
    fn as_ref(&self) -> &CommonConfig {
        &self.common
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Config;

    #[test]
    fn configuration_reference_matches_code() {
        agentbox_service::configuration::check("webhooks", &Config::command()).unwrap();
    }
}
