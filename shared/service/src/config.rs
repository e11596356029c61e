//! What every service is configured with.

use std::net::SocketAddr;
use std::time::Duration;

/// Flags and environment that all services share. Secrets come by environment only, so
/// that they do not show in a process list.
#[derive(Clone, clap::Args)]
pub struct CommonConfig {
    /// Where NATS listens.
    #[arg(
        long,
        env = "AGENTBOX_NATS_URL",
        default_value = "nats://127.0.0.1:4222"
    )]
    pub nats_url: String,

    /// This service's NATS user.
    #[arg(long, env = "AGENTBOX_NATS_USER", default_value = "")]
    pub nats_user: String,

    #[arg(
        long,
        env = "AGENTBOX_NATS_PASSWORD",
        default_value = "",
        hide_env_values = true,
        hide = true
    )]
    pub nats_password: String,

    /// Where `/metrics`, `/health/live` and `/health/ready` are served. Not for the public.
    #[arg(long, env = "AGENTBOX_ADMIN_LISTEN", default_value = "127.0.0.1:9090")]
    pub admin_listen: SocketAddr,

    /// What is logged, as a `tracing` filter: `info`, `agentbox_scheduler=debug,info`.
    #[arg(long, env = "AGENTBOX_LOG", default_value = "info")]
    pub log: String,

    /// This replica's name in logs and traces, such as `auth-0`.
    #[arg(long, env = "AGENTBOX_REPLICA", default_value = "")]
    pub replica: String,

    /// How long to go on working after the order to stop, not ready, in seconds: whoever
    /// sends work shall have heard of it before the listeners close.
    #[arg(long, env = "AGENTBOX_SHUTDOWN_DELAY", default_value_t = 0)]
    pub shutdown_delay_s: u64,

    /// How long stopping may take after that, in seconds.
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
