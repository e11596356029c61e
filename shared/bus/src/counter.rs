//! Sums that are exact across replicas: a JetStream counter stream adds atomically and
//! answers with the total, in one round trip.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use bytes::Bytes;

use crate::connection::Bus;
use crate::error::BusError;

/// NATS' own header: add so much.
const INCREMENT: &str = "Nats-Incr";

impl Bus {
    /// Adds `by` to the counter at `subject` and returns its total.
    ///
    /// # Errors
    /// When JetStream does not answer within `deadline` or refuses.
    pub async fn increment(
        &self,
        subject: String,
        by: u64,
        deadline: Duration,
    ) -> Result<u64, BusError> {
        if !self.is_connected() {
            return Err(BusError::Disconnected);
        }
        let mut headers = HeaderMap::new();
        headers.insert(INCREMENT, by.to_string());
        let reply = self
            .replies()
            .request(subject, headers, Bytes::new(), deadline)
            .await
            .map_err(BusError::nats("incrementing a counter"))?;
        let answer: Response<PublishAck> = serde_json::from_slice(&reply.payload)
            .map_err(|error| BusError::Malformed(error.to_string()))?;
        let ack = match answer {
            Response::Ok(ack) => ack,
            Response::Err { error } => {
                return Err(BusError::nats("incrementing a counter")(error));
            }
        };
        ack.value
            .and_then(|total| total.parse().ok())
            .ok_or_else(|| BusError::Malformed("a counter's answer has no total".to_owned()))
    }
}
