//! `/health`: the health of the whole system, and of this process.

use std::time::Duration;

use agentbox_api::error::ErrorBody;
use agentbox_api::health::{CapacityBody, ClusterState, Health, NamedCluster, Probe, Unhealthy};
use agentbox_contracts::environment::rpc::{self, ClusterHealth};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity;
use agentbox_contracts::rpc::Empty;
use agentbox_contracts::units::{Bytes, MilliCpu};
use axum::extract::State;
use axum::response::{IntoResponse, Response};

use crate::edge::error::ApiError;
use crate::state::Gateway;

const DEADLINE: Duration = Duration::from_secs(3);
/// Memory is shown in whole mebibytes.
const MEBIBYTE: u64 = 1024 * 1024;

/// Why the system is unhealthy; `None` if it is healthy.
fn unhealthy_reason(
    scheduler: &Result<rpc::HealthReply, Error>,
    auth: &Result<Empty, Error>,
) -> Option<String> {
    match (scheduler, auth) {
        (Err(error), _) => Some(format!(
            "the scheduler cannot be reached: {}",
            error.message
        )),
        (Ok(reply), _) if !reply.database => Some("the database cannot be reached".to_owned()),
        (Ok(reply), _) if !reply.clusters.iter().any(|cluster| cluster.connected) => {
            Some("no cluster is connected".to_owned())
        }
        (Ok(_), Err(error)) => Some(format!("auth cannot be reached: {}", error.message)),
        (Ok(_), Ok(_)) => None,
    }
}

fn summary(clusters: &[ClusterHealth], is_healthy: bool) -> Health {
    let up = || clusters.iter().filter(|cluster| cluster.connected);
    let all_connected = up().count() == clusters.len();
    let status = match (is_healthy, all_connected) {
        (false, _) => "unhealthy",
        (true, false) => "degraded",
        (true, true) => "healthy",
    };
    let memory: u64 = up().map(|cluster| cluster.available_memory_bytes).sum();
    Health {
        status: status.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kubernetes: ClusterState {
            connected: up().next().is_some() && all_connected,
            version: up()
                .next()
                .or(clusters.first())
                .map(|cluster| cluster.version.clone())
                .unwrap_or_default(),
            enforcement: match clusters {
                [one] => one.enforcement,
                _ => None,
            },
        },
        capacity: CapacityBody {
            total_nodes: up().map(|cluster| cluster.nodes).sum(),
            available_cpu: MilliCpu(up().map(|cluster| cluster.available_cpu_milli).sum())
                .to_string(),
            available_memory: Bytes(memory / MEBIBYTE * MEBIBYTE).to_string(),
        },
        clusters: match clusters {
            [_] => Vec::new(),
            several => several.iter().map(named).collect(),
        },
    }
}

fn named(cluster: &ClusterHealth) -> NamedCluster {
    NamedCluster {
        name: cluster.name.clone(),
        state: ClusterState {
            connected: cluster.connected,
            version: cluster.version.clone(),
            enforcement: cluster.enforcement,
        },
    }
}

/// Get the health of the system
///
/// The system is unhealthy (503) if the message bus, the scheduler, the database, auth or every
/// cluster cannot be reached. It is degraded (200) if some clusters cannot be reached.
#[utoipa::path(get, operation_id = "getHealth", path = "/health", tag = "system",
    responses((status = 200, description = "The system is healthy or degraded.", body = Health),
        (status = 503, description = "The system is unhealthy. `message` says why.", body = Unhealthy)))]
pub(crate) async fn health(State(gateway): State<Gateway>) -> Response {
    let (scheduler, auth) = tokio::join!(
        gateway.bus.call::<rpc::Health>(&Empty {}, DEADLINE),
        gateway
            .bus
            .call::<identity::rpc::Ready>(&Empty {}, DEADLINE),
    );
    let reason = unhealthy_reason(&scheduler, &auth);
    let clusters = scheduler.map(|reply| reply.clusters).unwrap_or_default();
    let health = summary(&clusters, reason.is_none());
    let Some(reason) = reason else {
        return axum::Json(health).into_response();
    };
    let error = Error::new(ErrorCode::Unavailable, reason);
    let body = axum::Json(Unhealthy {
        health,
        error: ErrorBody::from(&error),
    });
    // Status and headers are those of every 503.
    let (parts, _) = ApiError(error).into_response().into_parts();
    let mut response = body.into_response();
    *response.status_mut() = parts.status;
    if let Some(retry) = parts.headers.get(axum::http::header::RETRY_AFTER) {
        let retry = retry.clone();
        response
            .headers_mut()
            .insert(axum::http::header::RETRY_AFTER, retry);
    }
    response
}

fn probe() -> axum::Json<Probe> {
    axum::Json(Probe {
        status: "ok".to_owned(),
    })
}

/// Check that this replica is alive
///
/// The liveness probe of this replica of the API server.
#[utoipa::path(get, operation_id = "getLiveness", path = "/health/live", tag = "system",
    responses((status = 200, description = "The replica is alive.", body = Probe)))]
pub(crate) async fn live() -> axum::Json<Probe> {
    probe()
}

/// Check that this replica is ready
///
/// The readiness probe of this replica of the API server: it is connected to the message bus,
/// has read where environments run, and is not about to stop.
#[utoipa::path(get, operation_id = "getReadiness", path = "/health/ready", tag = "system",
    responses((status = 200, description = "The replica is ready for requests.", body = Probe)))]
pub(crate) async fn ready(State(gateway): State<Gateway>) -> Result<axum::Json<Probe>, ApiError> {
    let missing = if gateway.draining.is_cancelled() {
        "this replica is about to stop"
    } else if !gateway.bus.is_connected() {
        "the message bus is not connected"
    } else if !gateway.routes.is_synced() {
        "the route table has not been read yet"
    } else {
        return Ok(probe());
    };
    Err(Error::new(ErrorCode::Unavailable, missing).into())
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::environment::{Enforcement, LimitEnforcement};

    use super::*;

    fn cluster(connected: bool) -> ClusterHealth {
        ClusterHealth {
            name: "local".into(),
            driver: "containerd".into(),
            connected,
            version: "containerd 1.6.20".into(),
            nodes: 3,
            available_cpu_milli: 24_000,
            available_memory_bytes: (48 << 30) + 17,
            enforcement: connected.then(|| LimitEnforcement {
                storage: Enforcement::Measured,
                bandwidth: Enforcement::Enforced,
                ..LimitEnforcement::default()
            }),
        }
    }

    fn reply(database: bool, clusters: &[bool]) -> Result<rpc::HealthReply, Error> {
        Ok(rpc::HealthReply {
            database,
            clusters: clusters.iter().map(|up| cluster(*up)).collect(),
        })
    }

    #[test]
    fn health_has_the_documented_fields() {
        let health = serde_json::to_value(summary(&[cluster(true)], true)).unwrap();
        let expected = serde_json::json!({
            "status": "healthy",
            "version": env!("CARGO_PKG_VERSION"),
            "kubernetes": {
                "connected": true,
                "version": "containerd 1.6.20",
                "enforcement": {
                    "storage": "measured",
                    "user_namespaces": "absent",
                    "bandwidth": "enforced",
                    "connections": "absent",
                    "block_io": "absent",
                    "image_volumes": "absent",
                },
            },
            "capacity": {"total_nodes": 3, "available_cpu": "24", "available_memory": "48Gi"}
        });
        assert_eq!(health, expected);
    }

    #[test]
    fn missing_part_makes_the_system_unhealthy() {
        let auth = || Ok(Empty {});
        let down = || Error::new(ErrorCode::Unavailable, "down");
        let reason = |scheduler, auth| unhealthy_reason(&scheduler, &auth).unwrap_or_default();
        assert_eq!(reason(reply(true, &[true]), auth()), "");
        assert_eq!(reason(reply(true, &[true, false]), auth()), "");
        let no_database = "the database cannot be reached";
        assert_eq!(reason(reply(false, &[true]), auth()), no_database);
        let no_cluster = "no cluster is connected";
        assert_eq!(reason(reply(true, &[false]), auth()), no_cluster);
        assert_eq!(reason(reply(true, &[]), auth()), no_cluster);
        let no_scheduler = "the scheduler cannot be reached: down";
        assert_eq!(reason(Err(down()), auth()), no_scheduler);
        let no_auth = "auth cannot be reached: down";
        assert_eq!(reason(reply(true, &[true]), Err(down())), no_auth);
    }

    #[test]
    fn disconnected_cluster_is_reported_and_not_counted() {
        let clusters = [cluster(true), cluster(false)];
        let health = summary(&clusters, true);
        assert_eq!(health.status, "degraded");
        assert!(!health.kubernetes.connected);
        assert_eq!(health.capacity.total_nodes, 3);
        let connected: Vec<bool> = health.clusters.iter().map(|c| c.state.connected).collect();
        assert_eq!(connected, [true, false]);
        // Each cluster has its own, and all of them together have none.
        let reported = |state: &ClusterState| state.enforcement.is_some();
        let reports: Vec<bool> = health.clusters.iter().map(|c| reported(&c.state)).collect();
        assert_eq!(
            (reported(&health.kubernetes), &reports[..]),
            (false, &[true, false][..])
        );
        assert_eq!(summary(&[], false).status, "unhealthy");
    }
}
