//! One attempt of a delivery: a signed POST, of which any 2xx is success.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentbox_contracts::ids::DeliveryId;
use bytes::Bytes;
use chrono::Utc;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::TokioExecutor;

use super::signature::sign;
use crate::metrics;
use crate::target::{Connector, Guard, GuardError};

const AGENT: &str = concat!("agentbox-webhooks/", env!("CARGO_PKG_VERSION"));

/// Why an attempt failed. The text is shown to the webhook's owner, so it tells nothing about a
/// network that the owner cannot reach.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the URL cannot be requested")]
    Url,
    #[error("the key of the signatures cannot be read")]
    Key,
    #[error("the host has no public address")]
    NotAllowed,
    #[error("the host cannot be reached")]
    Unreachable,
    #[error("the connection broke, or its certificate is not valid for the host")]
    Broken,
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    #[error("the receiver answered {0}, and redirects are not followed")]
    Redirect(u16),
    #[error("the receiver answered {0}")]
    Status(u16),
}

impl Failure {
    /// The HTTP status of the answer, if there was one.
    #[must_use]
    pub const fn status(&self) -> Option<u16> {
        match self {
            Self::Redirect(status) | Self::Status(status) => Some(*status),
            _ => None,
        }
    }

    /// The label of the metric.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::Key => "key",
            Self::NotAllowed => "not_allowed",
            Self::Unreachable => "unreachable",
            Self::Broken => "broken",
            Self::Deadline(_) => "deadline",
            Self::Redirect(_) => "redirect",
            Self::Status(_) => "status",
        }
    }
}

impl From<legacy::Error> for Failure {
    fn from(error: legacy::Error) -> Self {
        let mut cause = std::error::Error::source(&error);
        while let Some(found) = cause {
            match found.downcast_ref() {
                Some(GuardError::NotAllowed) => return Self::NotAllowed,
                Some(GuardError::Unreachable(_)) => return Self::Unreachable,
                None => cause = found.source(),
            }
        }
        Self::Broken
    }
}

/// What one attempt sends, and where.
pub struct Message<'a> {
    pub id: &'a DeliveryId,
    pub url: &'a str,
    /// The key of the signatures.
    pub key: &'a [u8],
    pub body: &'a str,
}

pub struct Sender {
    client: Client<HttpsConnector<Connector>, Full<Bytes>>,
    timeout: Duration,
}

impl Sender {
    /// # Errors
    /// When the machine has no certificates of authorities.
    pub fn new(guard: Arc<Guard>, timeout: Duration) -> io::Result<Self> {
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()?
            .https_or_http()
            .enable_http1()
            .wrap_connector(Connector(guard));
        // No connection is kept: each attempt checks the address.
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .build(connector);
        Ok(Self { client, timeout })
    }

    /// Sends a message. Returns the status of a successful answer.
    ///
    /// # Errors
    /// When the receiver has not acknowledged the message with a 2xx in time.
    pub async fn send(&self, message: &Message<'_>) -> Result<u16, Failure> {
        let began_at = Instant::now();
        let sent = tokio::time::timeout(self.timeout, self.request(message)).await;
        let outcome = sent.unwrap_or(Err(Failure::Deadline(self.timeout)));
        let label = outcome
            .as_ref()
            .map_or_else(Failure::label, |_| "delivered");
        metrics::attempted(label, began_at.elapsed());
        outcome
    }

    async fn request(&self, message: &Message<'_>) -> Result<u16, Failure> {
        let timestamp = Utc::now().timestamp();
        let signature = sign(message.key, message.id.as_str(), timestamp, message.body);
        let request = Request::builder()
            .method(Method::POST)
            .uri(message.url)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, AGENT)
            .header("webhook-id", message.id.as_str())
            .header("webhook-timestamp", timestamp.to_string())
            .header("webhook-signature", signature)
            .body(Full::new(Bytes::copy_from_slice(message.body.as_bytes())))
            .map_err(|_| Failure::Url)?;
        let status: StatusCode = self.client.request(request).await?.status();
        match status {
            status if status.is_success() => Ok(status.as_u16()),
            status if status.is_redirection() => Err(Failure::Redirect(status.as_u16())),
            status => Err(Failure::Status(status.as_u16())),
        }
    }
}
