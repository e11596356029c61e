//! `/pools`: the warm pools, for administrators.

use agentbox_api::pool::{PoolBody, PoolList, SetPool};
use agentbox_api::user::PageQuery;
use agentbox_contracts::pool::rpc;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};

use crate::edge::path::{PoolName, PoolParameter};
use crate::edge::query::page;
use crate::edge::{Answer, Json, Path, Query};
use crate::state::{Gateway, SCHEDULER_DEADLINE};

/// List pools
///
/// Returns one page of the warm pools, by their names, with the state of each. Only administrators may.
#[utoipa::path(get, operation_id = "listPools", path = "/pools", tag = "pools", params(PageQuery),
    responses((status = 200, description = "One page of pools.", body = PoolList)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Query(query): Query<PageQuery>,
) -> Answer<axum::Json<PoolList>> {
    let (limit, offset) = page(query.limit, query.offset)?;
    let request = rpc::ListPoolsRequest { limit, offset };
    let reply = gateway
        .bus
        .call::<rpc::ListPools>(&request, SCHEDULER_DEADLINE)
        .await?;
    Ok(axum::Json(PoolList {
        pools: reply.pools.into_iter().map(PoolBody::from).collect(),
        total: reply.total,
        limit,
        offset,
    }))
}

/// Get a pool
///
/// Returns one warm pool with its state: the boxes that are ready, and the environments that got one
/// or did not, by the reason. Only administrators may.
#[utoipa::path(get, operation_id = "getPool", path = "/pools/{pool}", tag = "pools", params(PoolParameter),
    responses((status = 200, description = "The pool and its present state.", body = PoolBody)))]
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    Path(name): Path<PoolName>,
) -> Answer<axum::Json<PoolBody>> {
    let request = rpc::GetPoolRequest { name };
    let pool = gateway
        .bus
        .call::<rpc::GetPool>(&request, SCHEDULER_DEADLINE)
        .await?;
    Ok(axum::Json(pool.into()))
}

/// Define a pool
///
/// Defines a warm pool, or replaces its definition. Its boxes are started before an environment needs
/// one; a create request that matches the pool gets one of them, and is answered with an environment
/// that runs. Boxes that no longer match a changed definition are removed. A deployment has at most 64
/// pools. Only administrators may.
#[utoipa::path(put, operation_id = "setPool", path = "/pools/{pool}", tag = "pools",
    params(PoolParameter), request_body = SetPool,
    responses(
        (status = 200, description = "The replaced pool.", body = PoolBody),
        (status = 201, description = "The new pool.", body = PoolBody)))]
pub(crate) async fn set(
    State(gateway): State<Gateway>,
    Path(name): Path<PoolName>,
    Json(body): Json<SetPool>,
) -> Answer<Response> {
    let request = rpc::SetPoolRequest {
        name,
        spec: body.into(),
    };
    let reply = gateway
        .bus
        .call::<rpc::SetPool>(&request, SCHEDULER_DEADLINE)
        .await?;
    let status = if reply.is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let body = axum::Json(PoolBody::from(reply.pool));
    Ok((status, body).into_response())
}

/// Delete a pool
///
/// Deletes a warm pool. Its boxes are removed, except those that environments have got. Only
/// administrators may.
#[utoipa::path(delete, operation_id = "deletePool", path = "/pools/{pool}", tag = "pools",
    params(PoolParameter),
    responses((status = 204, description = "The pool is deleted, and its boxes will be removed.")))]
pub(crate) async fn delete(
    State(gateway): State<Gateway>,
    Path(name): Path<PoolName>,
) -> Answer<StatusCode> {
    let request = rpc::DeletePoolRequest { name };
    gateway
        .bus
        .call::<rpc::DeletePool>(&request, SCHEDULER_DEADLINE)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
