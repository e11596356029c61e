//! `/environments`: create, list, get, patch, delete.

use std::time::Duration;

use agentbox_api::environment::{
    CreateEnvironment, DeleteQuery, EnvironmentBody, EnvironmentList, ListQuery, PatchEnvironment,
};
use agentbox_api::error::ErrorBody;
use agentbox_contracts::environment::rpc::{
    Create, CreateRequest, Delete, DeleteRequest, List, ListRequest, Patch, PatchRequest,
};
use agentbox_contracts::environment::{Environment, Status};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{USAGE, UsageReply, UsageRequest};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::subjects;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::authorize::{Action, authorize, visibility};
use crate::edge::input::page;
use crate::edge::{Answer, Caller, Json, Path, Query};
use crate::lookup;
use crate::state::{Gateway, SCHEDULER_DEADLINE};

/// A box that does not answer by then is shown without its usage.
const USAGE_DEADLINE: Duration = Duration::from_millis(300);
const MAX_IDEMPOTENCY_KEY: usize = 255;

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let rule = format!("must be 1 to {MAX_IDEMPOTENCY_KEY} visible ASCII characters");
    match value.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= MAX_IDEMPOTENCY_KEY => Ok(Some(key.to_owned())),
        _ => Err(Error::field("Idempotency-Key", rule)),
    }
}

#[utoipa::path(post, path = "/api/v1/environments", tag = "environments",
    request_body = CreateEnvironment,
    params(("Idempotency-Key" = Option<String>, Header, description = "Same key and body within 24 h: the same environment")),
    responses((status = 201, body = EnvironmentBody), (status = "default", body = ErrorBody)))]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    headers: HeaderMap,
    Json(body): Json<CreateEnvironment>,
) -> Answer<Response> {
    authorize(&principal, Action::CreateEnvironment, None)?;
    let request = CreateRequest {
        owner: principal.user,
        owner_username: principal.username,
        request: body.into(),
        idempotency_key: idempotency_key(&headers)?,
    };
    let created = gateway
        .bus
        .call::<Create>(&request, SCHEDULER_DEADLINE)
        .await?;
    let location = format!("/api/v1/environments/{}", created.id);
    let mut response = (
        StatusCode::CREATED,
        axum::Json(EnvironmentBody::from(created)),
    )
        .into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

#[utoipa::path(get, path = "/api/v1/environments", tag = "environments", params(ListQuery),
    responses((status = 200, body = EnvironmentList), (status = "default", body = ErrorBody)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Query(query): Query<ListQuery>,
) -> Answer<axum::Json<EnvironmentList>> {
    authorize(&principal, Action::ListEnvironments, None)?;
    let (limit, offset) = page(query.limit, query.offset)?;
    let request = ListRequest {
        visibility: visibility(&principal),
        status: query.status,
        label_selector: query.label.filter(|label| !label.trim().is_empty()),
        limit,
        offset,
    };
    let reply = gateway
        .bus
        .call::<List>(&request, SCHEDULER_DEADLINE)
        .await?;
    Ok(axum::Json(EnvironmentList {
        environments: reply
            .environments
            .into_iter()
            .map(EnvironmentBody::from)
            .collect(),
        total: reply.total,
        limit,
        offset,
    }))
}

async fn usage(gateway: &Gateway, environment: &Environment) -> Option<UsageReply> {
    let address = environment
        .address
        .filter(|_| environment.status == Status::Running)?;
    let request = UsageRequest {
        environment: environment.id.clone(),
        address,
    };
    let subject = subjects::exec_rpc(&environment.cluster, USAGE);
    match gateway.bus.call_on(subject, &request, USAGE_DEADLINE).await {
        Ok(usage) => Some(usage),
        Err(error) => {
            tracing::debug!(%error, "a box's usage is not known");
            None
        }
    }
}

#[utoipa::path(get, path = "/api/v1/environments/{id}", tag = "environments",
    params(("id" = String, Path)),
    responses((status = 200, body = EnvironmentBody), (status = "default", body = ErrorBody)))]
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<EnvironmentId>,
) -> Answer<axum::Json<EnvironmentBody>> {
    let found = lookup::environment(&gateway, &principal, Action::ViewEnvironment, &id).await?;
    let metrics = usage(&gateway, &found).await.map(Into::into);
    Ok(axum::Json(EnvironmentBody {
        metrics,
        ..found.into()
    }))
}

#[utoipa::path(patch, path = "/api/v1/environments/{id}", tag = "environments",
    params(("id" = String, Path)), request_body = PatchEnvironment,
    responses((status = 200, body = EnvironmentBody), (status = "default", body = ErrorBody)))]
pub(crate) async fn patch(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<EnvironmentId>,
    Json(body): Json<PatchEnvironment>,
) -> Answer<axum::Json<EnvironmentBody>> {
    lookup::environment(&gateway, &principal, Action::PatchEnvironment, &id).await?;
    if body.name.is_none() && body.labels.is_none() && body.timeout.is_none() {
        return Err(Error::new(
            ErrorCode::Validation,
            "nothing to change: give name, labels or timeout",
        )
        .into());
    }
    let request = PatchRequest {
        id,
        name: body.name,
        labels: body.labels,
        timeout_s: body.timeout,
    };
    let patched = gateway
        .bus
        .call::<Patch>(&request, SCHEDULER_DEADLINE)
        .await?;
    Ok(axum::Json(patched.into()))
}

#[utoipa::path(delete, path = "/api/v1/environments/{id}", tag = "environments",
    params(("id" = String, Path), DeleteQuery),
    responses((status = 204), (status = "default", body = ErrorBody)))]
pub(crate) async fn delete(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<EnvironmentId>,
    Query(query): Query<DeleteQuery>,
) -> Answer<StatusCode> {
    lookup::environment(&gateway, &principal, Action::DeleteEnvironment, &id).await?;
    let request = DeleteRequest {
        id,
        force: query.force,
    };
    gateway
        .bus
        .call::<Delete>(&request, SCHEDULER_DEADLINE)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
