//! The port, the path and the query of a request to a server in a box. Pure.
//!
//! * I1. The path arrives byte for byte: its escapes are kept, and `..` is not resolved.

use agentbox_contracts::error::{Error, ErrorCode, shortened};
use axum::http::Uri;
use axum::http::uri::PathAndQuery;

/// The parts of the path before the rest: `/api/v1/environments/{id}/ports/{port}`.
const PARTS: usize = 7;

/// The protocol that the server in the box speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    /// HTTP/2 without TLS, with prior knowledge (RFC 9113, section 3.3).
    H2c,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub port: u16,
    pub path: PathAndQuery,
    pub protocol: Protocol,
}

impl Target {
    /// Reads the path and the query of a route of the API.
    ///
    /// # Errors
    /// [`ErrorCode::Validation`] when the port is none.
    pub(super) fn read(uri: &Uri) -> Result<Self, Error> {
        let mut parts = uri.path().splitn(PARTS + 1, '/');
        let port = port(parts.nth(PARTS - 1).unwrap_or_default())?;
        let (query, protocol) = match uri.query() {
            Some(query) => own_parameters(query),
            None => (None, Protocol::Http1),
        };
        Ok(Self {
            port,
            path: path_and_query(parts.next().unwrap_or_default(), query.as_deref())?,
            protocol,
        })
    }
}

/// # Errors
/// [`ErrorCode::Validation`] when the text is not a port.
pub(crate) fn port(text: &str) -> Result<u16, Error> {
    let number = text.parse::<u16>().ok().filter(|number| *number > 0);
    number.ok_or_else(|| Error::value("port", "must be 1 to 65535", text))
}

/// `path` has no first slash.
fn path_and_query(path: &str, query: Option<&str>) -> Result<PathAndQuery, Error> {
    let text = match query {
        Some(query) => format!("/{path}?{query}"),
        None => format!("/{path}"),
    };
    text.parse().map_err(|_| {
        Error::new(
            ErrorCode::BadRequest,
            format!("the path cannot be sent on: `{}`", shortened(&text)),
        )
    })
}

/// Removes the parameters that are for AgentBox: the protocol, and a ticket.
fn own_parameters(query: &str) -> (Option<String>, Protocol) {
    let mut protocol = Protocol::Http1;
    let kept: Vec<&str> = query
        .split('&')
        .filter(|parameter| {
            let is_protocol = *parameter == "protocol=h2c";
            if is_protocol {
                protocol = Protocol::H2c;
            }
            !is_protocol && !parameter.starts_with("ticket=ticket_")
        })
        .collect();
    let is_changed = kept.len() < query.split('&').count();
    let query = (!is_changed || !kept.is_empty()).then(|| kept.join("&"));
    (query, protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(rest: &str) -> Result<Target, Error> {
        let uri = format!("/api/v1/environments/env-0/ports/{rest}");
        Target::read(&uri.parse().unwrap())
    }

    #[test]
    fn path_and_query_arrive_byte_for_byte() {
        for (rest, expected) in [
            ("80", "/"),
            ("80/", "/"),
            ("80?a=b", "/?a=b"),
            ("80/a/../b/", "/a/../b/"),
            ("80//a%2Fb%2f%2E%2e/%ff", "//a%2Fb%2f%2E%2e/%ff"),
            ("80/a?x=%20&&y", "/a?x=%20&&y"),
            ("80/a?", "/a?"),
            ("80/a?protocol=h2", "/a?protocol=h2"),
            ("80/a?ticket=ticket_0&x=1", "/a?x=1"),
            ("80/a?ticket=ticket_0", "/a"),
            ("80/a?ticket=of-the-app", "/a?ticket=of-the-app"),
        ] {
            let target = read(rest).unwrap();
            assert_eq!((target.port, target.protocol), (80, Protocol::Http1));
            assert_eq!(target.path.as_str(), expected, "{rest}");
        }
        let target = read("50051/a.B/C?protocol=h2c").unwrap();
        assert_eq!(target.protocol, Protocol::H2c);
        assert_eq!(target.path.as_str(), "/a.B/C");
    }

    #[test]
    fn number_that_is_no_port_is_refused() {
        for rest in ["0/", "65536/", "http/", "-1/", "%38%30/"] {
            let error = read(rest).unwrap_err();
            assert_eq!(error.code, ErrorCode::Validation, "{rest}");
            assert!(error.message.starts_with("port: "), "{}", error.message);
        }
    }
}
