//! Joins and leaves queue groups without losing a message.

use std::time::Duration;

use agentbox_contracts::{ErrorChain, subjects};
use async_nats::Subscriber;
use bytes::Bytes;
use futures::StreamExt;

use crate::client::Client;
use crate::error::BusError;

/// How long the server may take to confirm a subscription.
const CONFIRM_DEADLINE: Duration = Duration::from_secs(5);
/// More messages than any subscription gets, with more digits than the server parses.
const NO_MORE: u64 = 1_000_000_000_000;

/// Waits until the server has processed everything that `client` has sent. The server works
/// in order, so its answer to a request without a responder comes after that.
///
/// # Errors
/// When the connection is lost.
pub(crate) async fn confirm(client: &Client) -> Result<(), BusError> {
    let operation = "confirming subscriptions";
    let nats = client.nats();
    let answered = async {
        let inbox = nats.new_inbox();
        let mut answers = nats
            .subscribe(inbox.clone())
            .await
            .map_err(BusError::nats(operation))?;
        nats.publish_with_reply(
            subjects::confirmation(client.service()),
            inbox,
            Bytes::new(),
        )
        .await
        .map_err(BusError::nats(operation))?;
        answers.next().await.ok_or(BusError::Disconnected).map(drop)
    };
    match tokio::time::timeout(CONFIRM_DEADLINE, answered).await {
        Ok(outcome) => outcome,
        // A user with all permissions that subscribes to all subjects is taken for a responder.
        Err(_) if client.is_connected() => {
            tracing::warn!("subscriptions not confirmed by the server in time; continued");
            Ok(())
        }
        Err(_) => Err(BusError::Deadline(CONFIRM_DEADLINE)),
    }
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
    if client.is_connected() {
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
