//! The configuration that every service has.

use std::net::SocketAddr;
use std::time::Duration;

/// Flags and variables that all services share. Pass secrets by variable only: flags are
/// visible in the process list.
#[derive(Clone, clap::Args)]
pub struct CommonConfig {
    /// The URL of NATS.
    #[arg(
        long,
        env = "AGENTBOX_NATS_URL",
        default_value = "nats://127.0.0.1:4222"
    )]
    pub nats_url: String,

    /// The NATS user of this service. Empty: no login.
    #[arg(long, env = "AGENTBOX_NATS_USER", default_value = "")]
    pub nats_user: String,

    /// The password of that user.
    #[arg(
        long,
        env = "AGENTBOX_NATS_PASSWORD",
        default_value = "",
        hide_env_values = true,
        hide = true
    )]
    pub nats_password: String,

    /// The address of the listener for `/metrics`, `/health/live` and `/health/ready`. It must
    /// not be reachable by users.
    #[arg(long, env = "AGENTBOX_ADMIN_LISTEN", default_value = "127.0.0.1:9090")]
    pub admin_listen: SocketAddr,

    /// The log filter, in `tracing` syntax: `info`, `agentbox_scheduler=debug,info`.
    #[arg(long, env = "AGENTBOX_LOG", default_value = "info")]
    pub log: String,

    /// The name of this replica in logs and traces, such as `auth-0`.
    #[arg(long, env = "AGENTBOX_REPLICA", default_value = "")]
    pub replica: String,

    /// How long the service keeps working after the order to stop, in seconds. It is not ready
    /// then, so that load balancers notice before the listeners close.
    #[arg(long, env = "AGENTBOX_SHUTDOWN_DELAY", default_value_t = 0)]
    pub shutdown_delay_s: u64,

    /// How long the stop may take after that delay, in seconds.
    #[arg(long, env = "AGENTBOX_SHUTDOWN_GRACE", default_value_t = 20)]
    pub shutdown_grace_s: u64,
}

impl CommonConfig {
    #[must_use]
    pub fn shutdown_delay(&self) -> Duration {
        Duration::from_secs(self.shutdown_delay_s)
    }

    #[must_use]
    pub fn shutdown_grace(&self) -> Duration {
        Duration::from_secs(self.shutdown_grace_s)
    }
}
