//! Provisioner: creates and updates the streams and buckets of NATS.
//!
//! It is the only user of NATS with these permissions, and it has no others. It never reads or
//! writes a message of a stream. A local instance does without it: `agentbox-local` does the same
//! at its start.
//!
//! * I1. The streams have the configuration of `agentbox_bus` when the service is ready.
//! * I2. After each reconnect the streams are created again, because the server may have lost its
//!   data.

mod config;

use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::ErrorChain;
use agentbox_service::{Context, ServiceFuture};
use anyhow::Context as _;
use tokio::sync::watch;

pub use config::Config;

/// The wait after a failed attempt.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Creates the streams, and keeps them until the context's shutdown.
///
/// # Errors
/// When JetStream refuses a stream or does not answer.
pub fn run(_config: Config, context: Context) -> ServiceFuture {
    Box::pin(start(context))
}

async fn start(context: Context) -> Result<(), anyhow::Error> {
    let Context {
        bus,
        shutdown,
        tasks,
        ..
    } = context;
    let reconnects = bus.reconnects();
    bus.provision()
        .await
        .context("the streams cannot be created")?;
    tasks.spawn("streams", async move {
        shutdown
            .run_until_cancelled(keep_streams(bus, reconnects))
            .await;
        Ok(())
    });
    Ok(())
}

/// Creates the streams again after each reconnect.
async fn keep_streams(bus: Bus, mut reconnects: watch::Receiver<u64>) {
    // An error means that the bus was dropped, and this task holds it.
    while reconnects.changed().await.is_ok() {
        while let Err(error) = bus.provision().await {
            tracing::warn!(error = %ErrorChain(&error), "streams not created; retried");
            tokio::time::sleep(RETRY_DELAY).await;
        }
        tracing::info!("streams created or updated");
    }
}
