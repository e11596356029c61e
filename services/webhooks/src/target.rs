//! Decides which addresses a webhook reaches, and opens its connections.
//!
//! * I1. Without TLS only the networks that the operator allows are reached.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use agentbox_runtime::public_addresses::{self, PublicAddresses, bare_host};
use http::Uri;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use reqwest::Url;
use tokio::net::TcpStream;

/// Why no connection to the host of a webhook was opened.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    #[error("the host has no address that webhooks may reach")]
    NotAllowed,
    #[error("the host cannot be reached")]
    Unreachable(#[source] io::Error),
}

/// The addresses that webhooks reach.
#[derive(Debug)]
pub struct Guard {
    /// Reached although they are not public, also without TLS.
    allowed: Vec<IpNet>,
    public: PublicAddresses,
}

impl Guard {
    pub fn new(allowed: Vec<IpNet>) -> Self {
        Self {
            allowed,
            public: PublicAddresses::except(Vec::new()),
        }
    }

    /// Checks the URL of a webhook. The addresses of a name are checked at each connection.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn check(&self, text: &str) -> Result<Url, &'static str> {
        let url = Url::parse(text).map_err(|_| "must be a URL")?;
        match url.scheme() {
            "https" => {}
            "http" if !self.allowed.is_empty() => {}
            _ => return Err("must begin with https://"),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must have no user name and no password");
        }
        if url.fragment().is_some() {
            return Err("must have no fragment");
        }
        let host = url.host_str().ok_or("must have a host")?;
        if let Ok(address) = bare_host(host).parse() {
            let is_plain = url.scheme() == "http";
            if !self.is_allowed(address, &BTreeSet::new(), is_plain) {
                return Err("must have a public address");
            }
        }
        Ok(url)
    }

    /// Connects to an address of `host` that webhooks may reach; with `is_plain`, without TLS.
    async fn connect(
        &self,
        host: &str,
        port: u16,
        is_plain: bool,
    ) -> Result<TcpStream, GuardError> {
        let host = bare_host(host);
        let connecting = public_addresses::connect(&host, port, |address, own| {
            self.is_allowed(address, own, is_plain)
        });
        match connecting.await {
            Ok(Some(stream)) => Ok(stream),
            Ok(None) => Err(GuardError::NotAllowed),
            Err(error) => Err(GuardError::Unreachable(error)),
        }
    }

    fn is_allowed(&self, address: IpAddr, own: &BTreeSet<IpAddr>, is_plain: bool) -> bool {
        let is_exception = self
            .allowed
            .iter()
            .any(|network| network.contains(&address));
        is_exception || (!is_plain && self.public.contains(address, own))
    }
}

/// Opens the connections of a HTTP client.
#[derive(Clone, Debug)]
pub struct Connector(pub Arc<Guard>);

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
            let is_plain = uri.scheme_str() == Some("http");
            let port = uri.port_u16().unwrap_or(if is_plain { 80 } else { 443 });
            let host = uri.host().unwrap_or_default();
            guard.connect(host, port, is_plain).await.map(TokioIo::new)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(allowed: &[&str]) -> Guard {
        Guard::new(allowed.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn only_public_addresses_are_reached() {
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
            ("198.51.100.7", false),
            ("::1", false),
            ("::", false),
            ("fe80::1", false),
            ("fd00::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:1.1.1.1", false),
            ("64:ff9b::7f00:1", false),
            ("::127.0.0.1", false),
            ("2002:7f00:1::", false),
            ("2001:0:7f00:1::", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(
                guard.is_allowed(address, &own, false),
                is_public,
                "{address}"
            );
            assert!(!guard.is_allowed(address, &own, true), "{address}");
        }
    }

    #[test]
    fn url_that_no_webhook_may_have_names_its_rule() {
        for (url, rule) in [
            ("example.com", "must be a URL"),
            ("http://example.com/", "must begin with https://"),
            ("ftp://example.com/", "must begin with https://"),
            ("file:///etc/passwd", "must begin with https://"),
            (
                "https://user@example.com/",
                "must have no user name and no password",
            ),
            ("https://example.com/#a", "must have no fragment"),
            ("https://127.0.0.1/", "must have a public address"),
            ("https://127.1/", "must have a public address"),
            ("https://0x7f000001/", "must have a public address"),
            ("https://[::1]/", "must have a public address"),
            ("https://[::ffff:10.0.0.1]/", "must have a public address"),
            ("https://169.254.169.254/", "must have a public address"),
        ] {
            assert_eq!(guard(&[]).check(url).unwrap_err(), rule, "{url}");
        }
        for url in ["https://example.com/hook?a=b", "https://1.1.1.1:8443/"] {
            guard(&[]).check(url).unwrap();
        }
        guard(&["127.0.0.0/8"])
            .check("http://127.0.0.1:8080/")
            .unwrap();
    }

    #[tokio::test]
    async fn name_of_a_private_address_is_not_reached_unless_its_network_is_allowed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "localhost", "127.1", "[::ffff:127.0.0.1]"] {
            let refused = guard(&["10.0.0.0/8"]).connect(host, port, false).await;
            assert!(
                matches!(refused, Err(GuardError::NotAllowed)),
                "{host}: {refused:?}"
            );
        }
        let open = guard(&["127.0.0.0/8"]);
        open.connect("localhost", port, true).await.unwrap();
    }
}
