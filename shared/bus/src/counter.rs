//! Counters that several replicas increment. JetStream adds atomically and replies with the exact
//! total, in one round trip.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use bytes::Bytes;
use serde::de::Error as _;

use crate::error::BusError;
use crate::replies::Replies;

/// NATS' own header: the number to add.
const INCREMENT: &str = "Nats-Incr";

/// Adds `by` to the counter at `subject` and returns its total.
pub(crate) async fn increment(
    replies: &Replies,
    subject: String,
    by: i64,
    deadline: Duration,
) -> Result<u64, BusError> {
    let mut headers = HeaderMap::new();
    headers.insert(INCREMENT, by.to_string());
    let reply = replies
        .request(subject, headers, Bytes::new(), deadline)
        .await
        .map_err(BusError::nats("incrementing a counter"))?;
    let answer: Response<PublishAck> = serde_json::from_slice(&reply.payload)?;
    let ack = match answer {
        Response::Ok(ack) => ack,
        Response::Err { error } => {
            return Err(BusError::nats("incrementing a counter")(error));
        }
    };
    ack.value
        .and_then(|total| total.parse().ok())
        .ok_or_else(|| serde_json::Error::custom("the field `val` is not a total").into())
}
