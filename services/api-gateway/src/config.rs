//! What the gateway is configured with. Durations are in seconds.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_service::CommonConfig;

use crate::edge::client_address::Cidr;

#[derive(Clone, clap::Parser)]
#[command(
    name = "agentbox-api-gateway",
    about = "The public API of AgentBox",
    version
)]
pub struct Config {
    #[command(flatten)]
    pub common: CommonConfig,

    /// Where the API is served; several addresses separated by commas.
    #[arg(
        long,
        env = "AGENTBOX_LISTEN",
        default_value = "127.0.0.1:8080",
        value_delimiter = ','
    )]
    pub listen: Vec<SocketAddr>,

    /// Share the first address with other replicas on this machine (SO_REUSEPORT).
    #[arg(long, env = "AGENTBOX_LISTEN_SHARED", default_value_t = false, action = clap::ArgAction::Set)]
    pub listen_shared: bool,

    /// Proxies whose `X-Forwarded-For` is believed: CIDRs separated by commas. None: the
    /// header is ignored.
    #[arg(long, env = "AGENTBOX_TRUSTED_PROXIES", value_delimiter = ',')]
    pub trusted_proxies: Vec<Cidr>,

    /// Requests a second that one client address may send to this replica, whatever they are.
    #[arg(long, env = "AGENTBOX_FLOOD_PER_SECOND", default_value_t = 1_000)]
    pub flood_per_second: u32,

    /// How many of them at once.
    #[arg(long, env = "AGENTBOX_FLOOD_BURST", default_value_t = 2_000)]
    pub flood_burst: u32,

    /// Requests a minute to log in, per client address and per username.
    #[arg(long, env = "AGENTBOX_RATE_LIMIT_AUTH", default_value_t = 10)]
    pub rate_limit_auth: u64,

    /// Environments created a minute, per user.
    #[arg(long, env = "AGENTBOX_RATE_LIMIT_CREATE", default_value_t = 20)]
    pub rate_limit_create: u64,

    /// Commands a minute, per user.
    #[arg(long, env = "AGENTBOX_RATE_LIMIT_EXEC", default_value_t = 100)]
    pub rate_limit_exec: u64,

    /// Other requests a minute, per user.
    #[arg(long, env = "AGENTBOX_RATE_LIMIT_OTHER", default_value_t = 200)]
    pub rate_limit_other: u64,

    /// The largest timeout of one command.
    #[arg(long, env = "AGENTBOX_MAX_EXEC_TIMEOUT", default_value_t = 3600)]
    pub max_exec_timeout_s: u64,

    /// Bytes kept of each of a command's stdout and stderr.
    #[arg(long, env = "AGENTBOX_MAX_EXEC_OUTPUT", default_value_t = 10 * 1024 * 1024)]
    pub max_exec_output_bytes: u64,

    /// How long a request's head may take to arrive, and a connection may stay idle.
    #[arg(long, env = "AGENTBOX_HEADER_TIMEOUT", default_value_t = 20)]
    pub header_timeout_s: u64,

    /// How long a request's body may take to arrive.
    #[arg(long, env = "AGENTBOX_BODY_TIMEOUT", default_value_t = 30)]
    pub body_timeout_s: u64,

    /// How often the client of a terminal is asked whether it is there. One that was not
    /// heard between two questions is gone.
    #[arg(long, env = "AGENTBOX_PING_INTERVAL", default_value_t = 20,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub ping_interval_s: u64,

    /// Connections held at once.
    #[arg(long, env = "AGENTBOX_MAX_CONNECTIONS", default_value_t = 10_000)]
    pub max_connections: usize,
}

impl Config {
    pub(crate) const fn header_timeout(&self) -> Duration {
        Duration::from_secs(self.header_timeout_s)
    }

    pub(crate) const fn body_timeout(&self) -> Duration {
        Duration::from_secs(self.body_timeout_s)
    }

    pub(crate) const fn ping_interval(&self) -> Duration {
        Duration::from_secs(self.ping_interval_s)
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
        agentbox_service::configuration::check("api-gateway", &Config::command()).unwrap();
    }
}
