//! What exec-proxy is configured with.

use std::path::PathBuf;
use std::time::Duration;

use agentbox_box_protocol::secret::BoxSecret;
use agentbox_service::CommonConfig;

#[derive(clap::Parser)]
#[command(version, about = "AgentBox exec-proxy: user input and output")]
pub struct Config {
    #[command(flatten)]
    pub common: CommonConfig,

    /// The secret under which box tokens are made, 32 bytes in hex.
    #[arg(long, env = "AGENTBOX_BOX_SECRET", hide_env_values = true, hide = true)]
    pub box_secret: BoxSecret,

    /// The clusters file, JSON.
    #[arg(long, env = "AGENTBOX_CLUSTERS")]
    pub clusters: PathBuf,

    /// Serve this cluster only. Default: every cluster of the file that is reachable.
    #[arg(long, env = "AGENTBOX_CLUSTER")]
    pub cluster: Option<String>,

    /// Sessions that one process carries for each cluster; more are refused.
    #[arg(long, env = "AGENTBOX_MAX_SESSIONS", default_value_t = 4096)]
    pub max_sessions: usize,

    /// Sessions into one box; more are refused.
    #[arg(long, env = "AGENTBOX_MAX_SESSIONS_PER_BOX", default_value_t = 64)]
    pub max_sessions_per_box: usize,

    /// Connections to boxes that are kept, busy and idle.
    #[arg(long, env = "AGENTBOX_MAX_BOX_CONNECTIONS", default_value_t = 8192)]
    pub max_box_connections: usize,

    /// After so many seconds without a call a connection to a box is closed.
    #[arg(long, env = "AGENTBOX_BOX_IDLE", default_value_t = 120)]
    pub box_idle_s: u64,

    /// How many seconds sessions may go on after the service was told to stop. Must be
    /// less than the grace of the whole shutdown.
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
            session_grace: Duration::from_secs(self.session_grace_s),
        }
    }
}

/// The bounds of one process.
#[derive(Clone, Debug)]
pub struct Limits {
    pub sessions: usize,
    pub sessions_per_box: usize,
    pub box_connections: usize,
    /// A connection without a call for so long is closed.
    pub box_idle: Duration,
    /// How long sessions may go on after the shutdown began.
    pub session_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 4096,
            sessions_per_box: 64,
            box_connections: 8192,
            box_idle: Duration::from_secs(120),
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
