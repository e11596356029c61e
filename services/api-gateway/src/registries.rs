//! `/registries`: the caller's credentials of registries.

use agentbox_api::registry::{RegistryBody, RegistryList, SetRegistryCredential};
use agentbox_api::user::PageQuery;
use agentbox_contracts::identity::rpc::Secret;
use agentbox_contracts::registry::rpc;
use axum::extract::State;
use axum::http::StatusCode;

use crate::edge::path::{Registry, RegistryParameter};
use crate::edge::query::page;
use crate::edge::{Answer, Caller, Json, Path, Query};
use crate::state::{Gateway, SCHEDULER_DEADLINE};

/// List registries with a credential
///
/// Returns one page of the registries at which the caller has set a credential, by their names. No
/// answer contains a credential.
#[utoipa::path(get, operation_id = "listRegistries", path = "/registries", tag = "registries", params(PageQuery),
    responses((status = 200, description = "One page of registries.", body = RegistryList)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Query(query): Query<PageQuery>,
) -> Answer<axum::Json<RegistryList>> {
    let (limit, offset) = page(query.limit, query.offset)?;
    let request = rpc::ListCredentialsRequest {
        owner: principal.user,
        limit,
        offset,
    };
    let reply = gateway
        .bus
        .call::<rpc::ListCredentials>(&request, SCHEDULER_DEADLINE)
        .await?;
    Ok(axum::Json(RegistryList {
        registries: reply
            .credentials
            .into_iter()
            .map(RegistryBody::from)
            .collect(),
        total: reply.total,
        limit,
        offset,
    }))
}

/// Set the credential of a registry
///
/// Stores the caller's login at a registry that the operator allows, or replaces it. New
/// environments of the caller pull their images from this registry with it. It is stored
/// encrypted, and no answer contains it. One user has at most 32.
#[utoipa::path(put, operation_id = "setRegistryCredential", path = "/registries/{registry}", tag = "registries",
    params(RegistryParameter), request_body = SetRegistryCredential,
    responses((status = 204, description = "The credential is stored.")))]
pub(crate) async fn set(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(registry): Path<Registry>,
    Json(body): Json<SetRegistryCredential>,
) -> Answer<StatusCode> {
    let request = rpc::SetCredentialRequest {
        owner: principal.user,
        registry,
        username: body.username,
        password: Secret(body.password),
    };
    gateway
        .bus
        .call::<rpc::SetCredential>(&request, SCHEDULER_DEADLINE)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Delete the credential of a registry
///
/// New environments of the caller pull their images from this registry without a login. Environments
/// that have started are not affected.
#[utoipa::path(delete, operation_id = "deleteRegistryCredential", path = "/registries/{registry}", tag = "registries",
    params(RegistryParameter),
    responses((status = 204, description = "The credential is deleted.")))]
pub(crate) async fn delete(
    State(gateway): State<Gateway>,
    Caller(principal): Caller,
    Path(registry): Path<Registry>,
) -> Answer<StatusCode> {
    let request = rpc::DeleteCredentialRequest {
        owner: principal.user,
        registry,
    };
    gateway
        .bus
        .call::<rpc::DeleteCredential>(&request, SCHEDULER_DEADLINE)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
