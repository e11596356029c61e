//! Reports the environments in use to the scheduler, and answers whether a box is in use.
//!
//! * I1. An environment whose report failed is in the next one.

use std::time::Duration;

use agentbox_box_protocol::proto;
use agentbox_bus::Bus;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::ACTIVITY_INTERVAL_S;
use agentbox_contracts::environment::rpc::{MAX_REPORTED, RecordActivity, RecordActivityRequest};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{ActivityReply, ActivityRequest};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::boxes::trace::{call_span, traced};
use crate::boxes::{BoxError, InUse, Lease};
use crate::clusters::Cluster;
use crate::metrics;

/// How long the scheduler may take to record a report.
const REPORT_DEADLINE: Duration = Duration::from_secs(3);
/// How long a box may take to answer.
const DEADLINE: Duration = Duration::from_secs(2);

/// Reports the environments in use at each interval until shutdown, and then once more.
pub async fn report(in_use: InUse, bus: &Bus, shutdown: CancellationToken) {
    let mut ticks = interval(Duration::from_secs(ACTIVITY_INTERVAL_S));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_last = tokio::select! {
            () = shutdown.cancelled() => true,
            _ = ticks.tick() => false,
        };
        for environments in in_use.take().chunks(MAX_REPORTED) {
            let request = RecordActivityRequest {
                environments: environments.to_vec(),
            };
            let reported = bus.call::<RecordActivity>(&request, REPORT_DEADLINE).await;
            if let Err(error) = reported {
                tracing::info!(
                    error = %ErrorChain(&error),
                    environments = environments.len(),
                    "environments in use were not reported; they are in the next report"
                );
                in_use.restore(environments);
            }
        }
        if is_last {
            return;
        }
    }
}

/// Answers whether a box is in use.
///
/// # Errors
/// `NotRunning` when the box cannot be reached, `Timeout` when it does not answer.
pub async fn answer(cluster: &Cluster, request: ActivityRequest) -> Result<ActivityReply, Error> {
    if cluster.boxes.in_use().contains(&request.environment) {
        return Ok(ActivityReply { idle_ms: 0 });
    }
    let asked = async {
        let lease = cluster
            .boxes
            .lease_request(&request.environment, request.address)?;
        match boxd_idle_ms(&lease).await {
            // A kept connection may have died unnoticed; asking again is harmless.
            Err(BoxError::Lost(_)) => boxd_idle_ms(&lease).await,
            other => other,
        }
    };
    let result = match tokio::time::timeout(DEADLINE, asked).await {
        Ok(Ok(idle_ms)) => Ok(ActivityReply { idle_ms }),
        Ok(Err(error)) => Err(error.public()),
        Err(_) => Err(Error::new(
            ErrorCode::Timeout,
            "the box did not report its activity in time",
        )),
    };
    result.inspect_err(|error| metrics::failed("activity", error.code))
}

async fn boxd_idle_ms(lease: &Lease) -> Result<u64, BoxError> {
    let span = call_span("Status");
    let mut connection = lease.connection().instrument(span.clone()).await?;
    let request = traced(&span, proto::StatusRequest {});
    match connection.client.status(request).instrument(span).await {
        Ok(status) => Ok(status.into_inner().idle_ms),
        Err(status) => {
            let error = BoxError::from_status(status);
            if matches!(error, BoxError::Lost(_)) {
                lease.mark_lost(connection.number);
            }
            Err(error)
        }
    }
}
