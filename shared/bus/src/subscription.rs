//! Joining a queue group and leaving it without losing a message.

use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Subscriber};
use bytes::Bytes;
use futures::StreamExt;

use crate::error::BusError;

/// How long the server may take to confirm a subscription.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(5);
/// More messages than any subscription gets, and more digits than the server reads.
const NO_MORE: u64 = 1_000_000_000_000;

/// Waits until the server has done what `client` has asked for: it works in order, so what
/// it is sent after that comes back after that. Only a service that may publish into its
/// own inbox, one that serves requests, may ask.
///
/// # Errors
/// When the server does not answer in time.
pub(crate) async fn confirm(client: &Client) -> Result<(), BusError> {
    let operation = "confirming a subscription";
    let echo = async {
        let inbox = client.new_inbox();
        let mut echoes = client
            .subscribe(inbox.clone())
            .await
            .map_err(BusError::nats(operation))?;
        client
            .publish(inbox, Bytes::new())
            .await
            .map_err(BusError::nats(operation))?;
        echoes.next().await.ok_or(BusError::Disconnected).map(drop)
    };
    tokio::time::timeout(CONFIRM_DEADLINE, echo)
        .await
        .unwrap_or(Err(BusError::Deadline(CONFIRM_DEADLINE)))
}

/// Leaves the queue groups of `subscriptions`. Each still returns what the server had sent
/// by then, and then ends.
///
/// The client library's `drain` forgets a subscription before the server has heard of it,
/// and drops what comes in between.
/// A limit that the server cannot read ends the subscription there at once, and leaves it
/// standing here. A server that learns to read it makes this a plain `unsubscribe`.
pub(crate) async fn leave(
    client: &Client,
    subscriptions: impl IntoIterator<Item = &mut Subscriber>,
) {
    let mut subscriptions: Vec<_> = subscriptions.into_iter().collect();
    // A connection that is gone has left the groups anyway; errors say no more than that.
    if client.connection_state() == State::Connected {
        for subscription in &mut subscriptions {
            let _ = subscription.unsubscribe_after(NO_MORE).await;
        }
        if let Err(error) = confirm(client).await {
            tracing::warn!(%error, "leaving before the server has confirmed it");
        }
    }
    for subscription in subscriptions {
        let _ = subscription.unsubscribe().await;
    }
}
