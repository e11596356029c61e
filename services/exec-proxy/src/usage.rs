//! The current resource usage of a running box, and the counters that meter it.

use std::time::Duration;

use agentbox_box_protocol::proto;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{MeterReply, UsageReply, UsageRequest};
use tracing::Instrument as _;

use crate::boxes::trace::{call_span, traced};
use crate::boxes::{BoxError, Lease};
use crate::clusters::Cluster;
use crate::metrics;

const DEADLINE: Duration = Duration::from_secs(2);
/// The deadline of the cluster's own measurement. boxd is asked after it, and the gateway
/// waits for 300 ms in total.
const CLUSTER_DEADLINE: Duration = Duration::from_millis(150);

/// Answers a usage request.
///
/// # Errors
/// `NotRunning` when the box cannot be reached, `Timeout` when it does not answer.
pub async fn answer(cluster: &Cluster, request: UsageRequest) -> Result<UsageReply, Error> {
    if let Some(usage) = cluster_usage(cluster, &request).await {
        return Ok(usage);
    }
    let lease = cluster
        .boxes
        .lease_request(&request.environment, request.address);
    let result = ask_boxd(lease).await;
    let usage = result.inspect_err(|error| metrics::failed("usage", error.code))?;
    Ok(UsageReply {
        cpu_milli: usage.cpu_milli,
        memory_bytes: usage.memory_bytes,
    })
}

/// Answers a request for the counters of a box.
///
/// # Errors
/// As [`answer`].
pub async fn meter(cluster: &Cluster, request: UsageRequest) -> Result<MeterReply, Error> {
    // Every running box is metered once a minute, which is more often than connections become idle.
    let lease = cluster
        .boxes
        .lease_periodic(&request.environment, request.address);
    let result = ask_boxd(lease).await;
    let usage = result.inspect_err(|error| metrics::failed("meter", error.code))?;
    Ok(MeterReply {
        cpu_usage_ns: usage.cpu_usage_nanos,
        egress_bytes: usage.egress_bytes,
    })
}

/// Asks boxd, for at most [`DEADLINE`].
async fn ask_boxd(lease: Result<Lease, BoxError>) -> Result<proto::UsageReply, Error> {
    let asked = async {
        let lease = lease?;
        match boxd_usage(&lease).await {
            // A kept connection may have died unnoticed; asking again is harmless.
            Err(BoxError::Lost(_)) => boxd_usage(&lease).await,
            other => other,
        }
    };
    match tokio::time::timeout(DEADLINE, asked).await {
        Ok(result) => result.map_err(|error| error.public()),
        Err(_) => Err(Error::new(
            ErrorCode::Timeout,
            "the box did not report its usage in time",
        )),
    }
}

/// The usage as the cluster measures it. It includes the sandbox.
async fn cluster_usage(cluster: &Cluster, request: &UsageRequest) -> Option<UsageReply> {
    let asked = cluster.boxes.connector().usage(&request.environment);
    match tokio::time::timeout(CLUSTER_DEADLINE, asked).await {
        Ok(Ok(usage)) => usage.map(|usage| UsageReply {
            cpu_milli: usage.cpu.0,
            memory_bytes: usage.memory.0,
        }),
        Ok(Err(error)) => {
            tracing::debug!(error = %ErrorChain(&error), "the cluster did not report usage");
            None
        }
        Err(_) => None,
    }
}

/// The usage as boxd reports it.
async fn boxd_usage(lease: &Lease) -> Result<proto::UsageReply, BoxError> {
    let span = call_span("Usage");
    let mut connection = lease.connection().instrument(span.clone()).await?;
    let request = traced(&span, proto::UsageRequest {});
    match connection.client.usage(request).instrument(span).await {
        Ok(usage) => Ok(usage.into_inner()),
        Err(status) => {
            let error = BoxError::from_status(status);
            if matches!(error, BoxError::Lost(_)) {
                lease.mark_lost(connection.number);
            }
            Err(error)
        }
    }
}
