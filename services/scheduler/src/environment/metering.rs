//! Metering: what the environments of each user use, by hour.
//!
//! One replica meters every [`METERING_INTERVAL_S`] seconds. Time, and with it reserved CPU, memory and
//! storage, follows from the rows: it is exact, also after an outage of the scheduler. CPU time and
//! egress are counters of the boxes, which are sampled, and once more before a box is stopped. What a
//! box uses between its last sample and an end of its own is not metered: at most one interval.

use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::Environment;
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::UsageRequest;
use agentbox_contracts::exec::rpc::MeterUsage;
use agentbox_contracts::metering::METERING_INTERVAL_S;
use futures::StreamExt as _;
use tokio_util::sync::CancellationToken;

use crate::environment::store::{RunningBox, Store, StoreError, UsageSample};
use crate::metrics;

const INTERVAL: Duration = Duration::from_secs(METERING_INTERVAL_S);
/// Boxes that are asked at a time.
const CONCURRENT_SAMPLES: usize = 32;
/// How long a box may take to answer.
const DEADLINE: Duration = Duration::from_secs(3);
/// Samples that are written together.
const BATCH: usize = 500;

/// Reads the counters of one box.
///
/// # Errors
/// When its exec-proxy or its boxd does not answer in time.
pub async fn sample(bus: &Bus, running: &RunningBox) -> Result<UsageSample, Error> {
    let request = UsageRequest {
        environment: running.id.clone(),
        address: running.address,
    };
    let counters = bus
        .call_cluster::<MeterUsage>(&running.cluster, &request, DEADLINE)
        .await?;
    Ok(UsageSample {
        id: running.id.clone(),
        cpu_ns: counters.cpu_usage_ns,
        egress_bytes: counters.egress_bytes,
    })
}

/// Meters time, samples every running box and purges old hours, once. Stops early when `held` is
/// cancelled.
///
/// # Errors
/// When the database fails.
pub async fn meter(store: &Store, bus: &Bus, held: &CancellationToken) -> Result<(), StoreError> {
    store.meter_time().await?;
    let running = store.running_boxes().await?;
    let samples = futures::stream::iter(running)
        .map(|running| async move {
            match sample(bus, &running).await {
                Ok(sample) => Some(sample),
                Err(error) => {
                    metrics::step_failed("meter");
                    tracing::debug!(error = %ErrorChain(&error), environment.id = %running.id, "box not metered; its next sample has the use");
                    None
                }
            }
        })
        .buffer_unordered(CONCURRENT_SAMPLES)
        .filter_map(std::future::ready)
        .chunks(BATCH);
    let mut samples = std::pin::pin!(samples);
    while let Some(Some(batch)) = held.run_until_cancelled(samples.next()).await {
        store.record_samples(&batch).await?;
    }
    let purged = store.purge_metered_hours().await?;
    if purged > 0 {
        metrics::rows_purged(purged);
    }
    Ok(())
}

/// Meters a box that will be stopped. Not tried again: the use since its last sample is lost.
pub async fn meter_before_stop(store: &Store, bus: &Bus, environment: &Environment) {
    let Some(address) = environment.address else {
        return;
    };
    let running = RunningBox {
        id: environment.id.clone(),
        cluster: environment.cluster.clone(),
        address,
    };
    let recorded = match sample(bus, &running).await {
        Ok(sample) => store.record_samples(&[sample]).await,
        Err(error) => Err(StoreError::Refused(error)),
    };
    if let Err(error) = recorded {
        metrics::step_failed("meter");
        tracing::debug!(error = %ErrorChain(&error), environment.id = %environment.id, "box not metered before the stop");
    }
}

/// Meters until `held` is cancelled.
pub async fn run(store: &Store, bus: &Bus, held: CancellationToken) {
    while !held.is_cancelled() {
        if let Err(error) = meter(store, bus, &held).await {
            tracing::warn!(error = %ErrorChain(&error), "use not metered; retried");
        }
        tokio::select! {
            () = held.cancelled() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}
