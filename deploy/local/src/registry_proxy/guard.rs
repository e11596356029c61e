//! Decides which addresses a pull reaches, and opens its connections.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};

use agentbox_runtime::public_addresses::{self, PublicAddresses, bare_host};
use axum::http::Uri;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use reqwest::Url;
use tokio::net::TcpStream;

/// A pull must not reach an address.
#[derive(Debug, thiserror::Error)]
pub(super) enum GuardError {
    #[error("`{0}` is not an HTTPS address")]
    Scheme(String),
    #[error("`{0}` has no public address")]
    NotPublic(String),
    #[error("`{host}` cannot be reached")]
    Unreachable { host: String, source: io::Error },
}

/// A registry that may have another address than a public one, or no TLS: `https://HOST[:PORT]` or
/// `http://HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    host: String,
    port: u16,
    is_plain: bool,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "must be http:// or https:// with a host and a port, such as http://127.0.0.1:5000, is `{0}`"
)]
pub(crate) struct InvalidException(String);

impl FromStr for Exception {
    type Err = InvalidException;

    fn from_str(text: &str) -> Result<Self, InvalidException> {
        let invalid = || InvalidException(text.chars().take(80).collect());
        let url = Url::parse(text).map_err(|_| invalid())?;
        let (host, port) = authority(&url).ok_or_else(invalid)?;
        let is_bare = url.path() == "/" && url.query().is_none() && url.username().is_empty();
        if !is_bare {
            return Err(invalid());
        }
        match url.scheme() {
            "http" | "https" => Ok(Self {
                host,
                port,
                is_plain: url.scheme() == "http",
            }),
            _ => Err(invalid()),
        }
    }
}

/// The host and the port of a URL.
fn authority(url: &Url) -> Option<(String, u16)> {
    Some((bare_host(url.host_str()?), url.port_or_known_default()?))
}

#[derive(Debug)]
pub(super) struct Guard {
    /// Whether each exception speaks HTTP.
    exceptions: BTreeMap<(String, u16), bool>,
    public: PublicAddresses,
}

impl Guard {
    pub(super) fn new(exceptions: Vec<Exception>, denied: Vec<IpNet>) -> Self {
        Self {
            exceptions: exceptions
                .into_iter()
                .map(|exception| ((exception.host, exception.port), exception.is_plain))
                .collect(),
            public: PublicAddresses::except(denied),
        }
    }

    /// The scheme of a registry, `host[:port]`.
    pub(super) fn scheme_of(&self, registry: &str) -> &'static str {
        let url = Url::parse(&format!("http://{registry}")).ok();
        let authority = url.as_ref().and_then(authority);
        let is_plain = authority.and_then(|authority| self.exceptions.get(&authority));
        if is_plain == Some(&true) {
            "http"
        } else {
            "https"
        }
    }

    /// Checks a URL before it is requested. Its addresses are checked when it is connected.
    ///
    /// # Errors
    /// When it is neither HTTPS nor an exception.
    pub(super) fn check(&self, url: &Url) -> Result<(), GuardError> {
        let is_plain_exception = || {
            authority(url).is_some_and(|authority| self.exceptions.get(&authority) == Some(&true))
        };
        match url.scheme() {
            "https" => Ok(()),
            "http" if is_plain_exception() => Ok(()),
            _ => Err(GuardError::Scheme(host_of(url))),
        }
    }

    /// Connects to an address of `host` that a pull may reach.
    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, GuardError> {
        let host = bare_host(host);
        let is_exception = self.exceptions.contains_key(&(host.clone(), port));
        let connecting = public_addresses::connect(&host, port, |address, own| {
            is_exception || self.public.contains(address, own)
        });
        match connecting.await {
            Ok(Some(stream)) => Ok(stream),
            Ok(None) => Err(GuardError::NotPublic(host)),
            Err(source) => Err(GuardError::Unreachable { host, source }),
        }
    }
}

/// The host of a URL for a message.
fn host_of(url: &Url) -> String {
    url.host_str()
        .unwrap_or_default()
        .chars()
        .take(80)
        .collect()
}

/// Opens the connections of a HTTP client.
#[derive(Clone, Debug)]
pub(super) struct Connector(pub(super) Arc<Guard>);

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = GuardError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, GuardError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), GuardError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let guard = self.0.clone();
        Box::pin(async move {
            let default = if uri.scheme_str() == Some("http") {
                80
            } else {
                443
            };
            let port = uri.port_u16().unwrap_or(default);
            let host = uri.host().unwrap_or_default();
            guard.connect(host, port).await.map(TokioIo::new)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn guard(exceptions: &[&str]) -> Guard {
        let exceptions = exceptions.iter().map(|text| text.parse().unwrap());
        Guard::new(
            exceptions.collect(),
            vec!["203.0.113.0/24".parse().unwrap()],
        )
    }

    #[test]
    fn only_public_addresses_are_allowed() {
        let guard = guard(&[]);
        let own = BTreeSet::from(["198.51.100.7".parse().unwrap()]);
        for (address, is_public) in [
            ("1.1.1.1", true),
            ("2606:4700::1111", true),
            ("127.0.0.1", false),
            ("0.0.0.0", false),
            ("10.1.2.3", false),
            ("172.16.0.1", false),
            ("192.168.1.1", false),
            ("100.64.0.1", false),
            ("169.254.169.254", false),
            ("224.0.0.1", false),
            ("203.0.113.9", false),
            ("198.51.100.7", false),
            ("::1", false),
            ("::", false),
            ("fe80::1", false),
            ("fd00::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:1.1.1.1", false),
            ("64:ff9b::7f00:1", false),
            ("64:ff9b:1::7f00:1", false),
            ("::127.0.0.1", false),
            ("fec0::1", false),
            ("2002:7f00:1::", false),
            ("2001:0:7f00:1::", false),
            ("2001:4860:4860::8888", true),
        ] {
            let got = guard.public.contains(address.parse().unwrap(), &own);
            assert_eq!(got, is_public, "{address}");
        }
    }

    #[tokio::test]
    async fn address_that_is_not_public_is_reached_by_an_exception_only() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "localhost", "127.1", "[::ffff:127.0.0.1]"] {
            let refused = guard(&[]).connect(host, port).await;
            assert!(
                matches!(refused, Err(GuardError::NotPublic(_))),
                "{host}: {refused:?}"
            );
        }
        let exception = format!("http://127.0.0.1:{port}");
        let open = guard(&[&exception]);
        open.connect("127.0.0.1", port).await.unwrap();
        let by_name = open.connect("localhost", port).await;
        assert!(by_name.is_err(), "{by_name:?}");
    }

    #[test]
    fn plain_http_is_for_exceptions_only() {
        let guard = guard(&["http://127.0.0.1:5000", "https://registry.internal"]);
        for (url, is_allowed) in [
            ("https://registry.example/v2/", true),
            ("http://registry.example/v2/", false),
            ("http://127.0.0.1:5000/v2/", true),
            ("http://127.0.0.1:5001/v2/", false),
            ("http://registry.internal/", false),
            ("ftp://registry.example/", false),
            ("file:///etc/passwd", false),
        ] {
            assert_eq!(
                guard.check(&url.parse().unwrap()).is_ok(),
                is_allowed,
                "{url}"
            );
        }
        for (registry, scheme) in [
            ("127.0.0.1:5000", "http"),
            ("registry.internal", "https"),
            ("registry.example", "https"),
        ] {
            assert_eq!(guard.scheme_of(registry), scheme);
        }
    }

    #[test]
    fn exception_that_is_no_registry_is_refused() {
        for text in ["127.0.0.1:5000", "ftp://a", "http://a/b", "http://u@a", ""] {
            assert!(text.parse::<Exception>().is_err(), "{text}");
        }
    }
}
