//! One delivery of a command: decided, carried out, acknowledged.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use agentbox_contracts::subjects::{self, HEADER_EXPIRES_AT, HEADER_REASON};
use async_nats::jetstream::{AckKind, Message};
use async_nats::{HeaderMap, header};
use futures::FutureExt;
use opentelemetry::trace::TraceContextExt;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{Command, Retry};
use crate::connection::Bus;
use crate::error::BusError;
use crate::rpc::now_unix_ms;
use crate::trace;

/// After a panic.
const PANIC_RETRY: Duration = Duration::from_secs(1);
/// When a dead letter could not be written.
const BURY_RETRY: Duration = Duration::from_secs(5);

/// One delivery, until it is acknowledged one way or another.
pub(super) struct Delivery {
    pub(super) bus: Bus,
    pub(super) ack_wait: Duration,
    pub(super) max_deliver: i64,
    pub(super) message: Message,
}

impl Delivery {
    pub(super) async fn carry_out<F, Fut>(&self, handler: &F)
    where
        F: Fn(Command) -> Fut,
        Fut: Future<Output = Result<(), Retry>>,
    {
        let message = &self.message;
        let attempt = message.info().map_or(1, |info| info.delivered);
        if expires_at(message).is_some_and(|at| at < now_unix_ms()) {
            metrics::counter!("agentbox_commands_expired_total").increment(1);
            tracing::info!(subject = %message.subject, attempt, "a command came too late");
            self.acknowledge(AckKind::Term).await;
            return;
        }
        if attempt > self.max_deliver {
            self.bury("it was tried too often, and no attempt ended")
                .await;
            return;
        }
        let span = command_span(message);
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
                    Err(Retry { after: PANIC_RETRY, reason: "the handler panicked".to_owned() })
                }),
                _ = progress.tick() => self.acknowledge(AckKind::Progress).await,
            }
        };
        match outcome {
            Ok(()) => self.acknowledge(AckKind::Ack).await,
            Err(retry) if attempt >= self.max_deliver => {
                self.bury(&retry.reason).instrument(span).await;
            }
            Err(retry) => {
                tracing::info!(parent: &span, attempt, reason = retry.reason, "a command is tried again");
                self.acknowledge(AckKind::Nak(Some(retry.after))).await;
            }
        }
    }

    /// Into the dead letters, then out of the queue.
    async fn bury(&self, reason: &str) {
        let message = &self.message;
        let sequence = message.info().map_or(0, |info| info.stream_sequence);
        let headers = dead_letter_headers(message.headers.as_ref(), sequence, reason);
        let published = async {
            self.bus
                .jetstream()
                .publish_with_headers(
                    subjects::dead_letter(message.subject.as_str()),
                    headers,
                    message.payload.clone(),
                )
                .await
                .map_err(BusError::nats("writing a dead letter"))?
                .await
                .map_err(BusError::nats("writing a dead letter"))
        }
        .await;
        match published {
            Ok(_) => {
                metrics::counter!("agentbox_dead_letters_total").increment(1);
                tracing::error!(subject = %message.subject, reason, "a command became a dead letter");
                self.acknowledge(AckKind::Term).await;
            }
            Err(error) => {
                tracing::warn!(%error, "a dead letter could not be written; trying again");
                self.acknowledge(AckKind::Nak(Some(BURY_RETRY))).await;
            }
        }
    }

    pub(super) async fn acknowledge(&self, kind: AckKind) {
        if let Err(error) = self.message.ack_with(kind).await {
            // It is delivered again.
            tracing::debug!(%error, "an acknowledgement could not be sent");
        }
    }
}

/// The headers of a dead letter. A new message: the old id would make it a duplicate; its
/// own makes a second burial of the same command one.
fn dead_letter_headers(headers: Option<&HeaderMap>, sequence: u64, reason: &str) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        if !name.to_string().eq_ignore_ascii_case("Nats-Msg-Id") {
            for value in values {
                kept.append(name.clone(), value.clone());
            }
        }
    }
    // A header is one line.
    let line: String = reason
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    kept.insert(HEADER_REASON, line);
    kept.insert(header::NATS_MESSAGE_ID, format!("dead-{sequence}"));
    kept
}

fn expires_at(message: &Message) -> Option<u64> {
    message
        .headers
        .as_ref()?
        .get(HEADER_EXPIRES_AT)?
        .as_str()
        .parse()
        .ok()
}

/// A trace of its own, linked to the one that sent the command: the work may run long
/// after the request has been answered.
fn command_span(message: &Message) -> Span {
    let span = tracing::info_span!(
        parent: None,
        "command",
        otel.name = "process env command",
        otel.kind = "consumer",
        messaging.system = "nats",
        messaging.operation.type = "process",
        messaging.destination.template = "cmd.env",
    );
    let sender = trace::extract(message.headers.as_ref());
    let sender = sender.span().span_context().clone();
    if sender.is_valid() {
        span.add_link(sender);
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_keeps_the_headers_but_has_its_own_id_and_a_reason_of_one_line() {
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MESSAGE_ID, "outbox-7");
        headers.insert(HEADER_EXPIRES_AT, "12");
        let dead = dead_letter_headers(Some(&headers), 9, "no\r\nroom");
        let get = |name: &str| dead.get(name).map(|value| value.as_str().to_owned());
        assert_eq!(get(HEADER_EXPIRES_AT).as_deref(), Some("12"));
        assert_eq!(get("Nats-Msg-Id").as_deref(), Some("dead-9"));
        assert_eq!(get(HEADER_REASON).as_deref(), Some("no  room"));
    }
}
