//! What long-lived answers share: server-sent events, and the end of a credential.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::Principal;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::principal::still_good;
use crate::state::Gateway;

/// How often the credential of a running stream is looked at again.
const RECHECK: Duration = Duration::from_secs(2);
/// How often a quiet stream says that it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Events waiting for a slow client; then the producer waits.
const QUEUE: usize = 64;

/// Resolves when the credential of `principal` is no longer good, or when the gateway
/// stops. That auth cannot be reached is not the credential's end.
pub(crate) async fn until_revoked(gateway: &Gateway, principal: &Principal) -> Error {
    loop {
        tokio::select! {
            () = gateway.shutdown.cancelled() => {
                return Error::new(ErrorCode::Unavailable, "the gateway is stopping; connect again");
            }
            () = tokio::time::sleep(RECHECK) => {}
        }
        if principal
            .expires_at
            .is_some_and(|at| at <= chrono::Utc::now())
        {
            return Error::new(ErrorCode::Unauthorized, "the credential has expired");
        }
        if let Err(error) = still_good(gateway, principal).await
            && error.code == ErrorCode::Unauthorized
        {
            return error;
        }
    }
}

/// The last event id that the client has, from the standard header.
///
/// # Errors
/// [`ErrorCode::Validation`] when it is not a number.
pub(crate) fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Error> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("");
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        Error::field(
            "Last-Event-ID",
            format!("`{text}` is not an id of this stream"),
        )
    })
}

/// Where a producer puts its events; full while the client is slow.
#[derive(Clone)]
pub(crate) struct Events(mpsc::Sender<Event>);

/// The client has gone.
pub(crate) struct Gone;

impl Events {
    pub(crate) async fn send(&self, event: Event) -> Result<(), Gone> {
        self.0.send(event).await.map_err(|_| Gone)
    }

    async fn fail(&self, error: &Error) {
        let body = agentbox_api::error::ErrorBody::from(error);
        let data = serde_json::to_string(&body).unwrap_or_default();
        let _ = self.send(Event::default().event("error").data(data)).await;
    }
}

/// An answer of server-sent events made by `produce`, until it ends, the client goes, or
/// the credential dies. A failure is told as an `error` event.
pub(crate) fn sse<F, Fut>(gateway: Gateway, principal: Principal, produce: F) -> Response
where
    F: FnOnce(Events) -> Fut + Send + 'static,
    Fut: Future<Output = Result<(), Error>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(QUEUE);
    let events = Events(sender);
    let span = tracing::Span::current();
    let producing = async move {
        let end = tokio::select! {
            outcome = produce(events.clone()) => outcome.err(),
            error = until_revoked(&gateway, &principal) => Some(error),
            () = events.0.closed() => None,
        };
        if let Some(error) = end {
            events.fail(&error).await;
        }
    }
    .instrument(span);
    // The producer runs inside the body: when the client goes, both are dropped.
    let body = Body {
        producing: Some(Box::pin(producing)),
        receiver,
    };
    let stream = futures::stream::unfold(body, |mut body| async move {
        let event = body.next().await?;
        Some((Ok::<_, Infallible>(event), body))
    });
    Sse::new(stream)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}

struct Body<P> {
    producing: Option<P>,
    receiver: mpsc::Receiver<Event>,
}

impl<P: Future<Output = ()> + Unpin> Body<P> {
    async fn next(&mut self) -> Option<Event> {
        loop {
            let Some(producing) = &mut self.producing else {
                return self.receiver.try_recv().ok();
            };
            tokio::select! {
                biased;
                event = self.receiver.recv() => return event,
                () = producing => self.producing = None,
            }
        }
    }
}
