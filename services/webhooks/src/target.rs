//! Decides which addresses a webhook reaches, and opens its connections.
//!
//! * I1. A name is resolved once for each connection, and the connection uses a resolved address that
//!   passed the check: a name that resolves to another address later has no effect.
//! * I2. Without TLS only the networks that the operator allows are reached.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use agentbox_runtime::address_ranges::{
    ALWAYS_DENIED_V4, ALWAYS_DENIED_V6, PRIVATE_V4, PRIVATE_V6, networks,
};
use http::Uri;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use reqwest::Url;
use tokio::net::TcpStream;

/// IETF protocol assignments, with Teredo, which carries IPv4.
const TUNNELS_V6: [&str; 1] = ["2001::/23"];
/// The deadline of a connection, with the resolution of its name.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

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
    denied: Vec<IpNet>,
}

impl Guard {
    pub fn new(allowed: Vec<IpNet>) -> Self {
        Self {
            allowed,
            denied: networks(&ALWAYS_DENIED_V4)
                .chain(networks(&ALWAYS_DENIED_V6))
                .chain(networks(&PRIVATE_V4))
                .chain(networks(&PRIVATE_V6))
                .chain(networks(&TUNNELS_V6))
                .collect(),
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
        let own = own_addresses().map_err(GuardError::Unreachable)?;
        let connect = async {
            let mut failure = None;
            for address in tokio::net::lookup_host((host.as_str(), port)).await? {
                if !self.is_allowed(address.ip(), &own, is_plain) {
                    continue;
                }
                match TcpStream::connect(address).await {
                    Ok(stream) => return Ok(Some(stream)),
                    Err(error) => failure = Some(error),
                }
            }
            failure.map_or(Ok(None), Err)
        };
        match tokio::time::timeout(CONNECT_DEADLINE, connect).await {
            Ok(Ok(Some(stream))) => Ok(stream),
            Ok(Ok(None)) => Err(GuardError::NotAllowed),
            Ok(Err(error)) => Err(GuardError::Unreachable(error)),
            Err(_) => Err(GuardError::Unreachable(io::ErrorKind::TimedOut.into())),
        }
    }

    fn is_allowed(&self, address: IpAddr, own: &BTreeSet<IpAddr>, is_plain: bool) -> bool {
        let is_exception = self
            .allowed
            .iter()
            .any(|network| network.contains(&address));
        is_exception || (!is_plain && self.is_public(address, own))
    }

    /// Whether an address is neither in a denied network nor this machine's.
    fn is_public(&self, address: IpAddr, own: &BTreeSet<IpAddr>) -> bool {
        // Of IPv6 only global unicast (2000::/3): outside of it are old and local forms that carry
        // IPv4, such as ::127.0.0.1 and 64:ff9b:1::/48.
        let is_global = match address {
            IpAddr::V4(_) => true,
            IpAddr::V6(address) => address.segments()[0] >> 13 == 1,
        };
        is_global
            && !own.contains(&address)
            && !self.denied.iter().any(|network| network.contains(&address))
    }
}

/// A host in lower case, an IPv6 address without its brackets.
fn bare_host(host: &str) -> String {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.to_ascii_lowercase()
}

/// The addresses of this machine, which may be public ones.
fn own_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    Ok(interfaces
        .filter_map(|interface| interface.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect())
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
