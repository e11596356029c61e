//! Previews: `/environments/{id}/previews`, and the requests to their hosts ([`serve`]).
//!
//! * I1. Each preview has an origin of its own. Its pages reach the API, other previews and other
//!   boxes no further than those of any other site do.

mod answer;
pub(crate) mod host;
pub(crate) mod serve;
mod source;
pub(crate) mod visits;

use agentbox_api::port::{CreatePreview, CreatedPreview, PreviewBody, PreviewList};
use agentbox_api::user::PageQuery;
use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::error::Error;
use agentbox_contracts::identity::Principal;
use agentbox_contracts::ids::PreviewId;
use agentbox_contracts::preview::MAX_PREVIEW_S;
use agentbox_contracts::preview::rpc::{self, OpenPreviewRequest, PreviewAccess};
use axum::extract::{RawPathParams, State};
use axum::http::{HeaderMap, StatusCode, header};
use utoipa::IntoParams;

use crate::audit;
use crate::edge::admit::{Admitted, Caller};
use crate::edge::path::EnvironmentParameter;
use crate::edge::query::page;
use crate::edge::{Answer, Json, Query};
use crate::ports::target;
use crate::state::{AUTH_DEADLINE, Gateway};

/// The beginning of the paths that AgentBox answers itself on the host of a preview.
const OWN_PATHS: &str = "/.agentbox/";
/// The path of the link, and its parameter.
const LINK_PATH: &str = "/.agentbox/open";
const LINK_PARAMETER: &str = "link";

/// The parameter of a path that names a preview.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "describes a parameter")]
pub(crate) struct PreviewParameter {
    /// The preview's id.
    #[param(inline, example = "preview-0123456789abcdef")]
    preview: PreviewId,
}

/// Asks auth for the current state of a preview's creator.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::NotFound`] when the preview has ended.
pub(crate) async fn revalidate(gateway: &Gateway, id: &PreviewId) -> Result<Principal, Error> {
    let request = OpenPreviewRequest {
        id: id.clone(),
        access: PreviewAccess::Open,
    };
    let opened = gateway
        .bus
        .call::<rpc::OpenPreview>(&request, AUTH_DEADLINE)
        .await?;
    Ok(opened.principal)
}

/// Create a preview
///
/// Gives a port of a running environment an origin of its own, for browsers and programs without a
/// credential of the API. One browser opens `url`; programs send `token` in the header
/// `X-Agentbox-Preview-Token`. The preview ends with its environment, with the credential that created
/// it, and when it is deleted, within 2 seconds, open WebSockets included. An environment has at most
/// 32. Browsers on other machines need a domain, which the operator configures
/// (`AGENTBOX_PREVIEW_DOMAIN`).
#[utoipa::path(post, operation_id = "createPreview", path = "/environments/{id}/previews", tag = "ports",
    params(EnvironmentParameter), request_body = CreatePreview,
    responses((status = 201, description = "The preview, and what opens it.", body = CreatedPreview)))]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Admitted(location): Admitted,
    headers: HeaderMap,
    Json(body): Json<CreatePreview>,
) -> Answer<(StatusCode, axum::Json<CreatedPreview>)> {
    let port = target::port(&body.port.to_string())?;
    if !(1..=MAX_PREVIEW_S).contains(&body.expires_in) {
        return Err(Error::value(
            "expires_in",
            format_args!("must be 1 to {MAX_PREVIEW_S} seconds"),
            body.expires_in,
        )
        .into());
    }
    let location = location.require_running()?;
    audit::accept(&gateway, AuditAction::CreatePreview, &location.id, &[]).await?;
    let request = rpc::CreatePreviewRequest {
        principal,
        environment: location.id,
        port,
        public: body.public,
        expires_in_s: body.expires_in,
    };
    let created = gateway
        .bus
        .call::<rpc::CreatePreview>(&request, AUTH_DEADLINE)
        .await?;
    let api_host = headers
        .get(header::HOST)
        .and_then(|value| value.to_str().ok());
    let PreviewBody {
        id,
        port,
        public,
        created_at,
        expires_at,
    } = created.preview.into();
    let origin = host::origin(&gateway.config, api_host, port, &id);
    let url = match created.link {
        Some(link) => format!("{origin}{LINK_PATH}?{LINK_PARAMETER}={}", link.0),
        None => format!("{origin}/"),
    };
    let body = CreatedPreview {
        id,
        port,
        public,
        created_at,
        expires_at,
        url,
        token: created.token.map(|token| token.0),
    };
    Ok((StatusCode::CREATED, axum::Json(body)))
}

/// List previews
///
/// Returns one page of the previews of an environment, newest first. Their secrets cannot be read
/// again.
#[utoipa::path(get, operation_id = "listPreviews", path = "/environments/{id}/previews", tag = "ports",
    params(EnvironmentParameter, PageQuery),
    responses((status = 200, description = "One page of previews.", body = PreviewList)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Admitted(location): Admitted,
    Query(query): Query<PageQuery>,
) -> Answer<axum::Json<PreviewList>> {
    let (limit, offset) = page(query.limit, query.offset)?;
    let location = location.require_running()?;
    let request = rpc::ListPreviewsRequest {
        environment: location.id,
        limit,
        offset,
    };
    let reply = gateway
        .bus
        .call::<rpc::ListPreviews>(&request, AUTH_DEADLINE)
        .await?;
    Ok(axum::Json(PreviewList {
        previews: reply.previews.into_iter().map(PreviewBody::from).collect(),
        total: reply.total,
        limit,
        offset,
    }))
}

/// Delete a preview
///
/// Ends the preview at once, and its open connections within 2 seconds.
#[utoipa::path(delete, operation_id = "deletePreview", path = "/environments/{id}/previews/{preview}", tag = "ports",
    params(EnvironmentParameter, PreviewParameter),
    responses((status = 204, description = "The preview has ended.")))]
pub(crate) async fn delete(
    State(gateway): State<Gateway>,
    Admitted(location): Admitted,
    parameters: RawPathParams,
) -> Answer<StatusCode> {
    let not_found = || Error::not_found("preview");
    let named = parameters.iter().find(|(name, _)| *name == "preview");
    let id: PreviewId = named
        .and_then(|(_, text)| text.parse().ok())
        .ok_or_else(not_found)?;
    audit::accept(&gateway, AuditAction::DeletePreview, &location.id, &[]).await?;
    let request = rpc::DeletePreviewRequest {
        environment: location.id,
        id,
    };
    gateway
        .bus
        .call::<rpc::DeletePreview>(&request, AUTH_DEADLINE)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
