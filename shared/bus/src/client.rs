//! One connection to NATS: how it is made, and the events that it reports.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::InstanceId;
use agentbox_contracts::permissions;
use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::rustls;
use async_nats::{ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerError};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::BusError;
use crate::metrics;

/// How long the first connection is retried: NATS may be starting too.
const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const RECONNECT_DELAY: Duration = Duration::from_millis(250);
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// JetStream's own requests.
const JETSTREAM_TIMEOUT: Duration = Duration::from_secs(5);
/// The least time between two log lines about slow consumers. Such a consumer may drop thousands
/// of messages, and each of them is counted.
const SLOW_CONSUMER_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// Messages that wait in one subscription: 2 MiB of request headers, or 128 MiB of full
/// frames on the connection of the sessions. More are dropped; sessions retransmit them.
const SUBSCRIPTION_CAPACITY: usize = 4096;

/// How a process logs in to NATS.
#[derive(Clone, Debug)]
pub struct BusConfig {
    /// The connection is encrypted if the scheme is `tls`, or if there is a `tls_ca`. Then the
    /// server's certificate must be valid for the URL's host.
    pub url: String,
    /// A PEM file with the certificates of the authorities that may sign the server's. `None`: those
    /// of the operating system.
    pub tls_ca: Option<PathBuf>,
    pub user: String,
    pub password: String,
    /// One of [`permissions::USERS`]; names the inbox and session subjects.
    pub service: &'static str,
    pub instance: InstanceId,
}

impl BusConfig {
    fn is_encrypted(&self) -> bool {
        let scheme = self.url.split_once("://").map_or("", |(scheme, _)| scheme);
        let is_tls = |name: &&str| scheme.eq_ignore_ascii_case(name);
        self.tls_ca.is_some() || ["tls", "wss"].iter().any(is_tls)
    }
}

/// A connection to NATS and JetStream on it. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Client {
    nats: async_nats::Client,
    jetstream: jetstream::Context,
    service: &'static str,
    connects: watch::Receiver<u64>,
}

impl Client {
    /// Connects, and retries for up to half a minute. `purpose` is part of the
    /// connection's name.
    pub(crate) async fn connect(
        config: &BusConfig,
        purpose: &str,
        reports: &Arc<Reports>,
    ) -> Result<Self, BusError> {
        let nats = dial(config, purpose, reports).await?;
        let mut jetstream = jetstream::new(nats.clone());
        jetstream.set_timeout(JETSTREAM_TIMEOUT);
        Ok(Self {
            nats,
            jetstream,
            service: config.service,
            connects: reports.connects.subscribe(),
        })
    }

    pub(crate) fn nats(&self) -> &async_nats::Client {
        &self.nats
    }

    pub(crate) fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }

    pub(crate) fn service(&self) -> &'static str {
        self.service
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.nats.connection_state() == State::Connected
    }

    /// Changes after each reconnect. The server's in-memory state for this process, such as
    /// pulls and ordered consumers, is lost then.
    pub(crate) fn reconnected(&self) -> watch::Receiver<u64> {
        let mut connects = self.connects.clone();
        connects.mark_unchanged();
        connects
    }
}

/// Events that the connections of a process report.
pub(crate) struct Reports {
    violation: watch::Sender<Option<String>>,
    /// How often a connection was established.
    connects: watch::Sender<u64>,
    slow_consumer_logged_at: Mutex<Option<Instant>>,
}

impl Reports {
    pub(crate) fn new() -> Self {
        Self {
            violation: watch::Sender::new(None),
            connects: watch::Sender::new(0),
            slow_consumer_logged_at: Mutex::default(),
        }
    }

    /// The first permission violation; `None` until there is one.
    pub(crate) fn violation(&self) -> watch::Receiver<Option<String>> {
        self.violation.subscribe()
    }

    fn should_log_slow_consumer(&self) -> bool {
        let mut logged_at = self.slow_consumer_logged_at.lock();
        let now = Instant::now();
        if logged_at.is_some_and(|at| now - at < SLOW_CONSUMER_LOG_INTERVAL) {
            return false;
        }
        *logged_at = Some(now);
        true
    }

    fn record(&self, event: &Event) {
        match event {
            Event::ServerError(refusal) if is_refused_reply(refusal) => {
                // The request arrived before the connection was lost, and the server permits its
                // reply on that connection only. The caller gets no reply, as of a lost server.
                tracing::warn!(reason = %refusal, "reply not sent");
            }
            Event::ServerError(refusal) => {
                tracing::error!(reason = %refusal, "NATS reported an error");
                if is_permissions_violation(refusal) {
                    self.violation.send_replace(Some(refusal.to_string()));
                }
            }
            Event::SlowConsumer(subscription) => {
                metrics::slow_consumer();
                if self.should_log_slow_consumer() {
                    tracing::warn!(subscription, "messages dropped: a subscription is too slow");
                }
            }
            Event::Connected | Event::Disconnected | Event::LameDuckMode => {
                if *event == Event::Connected {
                    self.connects.send_modify(|connects| *connects += 1);
                }
                tracing::info!(event = %event, "NATS connection changed");
            }
            other => tracing::debug!(event = %other, "NATS connection changed"),
        }
    }
}

/// The server reports a violation as text only, and the client library has no kind for it.
fn is_permissions_violation(error: &ServerError) -> bool {
    matches!(error, ServerError::Other(text)
        if text.to_ascii_lowercase().contains("permissions violation"))
}

/// Whether the server has refused a reply. It permits one for each request, to the connection to
/// which it has delivered the request.
fn is_refused_reply(error: &ServerError) -> bool {
    let reply = format!("publish to \"{}", permissions::INBOX).to_ascii_lowercase();
    matches!(error, ServerError::Other(text)
        if is_permissions_violation(error) && text.to_ascii_lowercase().contains(&reply))
}

async fn dial(
    config: &BusConfig,
    purpose: &str,
    reports: &Arc<Reports>,
) -> Result<async_nats::Client, BusError> {
    let started_at = tokio::time::Instant::now();
    loop {
        let reports = reports.clone();
        let mut options = ConnectOptions::new()
            .name(format!("agentbox-{}-{purpose}", config.service))
            .custom_inbox_prefix(permissions::inbox_prefix(config.service))
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .reconnect_delay_callback(|_| RECONNECT_DELAY)
            .event_callback(move |event| {
                let reports = reports.clone();
                async move { reports.record(&event) }
            });
        if config.is_encrypted() {
            // A server names others before its certificate is verified: whoever is between could
            // name one of theirs, which would receive the password.
            options = options.require_tls(true).ignore_discovered_servers();
        }
        if let Some(path) = &config.tls_ca {
            options = options.add_root_certificates(path.clone());
        }
        if !config.user.is_empty() {
            options = options.user_and_password(config.user.clone(), config.password.clone());
        }
        match options.connect(&config.url).await {
            Ok(client) => return Ok(client),
            Err(source) if is_final(&source) || started_at.elapsed() > CONNECT_DEADLINE => {
                return Err(BusError::Connect {
                    url: config.url.clone(),
                    source,
                });
            }
            Err(error) => {
                tracing::info!(error = %ErrorChain(&error), "NATS not reachable; retried");
                tokio::time::sleep(RECONNECT_DELAY).await;
            }
        }
    }
}

/// Whether another attempt would fail alike: the login or the server's certificate was refused, the
/// server has no TLS, or TLS cannot be set up.
fn is_final(error: &ConnectError) -> bool {
    matches!(
        error.kind(),
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Tls
    ) || matches!(
        tls_cause(error),
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::InvalidMessage(_))
    )
}

/// The error of the TLS handshake. The client library has no kind for it.
fn tls_cause(error: &ConnectError) -> Option<&rustls::Error> {
    let cause = error.source()?.downcast_ref::<io::Error>()?;
    cause.get_ref()?.downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_is_encrypted_by_scheme_or_authority() {
        let config = |url: &str, tls_ca: Option<&str>| BusConfig {
            url: url.to_owned(),
            tls_ca: tls_ca.map(PathBuf::from),
            user: String::new(),
            password: String::new(),
            service: "auth",
            instance: InstanceId::random(),
        };
        for (url, tls_ca, expected) in [
            ("nats://nats:4222", None, false),
            ("nats:4222", None, false),
            ("nats:4222", Some("ca.pem"), true),
            ("nats://nats:4222", Some("ca.pem"), true),
            ("tls://nats:4222", None, true),
            ("TLS://nats:4222", None, true),
            ("wss://nats:443", None, true),
        ] {
            let is_encrypted = config(url, tls_ca).is_encrypted();
            assert_eq!(is_encrypted, expected, "{url} {tls_ca:?}");
        }
    }

    #[test]
    fn permissions_violation_is_recognized_among_server_errors() {
        let violation = "Permissions Violation for Publish to \"abx.v1.rpc.exec.x\"";
        assert!(is_permissions_violation(&ServerError::Other(
            violation.to_owned()
        )));
        assert!(!is_permissions_violation(&ServerError::Other(
            "maximum payload exceeded".to_owned()
        )));
        assert!(!is_permissions_violation(
            &ServerError::AuthorizationViolation
        ));
    }

    #[test]
    fn refused_reply_is_distinguished_from_other_violations() {
        let is_reply = |text: &str| is_refused_reply(&ServerError::Other(text.to_owned()));
        assert!(is_reply(
            "Permissions Violation for Publish to \"_INBOX_api-gateway.x.1\""
        ));
        assert!(!is_reply(
            "Permissions Violation for Publish to \"abx.v1.rpc.exec.x\""
        ));
        assert!(!is_reply(
            "Permissions Violation for Subscription to \"_INBOX_api-gateway.x.*\""
        ));
    }
}
