//! The configuration of auth. Secrets are read from the environment only.

use std::path::PathBuf;
use std::time::Duration;

use agentbox_service::CommonConfig;

#[derive(Clone, clap::Parser)]
#[command(
    name = "agentbox-auth",
    version,
    about = "Users, logins, API keys and tickets"
)]
pub struct Config {
    #[command(flatten)]
    pub common: CommonConfig,

    /// Postgres, as a URL. Auth uses only schema `auth`. `?sslmode=verify-full&sslrootcert=FILE` encrypts
    /// the connection and verifies the server.
    #[arg(long, env = "AGENTBOX_DATABASE_URL", hide_env_values = true)]
    pub database_url: String,

    /// Connections to Postgres that one replica holds.
    #[arg(long, env = "AGENTBOX_DATABASE_CONNECTIONS", default_value_t = 8)]
    pub database_connections: u32,

    /// 64 hex digits, the same on every replica: a replica with another one does not start.
    /// API keys, tickets and stored signing keys are invalid under another one. After a leak:
    /// stop auth, empty `signing_keys`, `api_keys` and `tickets`, start with a new one.
    #[arg(
        long,
        env = "AGENTBOX_AUTH_SECRET",
        hide_env_values = true,
        hide = true
    )]
    pub auth_secret: String,

    /// The username of the administrator that the first start creates, when there is no user.
    #[arg(long, env = "AGENTBOX_ADMIN_USERNAME")]
    pub admin_username: Option<String>,

    /// The password of the first administrator: 8 to 256 characters, 4 different ones at least, and
    /// neither a common password nor the username. It stays in the environment of the process: prefer
    /// AGENTBOX_ADMIN_PASSWORD_FILE.
    #[arg(
        long,
        env = "AGENTBOX_ADMIN_PASSWORD",
        hide_env_values = true,
        hide = true
    )]
    pub admin_password: Option<String>,

    /// A file with that password, in the place of the variable. Only the start that creates the
    /// administrator reads it; it may be removed afterwards. A line feed at its end does not count.
    #[arg(
        long,
        env = "AGENTBOX_ADMIN_PASSWORD_FILE",
        conflicts_with = "admin_password"
    )]
    pub admin_password_file: Option<PathBuf>,

    /// The email address of the first administrator.
    #[arg(
        long,
        env = "AGENTBOX_ADMIN_EMAIL",
        default_value = "admin@agentbox.local"
    )]
    pub admin_email: String,

    /// How long the token of a login is valid, in seconds, at least 1.
    #[arg(long, env = "AGENTBOX_TOKEN_TTL", default_value_t = 3_600,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub token_ttl_s: u32,

    /// How long a key signs tokens before a new one replaces it, in seconds, at least 1
    /// (default 30 days).
    #[arg(long, env = "AGENTBOX_KEY_ROTATION", default_value_t = 30 * 86_400,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub key_rotation_s: u32,

    /// How long a ticket can be redeemed, in seconds, 1 to 60.
    #[arg(long, env = "AGENTBOX_TICKET_TTL", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..=60))]
    pub ticket_ttl_s: u32,

    /// Active API keys that one user may have.
    #[arg(long, env = "AGENTBOX_KEYS_PER_USER", default_value_t = 100)]
    pub keys_per_user: u32,

    /// Password hashes computed at once, 1 to 64; each takes 19 MiB, which are freed a
    /// minute after the last one, and one core.
    #[arg(long, env = "AGENTBOX_HASH_CONCURRENCY", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub hash_concurrency: u32,

    /// Requests that may wait for a password hash; more are refused with 503.
    #[arg(long, env = "AGENTBOX_HASH_QUEUE", default_value_t = 64)]
    pub hash_queue: u32,

    /// Requests of one client network (an IPv4 address or an IPv6 /64) that may wait for a password
    /// hash or compute one, at least 1; more are refused with 503.
    #[arg(long, env = "AGENTBOX_HASH_PLACES_PER_NETWORK", default_value_t = 16,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub hash_places_per_network: u32,

    /// How often the last uses of API keys are written, in seconds, at least 1.
    #[arg(long, env = "AGENTBOX_LAST_USED_FLUSH", default_value_t = 3,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub last_used_flush_s: u32,

    /// How often expired rows are removed, in seconds, at least 1.
    #[arg(long, env = "AGENTBOX_SWEEP_INTERVAL", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub sweep_interval_s: u32,

    /// How long a revoked or expired API key is kept, in seconds (default 30 days).
    #[arg(long, env = "AGENTBOX_KEY_RETENTION", default_value_t = 30 * 86_400)]
    pub key_retention_s: u32,

    /// How long the audit trail is kept, in seconds (default one year).
    #[arg(long, env = "AGENTBOX_AUDIT_RETENTION", default_value_t = 365 * 86_400)]
    pub audit_retention_s: u32,

    /// How often the end of the audit trail is published, in seconds, at least 1.
    #[arg(long, env = "AGENTBOX_AUDIT_HEAD_INTERVAL", default_value_t = 3_600,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub audit_head_interval_s: u32,

    /// Verify the audit trail and exit: 0 if it is complete and unchanged, else 1.
    #[arg(long)]
    pub verify_audit: bool,
}

impl Config {
    #[must_use]
    pub fn token_ttl(&self) -> Duration {
        Duration::from_secs(self.token_ttl_s.into())
    }

    #[must_use]
    pub fn key_rotation(&self) -> Duration {
        Duration::from_secs(self.key_rotation_s.into())
    }

    #[must_use]
    pub fn ticket_ttl(&self) -> Duration {
        Duration::from_secs(self.ticket_ttl_s.into())
    }

    #[must_use]
    pub fn last_used_flush(&self) -> Duration {
        Duration::from_secs(self.last_used_flush_s.into())
    }

    #[must_use]
    pub fn sweep_interval(&self) -> Duration {
        Duration::from_secs(self.sweep_interval_s.into())
    }

    #[must_use]
    pub fn key_retention(&self) -> Duration {
        Duration::from_secs(self.key_retention_s.into())
    }

    #[must_use]
    pub fn audit_retention(&self) -> Duration {
        Duration::from_secs(self.audit_retention_s.into())
    }

    #[must_use]
    pub fn audit_head_interval(&self) -> Duration {
        Duration::from_secs(self.audit_head_interval_s.into())
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
        agentbox_service::configuration::check("auth", &Config::command()).unwrap();
    }
}
