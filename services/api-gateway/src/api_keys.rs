//! `/api-keys`: long-lived tokens for programs.

use agentbox_api::api_key::{ApiKeyBody, ApiKeyList, CreateApiKey, CreatedApiKey};
use agentbox_api::error::ErrorBody;
use agentbox_api::user::PageQuery;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::{EnvironmentPermission, Principal, rpc};
use agentbox_contracts::ids::{ApiKeyId, EnvironmentId};
use axum::extract::State;
use axum::http::StatusCode;

use crate::authorize::{Action, authorize};
use crate::edge::input::page;
use crate::edge::{Answer, Caller, Json, Path, Query};
use crate::lookup;
use crate::state::{AUTH_DEADLINE, Gateway};

/// The environments a key names must be its creator's to see.
async fn granted(
    gateway: &Gateway,
    principal: &Principal,
    body: &CreateApiKey,
) -> Result<Vec<EnvironmentPermission>, Error> {
    let mut granted = Vec::new();
    for (index, wanted) in body.permissions.iter().flatten().enumerate() {
        let field = format!("permissions[{index}].environment_id");
        let unknown = || {
            Error::field(
                &field,
                format!("no such environment: `{}`", wanted.environment_id),
            )
        };
        let id: EnvironmentId = wanted.environment_id.parse().map_err(|_| unknown())?;
        match lookup::environment(gateway, principal, Action::ViewEnvironment, &id).await {
            Ok(_) => {}
            Err(error) if error.code == ErrorCode::NotFound => return Err(unknown()),
            Err(error) => return Err(error),
        }
        granted.push(EnvironmentPermission {
            environment_id: id,
            permission: wanted.permission,
        });
    }
    Ok(granted)
}

#[utoipa::path(post, path = "/api/v1/api-keys", tag = "api-keys", request_body = CreateApiKey,
    responses((status = 201, body = CreatedApiKey), (status = "default", body = ErrorBody)))]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Json(body): Json<CreateApiKey>,
) -> Answer<(StatusCode, axum::Json<CreatedApiKey>)> {
    authorize(&principal, Action::ManageOwnKeys, None)?;
    if body.permissions.as_ref().is_some_and(Vec::is_empty) {
        return Err(Error::field(
            "permissions",
            "must not be empty; leave it out for a key without limits",
        )
        .into());
    }
    let permissions = granted(&gateway, &principal, &body).await?;
    let request = rpc::CreateKeyRequest {
        owner: principal.user,
        description: body.description,
        expires_in_days: body.expires_in,
        permissions,
    };
    let reply = gateway
        .bus
        .call::<rpc::CreateKey>(&request, AUTH_DEADLINE)
        .await?;
    let shown = ApiKeyBody::from(reply.api_key);
    Ok((
        StatusCode::CREATED,
        axum::Json(CreatedApiKey {
            id: shown.id,
            key: reply.key.0,
            description: shown.description,
            created_at: shown.created_at,
            expires_at: shown.expires_at,
            permissions: shown.permissions,
        }),
    ))
}

#[utoipa::path(get, path = "/api/v1/api-keys", tag = "api-keys", params(PageQuery),
    responses((status = 200, body = ApiKeyList), (status = "default", body = ErrorBody)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Query(query): Query<PageQuery>,
) -> Answer<axum::Json<ApiKeyList>> {
    authorize(&principal, Action::ManageOwnKeys, None)?;
    let (limit, offset) = page(query.limit, query.offset)?;
    let request = rpc::ListKeysRequest {
        owner: principal.user,
        limit,
        offset,
    };
    let reply = gateway
        .bus
        .call::<rpc::ListKeys>(&request, AUTH_DEADLINE)
        .await?;
    let api_keys = reply.api_keys.into_iter().map(ApiKeyBody::from).collect();
    Ok(axum::Json(ApiKeyList {
        api_keys,
        total: reply.total,
        limit,
        offset,
    }))
}

#[utoipa::path(get, path = "/api/v1/api-keys/{key}", tag = "api-keys", params(("key" = String, Path)),
    responses((status = 200, body = ApiKeyBody), (status = "default", body = ErrorBody)))]
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<ApiKeyId>,
) -> Answer<axum::Json<ApiKeyBody>> {
    authorize(&principal, Action::ManageOwnKeys, None)?;
    let request = rpc::KeyRequest {
        owner: principal.user,
        id,
    };
    Ok(axum::Json(
        gateway
            .bus
            .call::<rpc::GetKey>(&request, AUTH_DEADLINE)
            .await?
            .into(),
    ))
}

#[utoipa::path(delete, path = "/api/v1/api-keys/{key}", tag = "api-keys", params(("key" = String, Path)),
    responses((status = 204), (status = "default", body = ErrorBody)))]
pub(crate) async fn revoke(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<ApiKeyId>,
) -> Answer<StatusCode> {
    authorize(&principal, Action::ManageOwnKeys, None)?;
    let request = rpc::KeyRequest {
        owner: principal.user,
        id,
    };
    gateway
        .bus
        .call::<rpc::RevokeKey>(&request, AUTH_DEADLINE)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
