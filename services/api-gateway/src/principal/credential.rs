//! Reads the credential of a request. Pure.
//!
//! The first of these is used: the Authorization header (RFC 6750); a subprotocol of a WebSocket
//! handshake, because browsers cannot set its headers; a single-use ticket in the query. On the
//! routes of ports, [`OWN_HEADER`] comes first.

use agentbox_contracts::error::Error;
use agentbox_contracts::identity::rpc::Secret;
use agentbox_contracts::identity::{TicketAction, TicketResource};
use agentbox_contracts::ids::EnvironmentId;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::authorize::unauthorized;
use crate::edge::list_header::elements;
use crate::edge::query;

/// The longest credential that is accepted, in bytes.
const MAX_TOKEN: usize = 4 * 1024;
/// The prefix of a subprotocol that carries a token in base64url. The client offers another
/// subprotocol too, which the server can select.
const ENCODED: &str = "base64url.bearer.authorization.agentbox.";

/// The header of a token on the routes whose `Authorization` may be for a server in a box.
pub(crate) const OWN_HEADER: HeaderName = HeaderName::from_static("x-agentbox-token");

/// What a ticket must be for on a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TicketUse {
    pub environment: EnvironmentId,
    pub action: TicketAction,
    /// The execution or the path of the request, if the action has one.
    pub resource: Option<TicketResource>,
}

/// The credentials that a request presents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Credentials {
    /// A JWT or an API key.
    Bearer(Secret),
    Ticket {
        ticket: Secret,
        opens: TicketUse,
    },
}

/// Finds the credentials of a request. `opens` is what a ticket on this route must be for. It is
/// `None` if the route accepts no tickets.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Unauthorized`] when a credential is present and
/// malformed.
pub(crate) fn find(
    headers: &HeaderMap,
    query: Option<&str>,
    opens: Option<TicketUse>,
) -> Result<Option<Credentials>, Error> {
    if let Some(token) = bearer(headers)? {
        return Ok(Some(Credentials::Bearer(token)));
    }
    if is_websocket(headers)
        && let Some(token) = subprotocols(headers)?.token
    {
        return Ok(Some(Credentials::Bearer(token)));
    }
    let Some(opens) = opens else {
        return Ok(None);
    };
    match query.and_then(|query| query::value(query, "ticket")) {
        Some(ticket) => Ok(Some(Credentials::Ticket {
            ticket: bounded(&ticket)?,
            opens,
        })),
        None => Ok(None),
    }
}

/// Finds the token in [`OWN_HEADER`].
///
/// # Errors
/// As [`find`].
pub(crate) fn find_in_own_header(headers: &HeaderMap) -> Result<Option<Credentials>, Error> {
    let Some(value) = headers.get(OWN_HEADER) else {
        return Ok(None);
    };
    let token = value.to_str().unwrap_or("").trim();
    if token.is_empty() {
        return Err(unauthorized("the X-Agentbox-Token header has no token"));
    }
    bounded(token).map(|token| Some(Credentials::Bearer(token)))
}

fn bearer(headers: &HeaderMap) -> Result<Option<Secret>, Error> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    let value = value.to_str().unwrap_or("");
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
        return Err(unauthorized(
            "the Authorization header is not of the form `Bearer <token>`",
        ));
    }
    bounded(token.trim()).map(Some)
}

fn bounded(token: &str) -> Result<Secret, Error> {
    if token.len() > MAX_TOKEN {
        return Err(unauthorized("the token is too long"));
    }
    Ok(Secret(token.to_owned()))
}

fn is_websocket(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
}

/// The offered subprotocols of a WebSocket handshake.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Subprotocols {
    pub token: Option<Secret>,
    /// The subprotocol to select: the first offered one that holds no secret.
    pub answer: Option<String>,
}

/// The offered subprotocols. An empty element is none: the token may be after one.
fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    elements(headers, &header::SEC_WEBSOCKET_PROTOCOL).filter(|protocol| !protocol.is_empty())
}

/// Whether the next subprotocol is a token.
fn is_marker(protocol: &str) -> bool {
    protocol.eq_ignore_ascii_case("authorization")
}

/// Reads the subprotocols. A token has one of these forms:
///
/// * the subprotocol after `Authorization`; some clients put `Bearer ` before the token;
/// * base64url in a subprotocol with the prefix [`ENCODED`].
///
/// # Errors
/// When `Authorization` is not followed by a token, or a token cannot be decoded or is too long.
pub(crate) fn subprotocols(headers: &HeaderMap) -> Result<Subprotocols, Error> {
    let offered: Vec<&str> = offered(headers).collect();
    if let Some(at) = offered.iter().position(|protocol| is_marker(protocol)) {
        let token = offered.get(at + 1).ok_or_else(|| {
            unauthorized("the subprotocol `Authorization` is not followed by a token")
        })?;
        let token = token.strip_prefix("Bearer ").unwrap_or(token).trim();
        return Ok(Subprotocols {
            token: Some(bounded(token)?),
            answer: Some(offered[at].to_owned()),
        });
    }
    let encoded = offered
        .iter()
        .find_map(|protocol| protocol.strip_prefix(ENCODED));
    let token = encoded
        .map(|encoded| {
            URL_SAFE_NO_PAD
                .decode(encoded.trim_end_matches('='))
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or_else(|| unauthorized("the token in the subprotocol is not base64url"))
                .and_then(|token| bounded(&token))
        })
        .transpose()?;
    let answer = offered
        .iter()
        .find(|protocol| !protocol.starts_with(ENCODED))
        .map(|protocol| (*protocol).to_owned());
    Ok(Subprotocols { token, answer })
}

/// Removes the token from the subprotocols of a request that is sent on.
pub(crate) fn remove_subprotocols(headers: &mut HeaderMap) {
    let mut kept = Vec::new();
    let mut is_token = false;
    for protocol in offered(headers) {
        let is_marker = is_marker(protocol);
        if !is_token && !is_marker && !protocol.starts_with(ENCODED) {
            kept.push(protocol);
        }
        is_token = is_marker;
    }
    let kept = HeaderValue::from_str(&kept.join(", "));
    headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
    if let Ok(kept) = kept
        && !kept.is_empty()
    {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name: axum::http::HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    fn websocket(protocols: &str) -> HeaderMap {
        headers(&[
            ("upgrade", "websocket"),
            ("sec-websocket-protocol", protocols),
        ])
    }

    fn token(text: &str) -> Option<Credentials> {
        Some(Credentials::Bearer(Secret(text.into())))
    }

    #[test]
    fn authorization_header_must_be_a_bearer_token() {
        let read = |value: &str| find(&headers(&[("authorization", value)]), None, None);
        assert_eq!(find(&HeaderMap::new(), None, None).unwrap(), None);
        assert_eq!(read("Bearer abc").unwrap(), token("abc"));
        assert_eq!(read("bearer  abc ").unwrap(), token("abc"));
        let long = format!("Bearer {}", "x".repeat(MAX_TOKEN + 1));
        for bad in ["Basic abc", "Bearer", "Bearer ", "", long.as_str()] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn websocket_token_is_found_in_every_form_and_never_echoed() {
        let encoded = format!("{ENCODED}{}", URL_SAFE_NO_PAD.encode("tok"));
        for (offered, answer) in [
            ("Authorization, tok".to_owned(), Some("Authorization")),
            ("Authorization,Bearer tok".to_owned(), Some("Authorization")),
            (
                "agentbox, authorization, tok".to_owned(),
                Some("authorization"),
            ),
            (format!("{encoded}, agentbox"), Some("agentbox")),
            (format!("agentbox, {encoded}"), Some("agentbox")),
            (format!("{encoded}=="), None),
        ] {
            let headers = websocket(&offered);
            assert_eq!(
                find(&headers, None, None).unwrap(),
                token("tok"),
                "{offered}"
            );
            let answered = subprotocols(&headers).unwrap().answer;
            assert_eq!(answered.as_deref(), answer, "{offered}");
        }
        assert!(find(&websocket("Authorization"), None, None).is_err());
        assert!(find(&websocket(&format!("{ENCODED}%%%")), None, None).is_err());
    }

    #[test]
    fn own_header_holds_a_token() {
        let read = |value: &str| find_in_own_header(&headers(&[("x-agentbox-token", value)]));
        assert_eq!(read(" abc").unwrap(), token("abc"));
        assert!(read("").is_err());
        assert!(read(&"x".repeat(MAX_TOKEN + 1)).is_err());
        assert_eq!(find_in_own_header(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn subprotocol_without_websocket_is_ignored() {
        let plain = headers(&[("sec-websocket-protocol", "Authorization, tok")]);
        assert_eq!(find(&plain, None, None).unwrap(), None);
    }

    #[test]
    fn ticket_is_read_only_on_its_routes_and_after_a_token() {
        let id = EnvironmentId::random();
        let opens = TicketUse {
            environment: id,
            action: TicketAction::FileDownload,
            resource: Some(TicketResource::Path(b"/a".to_vec())),
        };
        let query = Some("follow=true&ticket=t%2D1");
        let none = HeaderMap::new();
        assert_eq!(find(&none, query, None).unwrap(), None);
        assert_eq!(
            find(&none, query, Some(opens.clone())).unwrap(),
            Some(Credentials::Ticket {
                ticket: Secret("t-1".into()),
                opens: opens.clone(),
            })
        );
        let with_token = headers(&[("authorization", "Bearer abc")]);
        assert_eq!(find(&with_token, query, Some(opens)).unwrap(), token("abc"));
    }
}
