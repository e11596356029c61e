//! Where a request's credential is, and who it belongs to.

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::{Authenticate, AuthenticateRequest, Secret};
use agentbox_contracts::identity::{Principal, TicketAction};
use agentbox_contracts::ids::EnvironmentId;
use axum::http::{HeaderMap, header};
use base64::Engine as _;

use crate::state::{AUTH_DEADLINE, Gateway};

/// The longest credential that is looked at.
const MAX_TOKEN: usize = 8 * 1024;

pub(crate) fn unauthorized(message: &str) -> Error {
    Error::new(ErrorCode::Unauthorized, message)
}

/// The bearer token of the Authorization header (RFC 6750).
pub(crate) fn bearer(headers: &HeaderMap) -> Result<Option<Secret>, Error> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    let value = value
        .to_str()
        .map_err(|_| unauthorized("the Authorization header is not ASCII"))?;
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

/// A token offered as a WebSocket subprotocol, and the protocol to answer with: the
/// first that was offered and is not the secret.
pub(crate) fn from_subprotocols(
    headers: &HeaderMap,
) -> Result<(Option<Secret>, Option<String>), Error> {
    const ENCODED: &str = "base64url.bearer.authorization.agentbox.";
    let offered: Vec<String> = headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|protocol| protocol.trim().to_owned())
        .filter(|protocol| !protocol.is_empty())
        .collect();
    if let Some(at) = offered
        .iter()
        .position(|p| p.eq_ignore_ascii_case("authorization"))
    {
        let token = offered.get(at + 1).ok_or_else(|| {
            unauthorized("the subprotocol `Authorization` is not followed by a token")
        })?;
        let token = token.strip_prefix("Bearer ").unwrap_or(token);
        return Ok((Some(bounded(token)?), Some(offered[at].clone())));
    }
    if let Some(encoded) = offered.iter().find_map(|p| p.strip_prefix(ENCODED)) {
        let token = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(encoded.trim_end_matches('='))
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| unauthorized("the token in the subprotocol is not base64url"))?;
        let answer = offered.iter().find(|p| !p.starts_with(ENCODED)).cloned();
        return Ok((Some(bounded(&token)?), answer));
    }
    Ok((None, offered.first().cloned()))
}

/// Asks auth who a token belongs to.
///
/// # Errors
/// [`ErrorCode::Unauthorized`], or that auth cannot be reached.
pub(crate) async fn authenticate(gateway: &Gateway, token: Secret) -> Result<Principal, Error> {
    let request = AuthenticateRequest::Bearer { token };
    gateway
        .bus
        .call::<Authenticate>(&request, AUTH_DEADLINE)
        .await
}

/// Uses up a ticket.
///
/// # Errors
/// [`ErrorCode::Unauthorized`], or that auth cannot be reached.
pub(crate) async fn redeem(
    gateway: &Gateway,
    ticket: String,
    environment: EnvironmentId,
    action: TicketAction,
) -> Result<Principal, Error> {
    let ticket = bounded(&ticket)?;
    let request = AuthenticateRequest::Ticket {
        ticket,
        environment,
        action,
    };
    gateway
        .bus
        .call::<Authenticate>(&request, AUTH_DEADLINE)
        .await
}

/// Whether the credential of a stream that runs on is still good.
///
/// # Errors
/// [`ErrorCode::Unauthorized`] when it is not; anything else leaves it open.
pub(crate) async fn still_good(gateway: &Gateway, principal: &Principal) -> Result<(), Error> {
    let request = AuthenticateRequest::Again {
        user: principal.user.clone(),
        credential: principal.credential.clone(),
    };
    gateway
        .bus
        .call::<Authenticate>(&request, AUTH_DEADLINE)
        .await
        .map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protocols(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value.parse().unwrap());
        headers
    }

    #[test]
    fn a_websocket_token_is_found_in_every_form_and_never_echoed() {
        let encoded = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode("tok");
        for (offered, answer) in [
            ("Authorization, tok".to_owned(), Some("Authorization")),
            (
                "Authorization, Bearer tok".to_owned(),
                Some("Authorization"),
            ),
            (
                format!("base64url.bearer.authorization.agentbox.{encoded}, agentbox"),
                Some("agentbox"),
            ),
            (
                format!("agentbox, base64url.bearer.authorization.agentbox.{encoded}"),
                Some("agentbox"),
            ),
        ] {
            let (token, protocol) = from_subprotocols(&protocols(&offered)).unwrap();
            assert_eq!(token, Some(Secret("tok".into())), "{offered}");
            assert_eq!(protocol.as_deref(), answer, "{offered}");
        }
        assert!(from_subprotocols(&protocols("Authorization")).is_err());
    }

    #[test]
    fn only_a_bearer_header_is_a_credential() {
        let mut headers = HeaderMap::new();
        assert_eq!(bearer(&headers).unwrap(), None);
        headers.insert(header::AUTHORIZATION, "bearer  abc".parse().unwrap());
        assert_eq!(bearer(&headers).unwrap(), Some(Secret("abc".into())));
        for bad in ["Basic abc", "Bearer", "Bearer "] {
            headers.insert(header::AUTHORIZATION, bad.parse().unwrap());
            assert!(bearer(&headers).is_err(), "{bad}");
        }
    }
}
