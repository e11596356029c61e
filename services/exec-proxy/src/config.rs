//! exec-proxy's configuration.

use std::path::PathBuf;
use std::time::Duration;

use agentbox_box_protocol::secret::BoxSecret;
use agentbox_service::CommonConfig;

/// The name of this service on the bus.
pub const SERVICE: &str = "exec-proxy";

#[derive(clap::Parser)]
#[command(version, about = "AgentBox exec-proxy: user input and output")]
pub struct Config {
    #[command(flatten)]
    pub common: CommonConfig,

    /// The secret from which box tokens are derived: 32 bytes in hex.
    #[arg(long, env = "AGENTBOX_BOX_SECRET", hide_env_values = true, hide = true)]
    pub box_secret: BoxSecret,

    /// The path of the clusters file (JSON).
    #[arg(long, env = "AGENTBOX_CLUSTERS")]
    pub clusters: PathBuf,

    /// The only cluster to serve. Default: every reachable cluster of the file.
    #[arg(long, env = "AGENTBOX_CLUSTER")]
    pub cluster: Option<String>,

    /// The limit for sessions of one process per cluster; more are refused. One owner may have as
    /// many as are still free.
    #[arg(long, env = "AGENTBOX_MAX_SESSIONS", default_value_t = 4096)]
    pub max_sessions: usize,

    /// The limit for sessions into one box; more are refused. Transfers of files, followers of output
    /// and connections to ports are sessions, as commands are; a box runs at most 256 commands.
    #[arg(long, env = "AGENTBOX_MAX_SESSIONS_PER_BOX", default_value_t = 256)]
    pub max_sessions_per_box: usize,

    /// The limit for kept connections to boxes, busy and idle.
    #[arg(long, env = "AGENTBOX_MAX_BOX_CONNECTIONS", default_value_t = 8192)]
    pub max_box_connections: usize,

    /// The seconds after which an unused connection to a box is closed.
    #[arg(long, env = "AGENTBOX_BOX_IDLE", default_value_t = 120)]
    pub box_idle_s: u64,

    /// The bytes of output of executions that are kept of one ended environment: the newest, at most
    /// 16 MiB. An exec-proxy needs memory for eight times as much, for each cluster.
    #[arg(long, env = "AGENTBOX_MAX_ARCHIVED_OUTPUT", default_value_t = 8 * 1024 * 1024,
          value_parser = clap::value_parser!(u64).range(0..=16 * 1024 * 1024))]
    pub max_archived_output: u64,

    /// The seconds that open sessions may continue after shutdown has begun. Must be less
    /// than the grace period of the whole shutdown.
    #[arg(long, env = "AGENTBOX_SESSION_GRACE", default_value_t = 10)]
    pub session_grace_s: u64,
}

impl AsRef<CommonConfig> for Config {
    fn as_ref(&self) -> &CommonConfig {
        &self.common
    }
}

impl Config {
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            sessions: self.max_sessions,
            sessions_per_box: self.max_sessions_per_box,
            box_connections: self.max_box_connections,
            box_idle: Duration::from_secs(self.box_idle_s),
            archived_output: self.max_archived_output,
            session_grace: Duration::from_secs(self.session_grace_s),
        }
    }
}

/// The limits of one process.
#[derive(Clone, Debug)]
pub struct Limits {
    pub sessions: usize,
    pub sessions_per_box: usize,
    pub box_connections: usize,
    /// How long an unused connection is kept.
    pub box_idle: Duration,
    /// The bytes of output of executions that are kept of one ended environment.
    pub archived_output: u64,
    /// How long open sessions may continue after shutdown has begun.
    pub session_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 4096,
            sessions_per_box: 256,
            box_connections: 8192,
            box_idle: Duration::from_secs(120),
            archived_output: 8 * 1024 * 1024,
            session_grace: Duration::from_secs(10),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Config;

    #[test]
    fn configuration_reference_matches_code() {
        agentbox_service::configuration::check("exec-proxy", &Config::command()).unwrap();
    }
}
