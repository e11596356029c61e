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

/// # Errors
/// `NotRunning` when the box cannot be reached, `Timeout` when it does not answer.
pub async fn answer(cluster: &Cluster, request: UsageRequest) -> Result<UsageReply, Error> {
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
                pids: usage.pids,
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
