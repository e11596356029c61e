//! The lag of a durable consumer: how many messages wait for it.
//!
//! * I1. A consumer that is stuck, or whose replicas are all busy, is measured too: the server is asked.

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::error::BusError;
use crate::metrics;

const INTERVAL: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(2);
const MEASURING: &str = "measuring the lag of a consumer";

/// Measures the lag of `consumer` until `shutdown`.
pub(crate) async fn measure(
    client: Client,
    stream: &'static str,
    consumer: String,
    shutdown: CancellationToken,
) {
    while !shutdown.is_cancelled() {
        if let Err(error) = measure_once(&client, stream, &consumer).await {
            metrics::consumer_lag_unknown(&consumer);
            tracing::debug!(error = %ErrorChain(&error), consumer, "lag of a consumer not measured");
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
    metrics::consumer_lag_unknown(&consumer);
}

async fn measure_once(
    client: &Client,
    stream: &'static str,
    consumer: &str,
) -> Result<(), BusError> {
    if !client.is_connected() {
        return Err(BusError::Disconnected);
    }
    let asked = async {
        client
            .jetstream()
            .get_stream_no_info(stream)
            .await
            .map_err(BusError::nats(MEASURING))?
            .consumer_info(consumer)
            .await
            .map_err(BusError::nats(MEASURING))
    };
    let info = tokio::time::timeout(DEADLINE, asked)
        .await
        .map_err(|_| BusError::Deadline(DEADLINE))??;
    metrics::consumer_lag(consumer, info.num_pending, info.num_ack_pending);
    Ok(())
}
