//! `/api-keys`: long-lived tokens for programs.

use agentbox_api::api_key::{ApiKeyBody, ApiKeyList, CreateApiKey, CreatedApiKey};
use agentbox_api::user::PageQuery;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::{
    Credential, EnvironmentPermission, MAX_KEY_PERMISSIONS, Principal, rpc,
};
use agentbox_contracts::ids::{ApiKeyId, EnvironmentId};
use axum::extract::State;
use axum::http::StatusCode;

use crate::authorize::{Action, Target, authorize, may_manage};
use crate::edge::path::KeyParameter;
use crate::edge::query::page;
use crate::edge::{Answer, Caller, Json, Path, Query};
use crate::lookup;
use crate::state::{AUTH_DEADLINE, CREDENTIAL_CHANGE_DEADLINE, Gateway};

/// Checks the permissions of a new key. Its creator must see each environment; an environment
/// that the creator may not see is reported as not found, whether it exists or not.
async fn check_permissions(
    gateway: &Gateway,
    principal: &Principal,
    body: &CreateApiKey,
) -> Result<Vec<EnvironmentPermission>, Error> {
    let Some(requested) = &body.permissions else {
        return Ok(Vec::new());
    };
    if !(1..=MAX_KEY_PERMISSIONS).contains(&requested.len()) {
        return Err(Error::field(
            "permissions",
            format_args!(
                "must have 1 to {MAX_KEY_PERMISSIONS} elements, has {}; leave it out for a key \
                 without this limit",
                requested.len()
            ),
        ));
    }
    let ids: Vec<Option<EnvironmentId>> = requested
        .iter()
        .map(|permission| permission.environment_id.parse().ok())
        .collect();
    let owners = lookup::owners(gateway, ids.iter().flatten()).await?;
    let mut granted = Vec::with_capacity(requested.len());
    for (index, (permission, id)) in requested.iter().zip(ids).enumerate() {
        let not_found = || {
            Error::new(
                ErrorCode::NotFound,
                format!("permissions[{index}].environment_id: environment not found"),
            )
        };
        let id = id.ok_or_else(not_found)?;
        let owner = owners.get(&id).ok_or_else(not_found)?;
        let target = Target {
            id: &id,
            owner,
            resource: None,
        };
        authorize(Some(principal), Action::ViewEnvironment, Some(target)).map_err(|error| {
            match error.code {
                ErrorCode::NotFound => not_found(),
                _ => error,
            }
        })?;
        granted.push(EnvironmentPermission {
            environment_id: id,
            permission: permission.permission,
        });
    }
    Ok(granted)
}

/// Create an API key
///
/// The answer is the only one that contains the key itself. The permissions of a key never
/// change: to give it others, create another key. A key that a key creates expires no later than
/// its creator, and is revoked with it.
#[utoipa::path(post, operation_id = "createApiKey", path = "/api-keys", tag = "api-keys", request_body = CreateApiKey,
    responses((status = 201, description = "The new key, with the key itself.", body = CreatedApiKey)))]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Json(body): Json<CreateApiKey>,
) -> Answer<(StatusCode, axum::Json<CreatedApiKey>)> {
    let management = body.management.unwrap_or(false);
    if management && !may_manage(&principal) {
        return Err(Error::new(
            ErrorCode::Forbidden,
            "management: needs a login, or an API key with `management`",
        )
        .into());
    }
    let permissions = check_permissions(&gateway, &principal, &body).await?;
    let request = rpc::CreateKeyRequest {
        owner: principal.user,
        description: body.description,
        expires_in_days: body.expires_in,
        permissions,
        management,
        creator: Some(principal.credential),
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
            management: shown.management,
        }),
    ))
}

/// List API keys
///
/// Returns one page of the caller's API keys, newest first. Revoked keys are not listed.
#[utoipa::path(get, operation_id = "listApiKeys", path = "/api-keys", tag = "api-keys", params(PageQuery),
    responses((status = 200, description = "One page of API keys.", body = ApiKeyList)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Query(query): Query<PageQuery>,
) -> Answer<axum::Json<ApiKeyList>> {
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

/// Get an API key
///
/// Returns one of the caller's API keys, without the key itself.
#[utoipa::path(get, operation_id = "getApiKey", path = "/api-keys/{key}", tag = "api-keys", params(KeyParameter),
    responses((status = 200, description = "The API key.", body = ApiKeyBody)))]
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<ApiKeyId>,
) -> Answer<axum::Json<ApiKeyBody>> {
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

/// Revoke an API key
///
/// The key is refused from now on, and the streams that were opened with it end; so do the keys
/// that it created. A key without `management` may revoke only itself and the keys that it created.
#[utoipa::path(delete, operation_id = "revokeApiKey", path = "/api-keys/{key}", tag = "api-keys", params(KeyParameter),
    responses((status = 204, description = "The key is revoked.")))]
pub(crate) async fn revoke(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(id): Path<ApiKeyId>,
) -> Answer<StatusCode> {
    let creator = match &principal.credential {
        Credential::ApiKey { id } if !may_manage(&principal) => Some(id.clone()),
        _ => None,
    };
    let request = rpc::RevokeKeyRequest {
        owner: principal.user,
        id,
        creator,
    };
    gateway
        .bus
        .call::<rpc::RevokeKey>(&request, CREDENTIAL_CHANGE_DEADLINE)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
