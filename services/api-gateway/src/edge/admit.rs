//! Admission: who calls, and is it within its rate.
//!
//! A caller is counted under its user; one whose credential is not good, or that has
//! none yet, under its address.

use std::net::{IpAddr, SocketAddr};

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::Principal;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use crate::principal::{authenticate, bearer, from_subprotocols, unauthorized};
use crate::rate_limit::{self, Category, Standing};
use crate::state::Gateway;

/// The other end of the connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerAddress(pub SocketAddr);

/// A caller whose credential is good.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub Principal);

/// The caller, or `None` when the request brought no credential in its head.
#[derive(Clone, Debug)]
pub(crate) struct MaybeCaller(pub Option<Principal>);

impl FromRequestParts<Gateway> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Gateway) -> Result<Self, ApiError> {
        match parts.extensions.get::<MaybeCaller>() {
            Some(MaybeCaller(Some(principal))) => Ok(Self(principal.clone())),
            _ => Err(unauthorized("a token is needed: `Authorization: Bearer <token>`").into()),
        }
    }
}

impl FromRequestParts<Gateway> for MaybeCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Gateway) -> Result<Self, ApiError> {
        Ok(parts
            .extensions
            .get::<Self>()
            .cloned()
            .unwrap_or(Self(None)))
    }
}

/// What a layer of [`admit`] is made for.
#[derive(Clone)]
pub(crate) struct Admission {
    pub gateway: Gateway,
    pub category: Category,
}

pub(crate) fn address(request_extensions: &axum::http::Extensions) -> IpAddr {
    request_extensions
        .get::<PeerAddress>()
        .map_or(IpAddr::from([0, 0, 0, 0]), |PeerAddress(address)| {
            address.ip()
        })
}

fn is_websocket(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
}

async fn identify(gateway: &Gateway, headers: &HeaderMap) -> Result<Option<Principal>, Error> {
    let mut token = bearer(headers)?;
    if token.is_none() && is_websocket(headers) {
        token = from_subprotocols(headers)?.0;
    }
    match token {
        Some(token) => authenticate(gateway, token).await.map(Some),
        None => Ok(None),
    }
}

fn refused(error: Error, standing: Standing) -> Response {
    let mut response = ApiError(error).into_response();
    standing.write(response.headers_mut());
    response
}

pub(crate) async fn admit(
    State(Admission { gateway, category }): State<Admission>,
    mut request: Request,
    next: Next,
) -> Response {
    let identity = identify(&gateway, request.headers()).await;
    let counted_as = match &identity {
        Ok(Some(principal)) => principal.user.to_string(),
        _ => rate_limit::token(&address(request.extensions()).to_string()),
    };
    let standing = rate_limit::count(&gateway, &counted_as, category).await;
    if let Err(error) = standing.check(category, rate_limit::now_unix_s()) {
        return refused(error, standing);
    }
    match identity {
        Ok(principal) => {
            request.extensions_mut().insert(MaybeCaller(principal));
        }
        // Logging in needs no credential, so a stale one is no reason to refuse it.
        Err(error) if category == Category::Auth && error.code == ErrorCode::Unauthorized => {
            request.extensions_mut().insert(MaybeCaller(None));
        }
        Err(error) => return refused(error, standing),
    }
    let mut response = next.run(request).await;
    standing.write(response.headers_mut());
    response
}
