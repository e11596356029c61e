//! Joins and leaves queue groups without losing a message.

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use async_nats::connection::State;
use async_nats::{Client, Subscriber};
use bytes::Bytes;
use futures::StreamExt;

use crate::error::BusError;

/// How long the server may take to confirm a subscription.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(5);
/// More messages than any subscription gets, with more digits than the server parses.
const NO_MORE: u64 = 1_000_000_000_000;

/// Waits until the server has processed everything that `client` has sent. The server works
/// in order, so a message to this client's own inbox arrives after that. Only a service that
/// serves requests may publish to its own inbox, so no other can use this.
///
/// # Errors
/// When the server does not answer in time.
pub(crate) async fn confirm(client: &Client) -> Result<(), BusError> {
    let operation = "confirming subscriptions";
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

/// Leaves the queue groups of `subscriptions`. Each still returns the messages that the
/// server has sent by then, and then ends.
///
/// The client library's `drain` removes a subscription before the server knows of it, and
/// drops the messages in between. A message limit that is too large for the server to parse
/// ends the subscription at the server at once and keeps it here. With a server that can
/// parse it, this is a plain `unsubscribe`.
pub(crate) async fn leave(
    client: &Client,
    subscriptions: impl IntoIterator<Item = &mut Subscriber>,
) {
    let mut subscriptions: Vec<_> = subscriptions.into_iter().collect();
    // A lost connection has left the groups anyway, so errors do not matter here.
    if client.connection_state() == State::Connected {
        for subscription in &mut subscriptions {
            let _ = subscription.unsubscribe_after(NO_MORE).await;
        }
        if let Err(error) = confirm(client).await {
            tracing::warn!(error = %ErrorChain(&error), "unsubscribe not confirmed by the server");
        }
    }
    for subscription in subscriptions {
        let _ = subscription.unsubscribe().await;
    }
}
