//! `/clusters`: the clusters of the deployment, cordon and drain. For administrators.

use agentbox_api::cluster::{ClusterBody, ClusterList, DrainQuery};
use agentbox_api::user::PageQuery;
use agentbox_contracts::cluster::{DEFAULT_DRAIN_TIMEOUT_S, rpc};
use agentbox_contracts::rpc::Empty;
use axum::extract::State;

use crate::edge::path::{ClusterName, ClusterParameter};
use crate::edge::query::page;
use crate::edge::{Answer, Path, Query};
use crate::state::{Gateway, SCHEDULER_DEADLINE};

/// List clusters
///
/// Returns one page of the clusters of the configuration, by their names, with their capacity and the
/// environments that they have now.
#[utoipa::path(get, operation_id = "listClusters", path = "/clusters", tag = "clusters", params(PageQuery),
    responses((status = 200, description = "One page of clusters.", body = ClusterList)))]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    Query(query): Query<PageQuery>,
) -> Answer<axum::Json<ClusterList>> {
    let (limit, offset) = page(query.limit, query.offset)?;
    let reply = gateway
        .bus
        .call::<rpc::ListClusters>(&Empty {}, SCHEDULER_DEADLINE)
        .await?;
    let total = reply.clusters.len() as u64;
    let before = usize::try_from(offset).unwrap_or(usize::MAX);
    let clusters = reply.clusters.into_iter().skip(before).take(limit as usize);
    Ok(axum::Json(ClusterList {
        clusters: clusters.map(ClusterBody::from).collect(),
        total,
        limit,
        offset,
    }))
}

/// Cordon a cluster
///
/// The cluster takes no new environments within two seconds. Those that it has are not affected. A
/// drain that had begun ends no more environments.
#[utoipa::path(post, operation_id = "cordonCluster", path = "/clusters/{cluster}/cordon", tag = "clusters",
    params(ClusterParameter),
    responses((status = 200, description = "The cordoned cluster.", body = ClusterBody)))]
pub(crate) async fn cordon(
    State(gateway): State<Gateway>,
    Path(cluster): Path<ClusterName>,
) -> Answer<axum::Json<ClusterBody>> {
    let cluster = gateway
        .bus
        .call::<rpc::CordonCluster>(&rpc::ClusterRequest { cluster }, SCHEDULER_DEADLINE)
        .await?;
    Ok(axum::Json(cluster.into()))
}

/// Uncordon a cluster
///
/// The cluster takes new environments again within two seconds. It ends a cordon and a drain.
#[utoipa::path(post, operation_id = "uncordonCluster", path = "/clusters/{cluster}/uncordon", tag = "clusters",
    params(ClusterParameter),
    responses((status = 200, description = "The active cluster.", body = ClusterBody)))]
pub(crate) async fn uncordon(
    State(gateway): State<Gateway>,
    Path(cluster): Path<ClusterName>,
) -> Answer<axum::Json<ClusterBody>> {
    let cluster = gateway
        .bus
        .call::<rpc::UncordonCluster>(&rpc::ClusterRequest { cluster }, SCHEDULER_DEADLINE)
        .await?;
    Ok(axum::Json(cluster.into()))
}

/// Drain a cluster
///
/// Cordons the cluster and waits for its environments: they end by themselves, or by their owners. Those
/// that are left after `timeout` are ended, with the reason `EVICTED` and the usual grace period. The
/// state is `draining` until the cluster has no environment, and `drained` after that. A repeated
/// request sets a new deadline.
#[utoipa::path(post, operation_id = "drainCluster", path = "/clusters/{cluster}/drain", tag = "clusters",
    params(ClusterParameter, DrainQuery),
    responses((status = 200, description = "The draining cluster.", body = ClusterBody)))]
pub(crate) async fn drain(
    State(gateway): State<Gateway>,
    Path(cluster): Path<ClusterName>,
    Query(query): Query<DrainQuery>,
) -> Answer<axum::Json<ClusterBody>> {
    let request = rpc::DrainClusterRequest {
        cluster,
        timeout_s: query.timeout.unwrap_or(DEFAULT_DRAIN_TIMEOUT_S),
    };
    let cluster = gateway
        .bus
        .call::<rpc::DrainCluster>(&request, SCHEDULER_DEADLINE)
        .await?;
    Ok(axum::Json(cluster.into()))
}
