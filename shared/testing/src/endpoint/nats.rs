//! A running NATS server.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The NATS user with all permissions, for tests and for debugging.
pub const ALL_ACCESS_USER: &str = "test";

/// The address of a running NATS server, and its users.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NatsEndpoint {
    /// `nats://127.0.0.1:<port>`; with TLS the scheme is `tls`.
    pub url: String,
    /// With TLS: the certificate of the authority that has signed the server's.
    #[serde(default)]
    pub tls_ca: Option<PathBuf>,
    /// The base URL of the monitoring endpoints, such as `/healthz`.
    pub monitor_url: String,
    /// Passwords by user: each service, the provisioner, and [`ALL_ACCESS_USER`].
    pub passwords: BTreeMap<String, String>,
}

impl NatsEndpoint {
    /// User and password of [`ALL_ACCESS_USER`].
    #[must_use]
    pub fn all_access(&self) -> (&str, &str) {
        (
            ALL_ACCESS_USER,
            self.passwords
                .get(ALL_ACCESS_USER)
                .map_or("", String::as_str),
        )
    }
}
