//! The gateway's configuration. Durations are in seconds.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_api::attach::MAX_PING_INTERVAL_S;
use agentbox_service::CommonConfig;
use axum::http::HeaderValue;
use ipnet::IpNet;

use crate::edge::client_address::network;
use crate::edge::cors::origin;
use crate::previews::host::domain;

#[derive(Clone, clap::Parser)]
#[command(
    name = "agentbox-api-gateway",
    about = "The public API of AgentBox",
    version
)]
pub struct Config {
    #[command(flatten)]
    pub common: CommonConfig,

    /// Addresses to serve the API on, separated by commas.
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

    /// Proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` headers are trusted: addresses or
    /// CIDRs, separated by commas. Default: none, the headers are ignored.
    #[arg(long, env = "AGENTBOX_TRUSTED_PROXIES", value_delimiter = ',', value_parser = network)]
    pub trusted_proxies: Vec<IpNet>,

    /// Origins whose browser pages may use the API and open terminals, such as
    /// `https://app.example`, separated by commas. Default: none, only pages of the API's own origin.
    #[arg(long, env = "AGENTBOX_CORS_ORIGINS", value_delimiter = ',', value_parser = origin)]
    pub cors_origins: Vec<HeaderValue>,

    /// Requests of any kind that one client address may send to this replica per second.
    #[arg(long, env = "AGENTBOX_FLOOD_PER_SECOND", default_value_t = 1_000)]
    pub flood_per_second: u32,

    /// Requests of any kind that one client address may send to this replica at once.
    #[arg(long, env = "AGENTBOX_FLOOD_BURST", default_value_t = 2_000)]
    pub flood_burst: u32,

    /// Traces per second that this replica samples because their callers ask for it, by the flag of
    /// `traceparent`. More are continued without being sampled.
    #[arg(
        long,
        env = "AGENTBOX_MAX_SAMPLED_TRACES_PER_SECOND",
        default_value_t = 100
    )]
    pub max_sampled_traces_per_second: u32,

    /// Logins and password changes per minute, by client address or by user.
    #[arg(long, env = "AGENTBOX_RATE_LIMIT_AUTH", default_value_t = 10)]
    pub rate_limit_auth: u64,

    /// Failed logins with one username per minute, from all client addresses together. Above a
    /// tenth of it each login with that name waits, longer with each failure, up to 3 seconds.
    #[arg(long, env = "AGENTBOX_RATE_LIMIT_FAILED_LOGIN", default_value_t = 300)]
    pub rate_limit_failed_login: u64,

    /// Environments that one user may create per minute.
    #[arg(long, env = "AGENTBOX_RATE_LIMIT_CREATE", default_value_t = 20)]
    pub rate_limit_create: u64,

    /// Commands and terminals that one user may start per minute.
    #[arg(long, env = "AGENTBOX_RATE_LIMIT_EXEC", default_value_t = 100)]
    pub rate_limit_exec: u64,

    /// File operations that one user may start per minute.
    #[arg(long, env = "AGENTBOX_RATE_LIMIT_FILES", default_value_t = 1000)]
    pub rate_limit_files: u64,

    /// Other requests that one user may send per minute.
    #[arg(long, env = "AGENTBOX_RATE_LIMIT_OTHER", default_value_t = 200)]
    pub rate_limit_other: u64,

    /// The longest timeout of one command, in seconds.
    #[arg(long, env = "AGENTBOX_MAX_EXEC_TIMEOUT", default_value_t = 3600)]
    pub max_exec_timeout_s: u64,

    /// Bytes that an answer keeps of a command's stdout, and as many of its stderr.
    #[arg(long, env = "AGENTBOX_MAX_EXEC_OUTPUT", default_value_t = 10 * 1024 * 1024)]
    pub max_exec_output_bytes: u64,

    /// Record the commands of execs and terminals, with their arguments, in the audit trail. They
    /// may contain secrets of users.
    #[arg(long, env = "AGENTBOX_AUDIT_ARGUMENTS", default_value_t = false, action = clap::ArgAction::Set)]
    pub audit_arguments: bool,

    /// Commands, terminals and streams that one user may have open on this replica; more are
    /// refused with 429.
    #[arg(long, env = "AGENTBOX_MAX_SESSIONS_PER_USER", default_value_t = 200)]
    pub max_sessions_per_user: u64,

    /// Bytes of memory that this replica may use; the chart sets it to the container's limit. What the
    /// other bounds leave of it is for the buffers of commands, terminals and streams, at least 16 MiB.
    /// Beyond it they are refused with 503. One user gets at most as much as is left for the others.
    #[arg(long, env = "AGENTBOX_MEMORY_LIMIT", default_value_t = 1024 * 1024 * 1024)]
    pub memory_limit: u64,

    /// Bytes of commands' output that this replica holds for one user until it is read, at least
    /// those of one command; beyond it commands are refused with 503.
    #[arg(long, env = "AGENTBOX_MAX_RESULT_BYTES_PER_USER", default_value_t = 64 * 1024 * 1024)]
    pub max_result_bytes_per_user: u64,

    /// Bytes of commands' output that this replica holds for all users together, at least those of
    /// two commands. One user gets at most as much as is left for the others.
    #[arg(long, env = "AGENTBOX_MAX_RESULT_BYTES", default_value_t = 128 * 1024 * 1024)]
    pub max_result_bytes: u64,

    /// Bytes per second, both directions together, that the requests of one user to ports and previews
    /// may carry on this replica; more wait.
    #[arg(long, env = "AGENTBOX_PORT_BYTES_PER_SECOND", default_value_t = 100 * 1024 * 1024,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub port_bytes_per_second: u64,

    /// The domain of previews, such as `previews.example`, with a port if it is not that of the scheme.
    /// Every name below it must lead to the gateway. Default: none, and only browsers on the gateway's own
    /// machine can use previews.
    #[arg(long, env = "AGENTBOX_PREVIEW_DOMAIN", value_parser = domain)]
    pub preview_domain: Option<String>,

    /// The scheme of previews below their domain: `https`, or `http` for tests.
    #[arg(long, env = "AGENTBOX_PREVIEW_SCHEME", default_value = "https", value_parser = ["https", "http"])]
    pub preview_scheme: String,

    /// Seconds that a request's head may take to arrive, and that a connection of any protocol may
    /// be open without a request.
    #[arg(long, env = "AGENTBOX_HEADER_TIMEOUT", default_value_t = 20)]
    pub header_timeout_s: u64,

    /// Seconds that a request's body may take to arrive, and that an upload of a file may make no
    /// progress.
    #[arg(long, env = "AGENTBOX_BODY_TIMEOUT", default_value_t = 30)]
    pub body_timeout_s: u64,

    /// Seconds between two pings to the client of a terminal, 1 to 30. A client that sends nothing
    /// between two pings is treated as gone.
    #[arg(long, env = "AGENTBOX_PING_INTERVAL", default_value_t = 20,
          value_parser = clap::value_parser!(u64).range(1..=MAX_PING_INTERVAL_S))]
    pub ping_interval_s: u64,

    /// Seconds that a client may take to read a part of an answer, and 1 MiB of the result of a
    /// command.
    #[arg(long, env = "AGENTBOX_WRITE_TIMEOUT", default_value_t = 30,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub write_timeout_s: u64,

    /// Client connections that are open at once; more wait.
    #[arg(long, env = "AGENTBOX_MAX_CONNECTIONS", default_value_t = 10_000)]
    pub max_connections: usize,

    /// Connections of one client network (an IPv4 address or an IPv6 /64) that are open at once;
    /// more are refused with 429.
    #[arg(
        long,
        env = "AGENTBOX_MAX_CONNECTIONS_PER_NETWORK",
        default_value_t = 2_000
    )]
    pub max_connections_per_network: u64,

    /// Those of them that have not sent a valid credential yet; more are refused with 429.
    #[arg(
        long,
        env = "AGENTBOX_MAX_UNAUTHENTICATED_CONNECTIONS_PER_NETWORK",
        default_value_t = 256
    )]
    pub max_unauthenticated_connections_per_network: u64,
}

impl Config {
    pub(crate) const fn header_timeout(&self) -> Duration {
        Duration::from_secs(self.header_timeout_s)
    }

    pub(crate) const fn body_timeout(&self) -> Duration {
        Duration::from_secs(self.body_timeout_s)
    }

    pub(crate) const fn write_timeout(&self) -> Duration {
        Duration::from_secs(self.write_timeout_s)
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
    fn ping_interval_that_clients_do_not_wait_for_is_refused() {
        for (seconds, is_valid) in [("0", false), ("30", true), ("31", false)] {
            let arguments = ["api-gateway", "--ping-interval-s", seconds];
            let parsed = Config::command().try_get_matches_from(arguments);
            let is_refused =
                parsed.is_err_and(|error| error.kind() == clap::error::ErrorKind::ValueValidation);
            assert_eq!(!is_refused, is_valid, "{seconds}");
        }
    }

    #[test]
    fn configuration_reference_matches_code() {
        agentbox_service::configuration::check("api-gateway", &Config::command()).unwrap();
    }
}
