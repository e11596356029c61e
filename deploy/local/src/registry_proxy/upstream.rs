//! The requests to registries: with redirects, and with the tokens that registries demand.
//!
//! * I1. Each address is checked before it is requested, and each connection by the guard.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION, RANGE, USER_AGENT};
use axum::http::{Method, Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::TokioExecutor;
use reqwest::Url;
use serde::Deserialize;

use super::challenge::{self, Challenge};
use super::guard::{Connector, Guard, GuardError};

/// The deadline of the head of an answer, and of a short answer as a whole.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// How many redirects are followed, as in most clients.
const MAX_REDIRECTS: usize = 5;
/// The longest answer with a token.
const MAX_TOKEN_BYTES: usize = 1 << 20;

/// A request to a registry does not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpstreamError {
    #[error("an address is refused")]
    Guard(#[from] GuardError),
    #[error("the request failed")]
    Request(#[from] legacy::Error),
    #[error("no answer within {DEADLINE:?}")]
    Deadline,
    #[error("more than {MAX_REDIRECTS} redirects")]
    Redirects,
    #[error("a redirect or a realm is not a URL")]
    Location,
    #[error("the answer cannot be read")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the answer with a token cannot be read")]
    Token(#[from] serde_json::Error),
    #[error("the request is invalid")]
    Invalid(#[from] axum::http::Error),
}

impl UpstreamError {
    /// Whether a later request may succeed: the registry was slow, or the connection broke.
    pub(super) fn is_temporary(&self) -> bool {
        match self {
            Self::Deadline | Self::Body(_) => true,
            Self::Request(error) => !error.is_connect() || is_broken(error),
            Self::Guard(_)
            | Self::Redirects
            | Self::Location
            | Self::Token(_)
            | Self::Invalid(_) => false,
        }
    }
}

/// Whether a connection was not made in time, or broke before it was ready.
fn is_broken(error: &legacy::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let found = match error.downcast_ref() {
            Some(GuardError::Unreachable { source, .. }) => Some(source),
            _ => error.downcast_ref::<io::Error>(),
        };
        if let Some(found) = found {
            // The handshake of TLS wraps the error of its connection.
            let inner = found.get_ref().and_then(|inner| inner.downcast_ref());
            let inner: &io::Error = inner.unwrap_or(found);
            return matches!(
                inner.kind(),
                io::ErrorKind::TimedOut
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::UnexpectedEof
            );
        }
        cause = error.source();
    }
    false
}

/// One request for content.
pub(super) struct Fetch {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) accept: Vec<HeaderValue>,
    pub(super) range: Option<HeaderValue>,
}

pub(super) struct Upstream {
    client: Client<HttpsConnector<Connector>, Empty<Bytes>>,
    guard: Arc<Guard>,
}

/// The answer of a realm.
#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl Upstream {
    /// # Errors
    /// When the machine has no certificates of authorities.
    pub(super) fn new(guard: Arc<Guard>) -> io::Result<Self> {
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()?
            .https_or_http()
            .enable_http1()
            .wrap_connector(Connector(guard.clone()));
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            guard,
        })
    }

    /// Requests content; `login` is the value of `Authorization` for a registry that demands one.
    /// The answer may be a refusal of the registry.
    ///
    /// # Errors
    /// When an address is refused, or a server does not answer as it should.
    pub(super) async fn fetch(
        &self,
        fetch: &Fetch,
        login: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let first = self.follow(fetch, None).await?;
        if first.status() != StatusCode::UNAUTHORIZED {
            return Ok(first);
        }
        let authorization = match challenge::read(first.headers()) {
            Some(Challenge::Basic) => login.cloned(),
            Some(Challenge::Bearer {
                realm,
                service,
                scope,
            }) => self.token(&realm, service, scope, login).await?,
            None => None,
        };
        match authorization {
            Some(authorization) => self.follow(fetch, Some(&authorization)).await,
            None => Ok(first),
        }
    }

    /// A token of a realm, as the value of `Authorization`; `None` when the realm refuses it.
    async fn token(
        &self,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
        login: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, UpstreamError> {
        let mut url = Url::parse(realm).map_err(|_| UpstreamError::Location)?;
        for (name, value) in [("service", service), ("scope", scope)] {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, &value);
            }
        }
        let fetch = Fetch {
            method: Method::GET,
            url,
            accept: Vec::new(),
            range: None,
        };
        let answer = self.follow(&fetch, login).await?;
        if !answer.status().is_success() {
            return Ok(None);
        }
        let body = Limited::new(answer.into_body(), MAX_TOKEN_BYTES).collect();
        let text = tokio::time::timeout(DEADLINE, body)
            .await
            .map_err(|_| UpstreamError::Deadline)?
            .map_err(UpstreamError::Body)?
            .to_bytes();
        let Token {
            token,
            access_token,
        } = serde_json::from_slice(&text)?;
        let Some(token) = token.or(access_token) else {
            return Ok(None);
        };
        let mut value =
            HeaderValue::try_from(format!("Bearer {token}")).map_err(axum::http::Error::from)?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// Requests content from the first address and those that it redirects to. Another host does not
    /// receive `authorization`.
    async fn follow(
        &self,
        fetch: &Fetch,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let (mut url, own) = (fetch.url.clone(), fetch.url.origin());
        for _ in 0..=MAX_REDIRECTS {
            self.guard.check(&url)?;
            let mut request = Request::builder()
                .method(fetch.method.clone())
                .uri(url.as_str())
                .header(USER_AGENT, concat!("agentbox/", env!("CARGO_PKG_VERSION")));
            for accept in &fetch.accept {
                request = request.header(ACCEPT, accept.clone());
            }
            if let Some(range) = &fetch.range {
                request = request.header(RANGE, range.clone());
            }
            if let Some(authorization) = authorization.filter(|_| url.origin() == own) {
                request = request.header(AUTHORIZATION, authorization.clone());
            }
            let answer = self.client.request(request.body(Empty::new())?);
            let answer = tokio::time::timeout(DEADLINE, answer)
                .await
                .map_err(|_| UpstreamError::Deadline)??;
            let location = answer.headers().get(LOCATION);
            let Some(location) = location.filter(|_| answer.status().is_redirection()) else {
                return Ok(answer);
            };
            let location = location.to_str().map_err(|_| UpstreamError::Location)?;
            url = url.join(location).map_err(|_| UpstreamError::Location)?;
        }
        Err(UpstreamError::Redirects)
    }
}
