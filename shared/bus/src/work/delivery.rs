//! One delivery of a command: check it, process it, acknowledge it.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use agentbox_contracts::ErrorChain;
use async_nats::jetstream::{AckKind, Message};
use futures::FutureExt;
use tracing::Instrument;

use super::{Command, Retry};
use crate::client::Client;
use crate::message::is_expired;
use crate::{dead_letter, metrics, trace};

/// The wait before the next attempt after a panic.
const PANIC_RETRY_DELAY: Duration = Duration::from_secs(1);
/// The wait before the next attempt to write a dead letter.
const DEAD_LETTER_RETRY_DELAY: Duration = Duration::from_secs(5);

/// One delivery that is not acknowledged yet.
pub(super) struct Delivery {
    pub(super) client: Client,
    pub(super) ack_wait: Duration,
    pub(super) max_deliver: i64,
    pub(super) message: Message,
}

impl Delivery {
    pub(super) async fn process<F, Fut>(&self, handler: &F)
    where
        F: Fn(Command) -> Fut,
        Fut: Future<Output = Result<(), Retry>>,
    {
        let message = &self.message;
        let attempt = message.info().map_or(1, |info| info.delivered);
        if is_expired(message.headers.as_ref()) {
            metrics::command_expired();
            tracing::info!(subject = %message.subject, attempt, "command expired");
            self.acknowledge(AckKind::Term).await;
            return;
        }
        if attempt > self.max_deliver {
            self.dead_letter("no attempt completed").await;
            return;
        }
        let begun = Instant::now();
        let span = trace::process_span(message.subject.as_str(), message.headers.as_ref());
        let command = Command {
            subject: message.subject.to_string(),
            body: message.payload.clone(),
            attempt: u32::try_from(attempt).unwrap_or(u32::MAX),
        };
        let work = AssertUnwindSafe(async { handler(command).await })
            .catch_unwind()
            .instrument(span.clone());
        tokio::pin!(work);
        let mut progress = tokio::time::interval(self.ack_wait / 3);
        progress.tick().await;
        let outcome = loop {
            tokio::select! {
                outcome = &mut work => break outcome.unwrap_or_else(|_| {
                    Err(Retry { after: PANIC_RETRY_DELAY, reason: "the handler panicked".to_owned() })
                }),
                _ = progress.tick() => self.acknowledge(AckKind::Progress).await,
            }
        };
        let error = match &outcome {
            Ok(()) => "",
            Err(_) if attempt >= self.max_deliver => "dead_letter",
            Err(_) => "retry",
        };
        let destination = trace::template(message.subject.as_str());
        metrics::command_processed(destination, error, begun.elapsed());
        match outcome {
            Ok(()) => self.acknowledge(AckKind::Ack).await,
            Err(retry) if attempt >= self.max_deliver => {
                self.dead_letter(&retry.reason).instrument(span).await;
            }
            Err(retry) => {
                tracing::info!(parent: &span, attempt, reason = retry.reason, "command failed; it is delivered again");
                self.acknowledge(AckKind::Nak(Some(retry.after))).await;
            }
        }
    }

    /// Stores the command as a dead letter, then removes it from the queue.
    async fn dead_letter(&self, reason: &str) {
        let message = &self.message;
        match dead_letter::store(&self.client, message, reason).await {
            Ok(()) => {
                tracing::error!(subject = %message.subject, reason, "command became a dead letter");
                self.acknowledge(AckKind::Term).await;
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "dead letter not written; retried");
                self.acknowledge(AckKind::Nak(Some(DEAD_LETTER_RETRY_DELAY)))
                    .await;
            }
        }
    }

    pub(super) async fn acknowledge(&self, kind: AckKind) {
        if let Err(error) = self.message.ack_with(kind).await {
            // The server delivers the command again.
            tracing::debug!(error = %ErrorChain(&*error), "acknowledgement not sent");
        }
    }
}
