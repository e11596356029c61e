//! A request and its reply on `abx.v1.rpc.…`.
//!
//! * I1. The caller's deadline travels with the request. A server does not start a request
//!   whose deadline has passed.
//! * I2. A server processes a bounded number of requests at once and refuses the rest.
//! * I3. A panic in a handler is an error for its caller. The server continues.
//! * I4. A server that stops replies to every request that it has received, with an error if
//!   it cannot complete it.
//! * I5. A server processes no message whose reply subject is not an inbox, because the sender may
//!   have had it delivered by JetStream, without a permission for the subject.

mod discovery;
mod endpoint;
mod in_flight;
mod server;

use std::time::{Duration, Instant};

use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::subjects;
use async_nats::HeaderMap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::{Instrument, Span};

pub use server::{Listening, Server};

use crate::message::{encode, set_deadline};
use crate::replies::{Replies, RequestError};
use crate::{metrics, origin, trace};

/// Sends a request and waits for its reply, for at most `deadline`.
pub(crate) async fn call<Q: Serialize, P: DeserializeOwned>(
    replies: &Replies,
    subject: String,
    request: &Q,
    deadline: Duration,
) -> Result<P, Error> {
    let span = trace::request_span(&subject);
    let method = trace::method(&subject);
    let begun = Instant::now();
    let outcome = exchange(replies, &span, subject, request, deadline)
        .instrument(span.clone())
        .await;
    let status = outcome.as_ref().map_or_else(|e| e.code.as_str(), |_| "ok");
    metrics::rpc_called(method, status, begun.elapsed());
    if outcome
        .as_ref()
        .is_err_and(|error| error.code.status() >= 500)
    {
        trace::record_error(&span);
    }
    outcome
}

async fn exchange<Q: Serialize, P: DeserializeOwned>(
    replies: &Replies,
    span: &Span,
    subject: String,
    request: &Q,
    deadline: Duration,
) -> Result<P, Error> {
    let mut headers = HeaderMap::new();
    set_deadline(&mut headers, deadline);
    trace::inject(span, &mut headers);
    origin::inject(&mut headers);
    let body = encode(request)?;
    let method = trace::method(&subject);
    let reply = replies
        .request(subject, headers, body, deadline)
        .await
        .map_err(|error| public_error(replies, &error, &method))?;
    let is_error = reply
        .headers
        .as_ref()
        .is_some_and(|headers| headers.get(subjects::HEADER_ERROR).is_some());
    let malformed = |error: serde_json::Error| {
        tracing::error!(error = %ErrorChain(&error), method, "reply not decoded");
        Error::internal()
    };
    if is_error {
        Err(serde_json::from_slice(&reply.payload).map_err(malformed)?)
    } else {
        serde_json::from_slice(&reply.payload).map_err(malformed)
    }
}

fn public_error(replies: &Replies, error: &RequestError, method: &str) -> Error {
    match error {
        RequestError::NoResponders => Error::new(
            ErrorCode::Unavailable,
            format!("no replica serves {method}; try again"),
        ),
        RequestError::Deadline(within) if replies.client().is_connected() => Error::new(
            ErrorCode::Timeout,
            format!("{method} did not reply within {} ms", within.as_millis()),
        ),
        _ => {
            tracing::warn!(error = %ErrorChain(error), method, "request not sent");
            Error::new(
                ErrorCode::Unavailable,
                "the message bus cannot be reached; try again",
            )
        }
    }
}
