//! The configuration that every service has.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

/// Flags and variables that all services share. Pass secrets by variable only: flags are
/// visible in the process list.
#[derive(Clone, clap::Args)]
pub struct CommonConfig {
    /// The URL of NATS. With `tls://` the connection is encrypted, and the server's certificate must be
    /// valid for the URL's host.
    #[arg(
        long,
        env = "AGENTBOX_NATS_URL",
        default_value = "nats://127.0.0.1:4222"
    )]
    pub nats_url: String,

    /// A PEM file with the certificates of the authorities that may sign the certificate of NATS. It
    /// is read at each connection. With it the connection is encrypted also without `tls://`.
    /// Default: with `tls://` the authorities of the operating system.
    #[arg(long, env = "AGENTBOX_NATS_TLS_CA")]
    pub nats_tls_ca: Option<PathBuf>,

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

/// Checks that the PEM file that a setting names can be read and has a certificate: otherwise the
/// first connection would fail without its name.
pub(crate) fn check_certificates(setting: &str, path: &Path) -> Result<(), anyhow::Error> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{setting}: cannot read {}", path.display()))?;
    anyhow::ensure!(
        text.contains("-----BEGIN CERTIFICATE-----"),
        "{setting}: must be a PEM file with a certificate; {} has none",
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_that_cannot_be_used_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let check = || check_certificates("AGENTBOX_NATS_TLS_CA", &path);
        let missing = check().unwrap_err().to_string();
        assert!(missing.starts_with("AGENTBOX_NATS_TLS_CA: cannot read"));
        std::fs::write(&path, "-----BEGIN PRIVATE KEY-----\n").unwrap();
        let empty = check().unwrap_err().to_string();
        assert!(empty.contains("ca.pem has none"), "{empty}");
        std::fs::write(&path, "# ours\n-----BEGIN CERTIFICATE-----\n").unwrap();
        check().unwrap();
    }
}
