//! Admission of a request, before its handler: rate limit, authentication, authorization.
//!
//! * I1. The order is: rate limit, credential, environment, permission. An answer reveals
//!   nothing that the caller may not know.
//! * I2. A handler gets the environment that was authorized, and no other.

use std::convert::Infallible;

use agentbox_contracts::audit::Origin;
use agentbox_contracts::error::Error;
use agentbox_contracts::identity::{Principal, TicketAction, TicketResource};
use agentbox_contracts::ids::EnvironmentId;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::client_address::ClientAddress;
use super::error::ApiError;
use super::slots::Slot;
use super::{path, query, trace};
use crate::authorize::{Action, authorize, unauthorized};
use crate::lookup::{self, EnvironmentLocation};
use crate::principal::credential::{self, Credentials, TicketUse};
use crate::principal::{AuthAttempt, identify};
use crate::rate_limit::{CallerKey, Category, RateLimitStatus};
use crate::state::Gateway;

/// The parameters of one route's [`admit`] layer.
#[derive(Clone)]
pub(crate) struct Admission {
    pub gateway: Gateway,
    pub action: Action,
    pub category: Category,
}

/// The authenticated caller of a request.
#[derive(Clone, Debug)]
pub(crate) struct Caller(pub Principal);

impl FromRequestParts<Gateway> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Gateway) -> Result<Self, ApiError> {
        // It is absent only on a route that needs no credential.
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| unauthorized("the request has no credential").into())
    }
}

/// The environment in the path, on which the caller may do the route's action.
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

/// The rate limit under which the request was counted. A handler that counts it under another limit
/// too adds that one to its response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted(pub RateLimitStatus);

impl FromRequestParts<Gateway> for Counted {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Gateway) -> Result<Self, Infallible> {
        let uncounted = RateLimitStatus::at(Category::Uncounted, u64::MAX, 0, 0);
        Ok(parts
            .extensions
            .get::<Self>()
            .copied()
            .unwrap_or(Self(uncounted)))
    }
}

/// Marks the answer of a server in a box, as a response's extension. It has no headers of a rate limit,
/// and the server may still be reading the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Proxied;

pub(crate) async fn admit(
    State(admission): State<Admission>,
    request: Request,
    next: Next,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let (rate_limit, decision) = decide(&admission, &mut parts).await;
    let mut response = match decision {
        Ok(()) => {
            parts.extensions.insert(Counted(rate_limit));
            let origin = origin(&parts);
            agentbox_bus::with_origin(origin, next.run(Request::from_parts(parts, body))).await
        }
        Err(error) => ApiError(error).into_response(),
    };
    // A handler may have counted the request under a tighter limit.
    let rate_limit = match response.extensions().get::<Counted>() {
        Some(Counted(other)) => rate_limit.tighter(*other),
        None => rate_limit,
    };
    if response.extensions().get::<Proxied>().is_none() {
        rate_limit.write(response.headers_mut());
    }
    response
}

/// Who sent the request, for the audit trail. It travels with every call of the handler.
fn origin(parts: &Parts) -> Origin {
    let caller = parts.extensions.get::<Caller>();
    let ClientAddress(address) = ClientAddress::from_extensions(&parts.extensions);
    let principal = caller.map(|Caller(principal)| principal);
    Origin::new(principal, address, trace::current_id())
}

/// The execution or the path that a request names, if a ticket for its action is bound to one.
async fn resource(action: Action, parts: &mut Parts) -> Option<TicketResource> {
    match action.ticket()? {
        TicketAction::Logs | TicketAction::Attach => None,
        TicketAction::Output | TicketAction::ExecutionAttach => {
            path::execution(parts).await.map(TicketResource::Execution)
        }
        TicketAction::FileDownload | TicketAction::FileUpload => parts
            .uri
            .query()
            .and_then(|query| query::bytes(query, "path"))
            .map(TicketResource::Path),
    }
}

/// The token in the header of its own, on the routes whose `Authorization` may be for a server in a box.
fn own_header(action: Action, headers: &HeaderMap) -> Result<Option<Credentials>, Error> {
    match action {
        Action::UsePort => credential::find_in_own_header(headers),
        _ => Ok(None),
    }
}

async fn decide(admission: &Admission, parts: &mut Parts) -> (RateLimitStatus, Result<(), Error>) {
    let Admission {
        gateway,
        action,
        category,
    } = admission;
    let id = match action.required_permission() {
        Some(_) => path::id::<EnvironmentId>(parts).await.map(Some),
        None => Ok(None),
    };
    let resource = resource(*action, parts).await;
    let credentials = if action.is_open() {
        // An open route ignores credentials, so an expired one does not refuse the request.
        Ok(None)
    } else {
        let environment = id.as_ref().ok().cloned().flatten();
        let opens = environment
            .zip(action.ticket())
            .map(|(environment, action)| TicketUse {
                environment,
                action,
                resource: resource.clone(),
            });
        match own_header(*action, &parts.headers) {
            Ok(None) => credential::find(&parts.headers, parts.uri.query(), opens),
            found => found,
        }
    };
    let attempt = AuthAttempt {
        credentials,
        address: ClientAddress::from_extensions(&parts.extensions),
        category: *category,
    };
    let (mut rate_limit, identity) = identify(gateway, attempt).await;
    if let Ok(Some(principal)) = &identity {
        rate_limit = rate_limit.with_limit(category.limit_of(&principal.limits));
    }
    let is_anonymous = !matches!(identity, Ok(Some(_)));
    if *category == Category::Uncounted && !action.is_open() && is_anonymous {
        // Such a request costs auth an answer.
        let key = CallerKey::address(ClientAddress::from_extensions(&parts.extensions));
        rate_limit = gateway.limiter.count(&key, Category::Other).await;
    }
    let decision = async {
        rate_limit.check()?;
        let caller = identity?;
        if caller.is_some()
            && let Some(slot) = parts.extensions.get::<Slot>()
        {
            slot.set_authenticated();
        }
        let mut location = match id {
            // Without a caller the answer is 401, whether the environment exists or not.
            Ok(Some(id)) if caller.is_some() => Some(lookup::locate(gateway, *action, id).await?),
            Ok(_) => None,
            Err(not_found) if caller.is_some() => return Err(not_found),
            Err(_) => None,
        };
        if let Some(location) = &mut location {
            location.resource = resource;
        }
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
    (rate_limit, decision)
}
