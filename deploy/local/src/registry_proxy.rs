//! The proxy between containerd and the registries. containerd sends it every request of a pull
//! (`_default/hosts.toml`), because containerd itself follows each address that a registry names.
//!
//! Owns the rules of a pull: which addresses it may reach ([`guard`]), and which manifests it
//! accepts ([`manifest`]). Stores nothing: containerd keeps the content, and verifies its digests.
//!
//! * I1. It connects to public addresses only, and to the exceptions that the operator lists. This
//!   holds for the name of an image, each redirect, and the realm of a login, because each connection
//!   uses the address that was checked.
//! * I2. containerd gets no other address from it: no redirect, no realm, and no manifest with
//!   `urls`.
//! * I3. A manifest whose content is larger than an image may be is refused, before containerd
//!   requests a layer. No blob is longer than that.
//! * I4. A login goes to the registry's own host, and to the realm that it names, over HTTPS; never
//!   to another host that one of them redirects to.
//! * I5. The log has no login, and containerd gets no text of a registry.

mod challenge;
mod guard;
mod manifest;
mod reference;
#[cfg(test)]
mod tests;
mod upstream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName,
    HeaderValue, RANGE, WWW_AUTHENTICATE,
};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use ipnet::IpNet;
use serde_json::json;

pub(crate) use guard::Exception;
use guard::Guard;
use manifest::ManifestError;
use reference::{Kind, Reference};
use upstream::{Fetch, Upstream, UpstreamError};

/// The largest manifest, in bytes, as in containerd.
const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// Requests that are answered at a time; more wait.
const MAX_REQUESTS: usize = 256;
/// How long a request waits for its turn.
const TURN_DEADLINE: Duration = Duration::from_secs(30);
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The proxy's settings.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) listen: SocketAddr,
    /// Registries that may have other addresses than public ones.
    pub(crate) exceptions: Vec<Exception>,
    /// Public networks that no pull may reach: those of a cluster.
    pub(crate) denied: Vec<IpNet>,
    /// The largest image, as its manifest counts it: compressed.
    pub(crate) max_image_bytes: u64,
}

struct Proxy {
    guard: Arc<Guard>,
    upstream: Upstream,
    max_image_bytes: u64,
    turns: tokio::sync::Semaphore,
}

/// A request that is not answered with content.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the request is not one of a pull")]
    NotAPull,
    #[error("{MAX_REQUESTS} requests are open")]
    Busy,
    /// containerd repeats the request with its login, if it has one.
    #[error("the registry requires a login")]
    LoginRequired,
    #[error("the registry refuses the login")]
    LoginRefused,
    #[error("the registry answered {0}")]
    Status(StatusCode),
    #[error("the manifest is not accepted")]
    Manifest(#[from] ManifestError),
    #[error("the registry did not deliver")]
    Upstream(#[from] UpstreamError),
    #[error("the answer is invalid")]
    Answer(#[from] axum::http::Error),
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotAPull => StatusCode::NOT_FOUND,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::LoginRequired => StatusCode::UNAUTHORIZED,
            Self::LoginRefused => StatusCode::FORBIDDEN,
            Self::Status(status) if status.is_client_error() || status.is_server_error() => *status,
            // The text of this status selects the cause that users read.
            Self::Manifest(ManifestError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            // Statuses of 500 and more make the driver try again.
            Self::Upstream(error) if error.is_temporary() => StatusCode::BAD_GATEWAY,
            Self::Status(_) | Self::Manifest(_) | Self::Upstream(_) | Self::Answer(_) => {
                StatusCode::MISDIRECTED_REQUEST
            }
        }
    }
}

impl IntoResponse for Refusal {
    /// The error format of registries, with a text of this program.
    fn into_response(self) -> Response {
        let error = json!({ "code": "UNKNOWN", "message": self.to_string() });
        let body = json!({ "errors": [error] }).to_string();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(self, Self::LoginRequired) {
            let basic = HeaderValue::from_static("Basic realm=\"registry\"");
            headers.insert(WWW_AUTHENTICATE, basic);
        }
        (self.status(), headers, body).into_response()
    }
}

/// Runs the proxy until the process ends.
///
/// # Errors
/// When it cannot listen, or the machine has no certificates of authorities.
pub(crate) async fn run(settings: Settings) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(settings.listen).await?;
    eprintln!("registry proxy listens address={}", settings.listen);
    let proxy = Arc::new(Proxy::new(settings)?);
    let router = Router::new().fallback(serve).with_state(proxy);
    Ok(axum::serve(listener, router).await?)
}

async fn serve(State(proxy): State<Arc<Proxy>>, request: Request) -> Response {
    let target = request.uri().clone();
    match proxy.answer(request).await {
        Ok(response) => response,
        Err(refusal) => {
            if !matches!(refusal, Refusal::LoginRequired) {
                eprintln!(
                    "request refused target={target} error={:?}",
                    ErrorChain(&refusal).to_string()
                );
            }
            refusal.into_response()
        }
    }
}

/// Whether containerd will read the answer as a manifest. Some versions request one among the blobs if
/// it is not found among the manifests.
fn accepts_manifest(accept: &[HeaderValue]) -> bool {
    accept.iter().any(|value| {
        let value = value.to_str().unwrap_or_default().to_ascii_lowercase();
        value.contains("manifest") || value.contains("index")
    })
}

impl Proxy {
    fn new(settings: Settings) -> std::io::Result<Self> {
        let guard = Arc::new(Guard::new(settings.exceptions, settings.denied));
        Ok(Self {
            upstream: Upstream::new(guard.clone())?,
            guard,
            max_image_bytes: settings.max_image_bytes,
            turns: tokio::sync::Semaphore::new(MAX_REQUESTS),
        })
    }

    async fn answer(&self, request: Request) -> Result<Response, Refusal> {
        let (request, _) = request.into_parts();
        if request.uri.path() == "/v2/" {
            return Ok(StatusCode::OK.into_response());
        }
        let is_read = matches!(request.method, Method::GET | Method::HEAD);
        let query = request.uri.query().unwrap_or_default();
        let reference = Reference::parse(request.uri.path(), query);
        let reference = reference.filter(|_| is_read).ok_or(Refusal::NotAPull)?;
        let turn = tokio::time::timeout(TURN_DEADLINE, self.turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(Refusal::Busy);
        };
        let sent = &request.headers;
        let login = sent.get(AUTHORIZATION).cloned();
        let fetch = Fetch {
            method: request.method.clone(),
            url: reference.url(&self.guard).ok_or(Refusal::NotAPull)?,
            accept: sent.get_all(ACCEPT).iter().cloned().collect(),
            range: sent.get(RANGE).cloned(),
        };
        let response = self.upstream.fetch(&fetch, login.as_ref()).await?;
        match response.status() {
            StatusCode::UNAUTHORIZED if login.is_none() => Err(Refusal::LoginRequired),
            StatusCode::UNAUTHORIZED => Err(Refusal::LoginRefused),
            status if !status.is_success() => Err(Refusal::Status(status)),
            _ => {
                let kind = if accepts_manifest(&fetch.accept) {
                    Kind::Manifest
                } else {
                    reference.kind
                };
                self.pass_on(&fetch.method, kind, response).await
            }
        }
    }

    async fn pass_on(
        &self,
        method: &Method,
        kind: Kind,
        response: Response<Incoming>,
    ) -> Result<Response, Refusal> {
        let mut answer = Response::builder().status(response.status());
        for name in [CONTENT_TYPE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_DIGEST] {
            if let Some(value) = response.headers().get(&name) {
                answer = answer.header(name, value.clone());
            }
        }
        let body = response.into_body();
        let body = match (kind, method) {
            (_, &Method::HEAD) => Body::empty(),
            (Kind::Manifest, _) => {
                let limited = Limited::new(body, MAX_MANIFEST_BYTES).collect();
                let text = tokio::time::timeout(upstream::DEADLINE, limited)
                    .await
                    .map_err(|_| UpstreamError::Deadline)?
                    .map_err(UpstreamError::Body)?
                    .to_bytes();
                manifest::check(&text, self.max_image_bytes)?;
                Body::from(text)
            }
            (Kind::Blob, _) => {
                let longest = usize::try_from(self.max_image_bytes).unwrap_or(usize::MAX);
                Body::new(Limited::new(body, longest))
            }
        };
        Ok(answer.body(body)?)
    }
}
