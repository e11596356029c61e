//! Admission, before any handler: who calls, how often, and may it.
//!
//! * I1. The order: rate, credential, the environment and the right to it. An answer
//!   tells nothing that its caller may not know.
//! * I2. A handler on an environment is given the place that was authorized, and no other.

use std::convert::Infallible;

use agentbox_contracts::error::Error;
use agentbox_contracts::identity::Principal;
use agentbox_contracts::ids::EnvironmentId;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::client_address::ClientAddress;
use super::error::ApiError;
use super::path;
use crate::authorize::{Action, authorize, unauthorized};
use crate::lookup::{self, EnvironmentLocation};
use crate::principal::{AuthAttempt, credential, identify};
use crate::rate_limit::{Category, RateLimitStatus};
use crate::state::Gateway;

/// What a layer of [`admit`] is made for.
#[derive(Clone)]
pub(crate) struct Admission {
    pub gateway: Gateway,
    pub action: Action,
    pub category: Category,
}

/// The caller of a route that needs one.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub Principal);

impl FromRequestParts<Gateway> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Gateway) -> Result<Self, ApiError> {
        // Not there only if the route is open to all and its handler asks nevertheless.
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| unauthorized("a token is needed").into())
    }
}

/// The environment of the route, on which the caller may do what the route does.
#[derive(Clone, Debug)]
pub(crate) struct Admitted(pub EnvironmentLocation);

impl FromRequestParts<Gateway> for Admitted {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Gateway) -> Result<Self, ApiError> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| Error::internal().into())
    }
}

/// Where the request was counted, for handlers that count it elsewhere too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted(pub RateLimitStatus);

impl FromRequestParts<Gateway> for Counted {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Gateway) -> Result<Self, Infallible> {
        let untouched = RateLimitStatus::at(Category::Uncounted, u64::MAX, 0, 0);
        Ok(parts
            .extensions
            .get::<Self>()
            .copied()
            .unwrap_or(Self(untouched)))
    }
}

pub(crate) async fn admit(
    State(admission): State<Admission>,
    request: Request,
    next: Next,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let (rate_limit, verdict) = judge(&admission, &mut parts).await;
    let mut response = match verdict {
        Ok(()) => {
            parts.extensions.insert(Counted(rate_limit));
            next.run(Request::from_parts(parts, body)).await
        }
        Err(error) => ApiError(error).into_response(),
    };
    // A handler may have counted the request in a tighter window.
    let rate_limit = match response.extensions().get::<Counted>() {
        Some(Counted(other)) => rate_limit.tighter(*other),
        None => rate_limit,
    };
    rate_limit.write(response.headers_mut());
    response
}

async fn judge(admission: &Admission, parts: &mut Parts) -> (RateLimitStatus, Result<(), Error>) {
    let Admission {
        gateway,
        action,
        category,
    } = admission;
    // An open route asks for no credential, so a stale one is no reason to refuse.
    let id = match action.needs() {
        Some(_) => path::id::<EnvironmentId>(parts).await.map(Some),
        None => Ok(None),
    };
    let credentials = if action.is_open() {
        Ok(None)
    } else {
        let ticket = id.as_ref().ok().cloned().flatten().zip(action.ticket());
        credential::find(&parts.headers, parts.uri.query(), ticket)
    };
    let attempt = AuthAttempt {
        credentials,
        address: ClientAddress::of(&parts.extensions),
        category: *category,
    };
    let (rate_limit, identity) = identify(gateway, attempt).await;
    let verdict = async {
        rate_limit.check()?;
        let caller = identity?;
        let location = match id {
            // Without a caller there is nothing to look for.
            Ok(Some(id)) if caller.is_some() => Some(lookup::locate(gateway, *action, id).await?),
            Ok(_) => None,
            Err(not_found) if caller.is_some() => return Err(not_found),
            Err(_) => None,
        };
        authorize(
            caller.as_ref(),
            *action,
            location.as_ref().map(EnvironmentLocation::target),
        )?;
        if let Some(principal) = caller {
            tracing::Span::current().record("enduser.id", principal.user.as_str());
            parts.extensions.insert(Caller(principal));
        }
        if let Some(location) = location {
            parts.extensions.insert(Admitted(location));
        }
        Ok(())
    }
    .await;
    (rate_limit, verdict)
}
