//! Events about executions, of environments whose label asks for them.
//!
//! One replica looks at the boxes of these environments every 2 seconds, and each replica once more
//! before it stops one. What is new becomes events in the outbox, in one transaction with the note that
//! it is reported. So an event is published like every other. Whatever is killed, it is written once, as
//! long as the box lists its execution.
//!
//! * I1. A box is not trusted: one look writes at most [`report::MAX_EVENTS`] events, whatever the box
//!   lists. The others follow.
//! * I2. No event about an execution follows the last event of its environment.

pub mod report;

use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::{Environment, EventExecution};
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::ExecutionsRequest;
use agentbox_contracts::exec::rpc::GetExecutions;
use chrono::Utc;
use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;

use crate::environment::store::{RunningBox, Store, StoreError};

/// The pause between two looks at all boxes.
const INTERVAL: Duration = Duration::from_secs(2);
/// Boxes that are asked at a time.
const CONCURRENT_BOXES: usize = 32;
/// How long a box may take to answer.
const DEADLINE: Duration = Duration::from_secs(3);

async fn listed(bus: &Bus, running: &RunningBox) -> Result<Vec<EventExecution>, Error> {
    let request = ExecutionsRequest {
        environment: running.id.clone(),
        address: running.address,
    };
    let reply = bus
        .call_cluster::<GetExecutions>(&running.cluster, &request, DEADLINE)
        .await?;
    Ok(reply.executions)
}

/// Reports the executions of one box that have started or ended since the last report.
async fn report_box(store: &Store, bus: &Bus, running: &RunningBox) {
    let reported = match listed(bus, running).await {
        Ok(executions) => {
            let reported = store.report_executions(&running.id, &executions, Utc::now());
            reported.await
        }
        Err(error) => Err(StoreError::Refused(error)),
    };
    if let Err(error) = reported {
        tracing::debug!(error = %ErrorChain(&error), environment.id = %running.id, "executions not reported; the next look reports them");
    }
}

/// Looks at every box whose executions have events, once. Stops early when `held` is cancelled.
///
/// # Errors
/// When the database fails.
pub async fn report_all(
    store: &Store,
    bus: &Bus,
    held: &CancellationToken,
) -> Result<(), StoreError> {
    let boxes = store.boxes_with_execution_events().await?;
    let reports = futures::stream::iter(boxes)
        .map(|running| async move { report_box(store, bus, &running).await })
        .buffer_unordered(CONCURRENT_BOXES);
    let mut reports = std::pin::pin!(reports);
    while let Some(Some(())) = held.run_until_cancelled(reports.next()).await {}
    Ok(())
}

/// Looks at a box that will be stopped. Not tried again: what it would report is not reported.
pub async fn report_before_stop(store: &Store, bus: &Bus, environment: &Environment) {
    let Some(address) = environment.address else {
        return;
    };
    if !environment.request.has_execution_events() {
        return;
    }
    let running = RunningBox {
        id: environment.id.clone(),
        cluster: environment.cluster.clone(),
        address,
    };
    report_box(store, bus, &running).await;
}

/// Reports until `held` is cancelled.
pub async fn run(store: &Store, bus: &Bus, held: CancellationToken) {
    while !held.is_cancelled() {
        if let Err(error) = report_all(store, bus, &held).await {
            tracing::warn!(error = %ErrorChain(&error), "executions not reported; retried");
        }
        tokio::select! {
            () = held.cancelled() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}
