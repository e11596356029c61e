//! A request and its reply on `abx.v1.rpc.…`.
//!
//! * I1. The caller's deadline travels with the request; a server does not begin what
//!   nobody waits for.
//! * I2. A server works on a bounded number of requests at once and refuses the rest.
//! * I3. A handler that panics is an error to its caller, not the end of the server.
//! * I4. A server that stops answers what has come, or says that it cannot.

mod discovery;
mod endpoint;
mod in_flight;
mod server;

use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::rpc::Rpc;
use agentbox_contracts::subjects;
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::Instrument;

pub use server::{Listening, Server};

use crate::connection::Bus;
use crate::replies::RequestError;
use crate::trace;

/// NATS' own limit on a message, less room for headers.
const MAX_MESSAGE: usize = 1000 * 1024;

pub(crate) fn now_unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

/// When `from_now` has passed, Unix milliseconds.
pub(crate) fn unix_ms_in(from_now: Duration) -> u64 {
    now_unix_ms().saturating_add(u64::try_from(from_now.as_millis()).unwrap_or(u64::MAX))
}

/// A message's body; refused when it is more than one message carries.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Bytes, Error> {
    let body = serde_json::to_vec(value).map_err(|error| {
        tracing::error!(%error, "a message cannot be written");
        Error::internal()
    })?;
    if body.len() > MAX_MESSAGE {
        return Err(Error::new(
            ErrorCode::PayloadTooLarge,
            format!(
                "{} bytes are more than one message carries ({MAX_MESSAGE})",
                body.len()
            ),
        ));
    }
    Ok(body.into())
}

impl Bus {
    /// Asks a service and waits for its reply, for at most `deadline`.
    ///
    /// # Errors
    /// What the service answered; [`ErrorCode::Unavailable`] at once when no replica
    /// listens; [`ErrorCode::Timeout`] when none answers in time.
    pub async fn call<R: Rpc>(
        &self,
        request: &R::Request,
        deadline: Duration,
    ) -> Result<R::Reply, Error> {
        self.call_on(subjects::rpc(R::SERVICE, R::METHOD), request, deadline)
            .await
    }

    /// [`Self::call`] on a subject of one cluster's exec-proxies.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_on<Q: Serialize, P: DeserializeOwned>(
        &self,
        subject: String,
        request: &Q,
        deadline: Duration,
    ) -> Result<P, Error> {
        let destination = destination(&subject);
        let span = tracing::info_span!(
            "request",
            otel.name = format!("request {destination}"),
            otel.kind = "client",
            otel.status_code = tracing::field::Empty,
            messaging.system = "nats",
            messaging.destination.template = destination,
        );
        let outcome = self
            .request(&span, subject, request, deadline)
            .instrument(span.clone())
            .await;
        if outcome
            .as_ref()
            .is_err_and(|error| error.code.status() >= 500)
        {
            span.record("otel.status_code", "ERROR");
        }
        outcome
    }

    async fn request<Q: Serialize, P: DeserializeOwned>(
        &self,
        span: &tracing::Span,
        subject: String,
        request: &Q,
        deadline: Duration,
    ) -> Result<P, Error> {
        if !self.is_connected() {
            return Err(Error::new(
                ErrorCode::Unavailable,
                "the message bus is not connected",
            ));
        }
        let mut headers = HeaderMap::new();
        headers.insert(subjects::HEADER_DEADLINE, unix_ms_in(deadline).to_string());
        trace::inject(span, &mut headers);
        let body = encode(request)?;
        let destination = destination(&subject);
        let reply = self
            .replies()
            .request(subject, headers, body, deadline)
            .await
            .map_err(|error| self.public_error(&error, &destination))?;
        let failed = reply
            .headers
            .as_ref()
            .is_some_and(|headers| headers.get(subjects::HEADER_ERROR).is_some());
        let malformed = |error: serde_json::Error| {
            tracing::error!(%error, destination, "a reply cannot be read");
            Error::internal()
        };
        if failed {
            Err(serde_json::from_slice(&reply.payload).map_err(malformed)?)
        } else {
            serde_json::from_slice(&reply.payload).map_err(malformed)
        }
    }

    fn public_error(&self, error: &RequestError, destination: &str) -> Error {
        match error {
            RequestError::NoResponders => Error::new(
                ErrorCode::Unavailable,
                format!("no replica answers {destination}; try again"),
            ),
            RequestError::Deadline(within) if self.is_connected() => Error::new(
                ErrorCode::Timeout,
                format!(
                    "{destination} did not answer within {} ms",
                    within.as_millis()
                ),
            ),
            _ => {
                tracing::warn!(%error, destination, "a request could not be sent");
                Error::new(
                    ErrorCode::Unavailable,
                    "the message bus cannot be reached; try again",
                )
            }
        }
    }

    /// A server of requests; add methods, then [`Server::listen`] and
    /// [`Listening::run`].
    #[must_use]
    pub fn serve(&self, service: &'static str) -> Server {
        Server::new(self.clone(), service)
    }
}

/// A subject without what varies: fit for a label.
fn destination(subject: &str) -> String {
    match subjects::Subject::parse(subject) {
        Some(subjects::Subject::Rpc { service, method }) => format!("{service}.{method}"),
        Some(subjects::Subject::ExecRpc { method, .. }) => format!("exec.{method}"),
        _ => "other".to_owned(),
    }
}

pub(crate) fn is_expired(message: &Message) -> bool {
    message
        .headers
        .as_ref()
        .and_then(|headers| headers.get(subjects::HEADER_DEADLINE))
        .and_then(|deadline| deadline.as_str().parse::<u64>().ok())
        .is_some_and(|deadline| deadline < now_unix_ms())
}
