//! What a running box uses now.

use std::time::Duration;

use agentbox_box_protocol::proto;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{UsageReply, UsageRequest};
use tracing::Instrument as _;

use crate::boxes::trace::{call_span, traced};
use crate::boxes::{BoxError, Lease};
use crate::clusters::Cluster;
use crate::metrics;

const DEADLINE: Duration = Duration::from_secs(2);
/// Of the cluster: boxd is asked after it, and the gateway waits for 300 ms in all.
const MEASURED_DEADLINE: Duration = Duration::from_millis(150);

/// # Errors
/// `NotRunning` when the box cannot be reached, `Timeout` when it does not answer.
pub async fn answer(cluster: &Cluster, request: UsageRequest) -> Result<UsageReply, Error> {
    if let Some(measured) = measured(cluster, &request).await {
        return Ok(measured);
    }
    let asked = async {
        let lease = cluster
            .boxes
            .borrow(&request.environment, request.address)?;
        match ask(&lease).await {
            // A kept connection may have died unnoticed; asking again is harmless.
            Err(BoxError::Lost(_)) => ask(&lease).await,
            other => other,
        }
    };
    let result = match tokio::time::timeout(DEADLINE, asked).await {
        Ok(result) => result.map_err(|error| error.public()),
        Err(_) => Err(Error::new(
            ErrorCode::Timeout,
            "the box does not say what it uses",
        )),
    };
    result.inspect_err(|error| metrics::failed("usage", error.code))
}

/// As the cluster measures it. It knows more than boxd: what the sandbox itself uses.
async fn measured(cluster: &Cluster, request: &UsageRequest) -> Option<UsageReply> {
    let asked = cluster.boxes.connector().usage(&request.environment);
    match tokio::time::timeout(MEASURED_DEADLINE, asked).await {
        Ok(Ok(usage)) => usage.map(|usage| UsageReply {
            cpu_milli: usage.cpu.0,
            memory_bytes: usage.memory.0,
        }),
        Ok(Err(error)) => {
            tracing::debug!(%error, "the cluster does not measure");
            None
        }
        Err(_) => None,
    }
}

async fn ask(lease: &Lease) -> Result<UsageReply, BoxError> {
    let span = call_span("Usage");
    let mut connection = lease.connection().instrument(span.clone()).await?;
    let request = traced(&span, proto::UsageRequest {});
    match connection.client.usage(request).instrument(span).await {
        Ok(usage) => {
            let usage = usage.into_inner();
            Ok(UsageReply {
                cpu_milli: usage.cpu_milli,
                memory_bytes: usage.memory_bytes,
            })
        }
        Err(status) => {
            let error = BoxError::from_status(status);
            if matches!(error, BoxError::Lost(_)) {
                lease.lost(connection.number).await;
            }
            Err(error)
        }
    }
}
