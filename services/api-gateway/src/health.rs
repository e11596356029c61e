//! `/health`: whether the system can do its work.

use std::time::Duration;

use agentbox_api::health::{CapacityBody, ClusterState, Health};
use agentbox_contracts::environment::rpc::{self, ClusterHealth};
use agentbox_contracts::units::{Bytes, MilliCpu};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::state::Gateway;

const DEADLINE: Duration = Duration::from_secs(3);

fn summary(clusters: &[ClusterHealth]) -> Health {
    let up: Vec<&ClusterHealth> = clusters
        .iter()
        .filter(|cluster| cluster.connected)
        .collect();
    let connected = !up.is_empty() && up.len() == clusters.len();
    Health {
        status: if connected { "healthy" } else { "unhealthy" }.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kubernetes: ClusterState {
            connected,
            version: up
                .first()
                .map(|cluster| cluster.version.clone())
                .unwrap_or_default(),
        },
        capacity: CapacityBody {
            total_nodes: up.iter().map(|cluster| cluster.nodes).sum(),
            available_cpu: MilliCpu(up.iter().map(|cluster| cluster.available_cpu_milli).sum())
                .to_string(),
            available_memory: Bytes(
                up.iter()
                    .map(|cluster| cluster.available_memory_bytes)
                    .sum(),
            )
            .to_string(),
        },
    }
}

#[utoipa::path(get, path = "/api/v1/health", tag = "system",
    responses((status = 200, body = Health), (status = 503, body = Health)))]
pub(crate) async fn health(State(gateway): State<Gateway>) -> Response {
    let clusters = gateway
        .bus
        .call::<rpc::Health>(&rpc::Empty {}, DEADLINE)
        .await;
    let health = match &clusters {
        Ok(reply) if reply.database => summary(&reply.clusters),
        Ok(reply) => Health {
            status: "unhealthy".to_owned(),
            ..summary(&reply.clusters)
        },
        Err(_) => summary(&[]),
    };
    let status = if health.status == "healthy" {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut response = (status, axum::Json(health)).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response
            .headers_mut()
            .insert("retry-after", axum::http::HeaderValue::from_static("1"));
    }
    response
}

pub(crate) async fn live() -> &'static str {
    "alive\n"
}

pub(crate) async fn ready(State(gateway): State<Gateway>) -> (StatusCode, &'static str) {
    if gateway.bus.is_connected() && gateway.routes.is_synced() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}
