//! Server-sent events: turns a source of events into an answer.

mod source;

use std::convert::Infallible;
use std::time::Duration;

use agentbox_api::error::ErrorBody;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::Principal;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::{AccessWatch, StreamEnd, StreamGrant};
use crate::metrics::OpenStream;
use crate::state::{Gateway, OpenSession};

pub(crate) use source::{EventQueue, Source, next};

/// How often a comment is sent on an idle stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

struct Stream<S> {
    source: S,
    access: AccessWatch,
    is_over: bool,
    _open: OpenStream,
    _session: OpenSession,
}

impl<S: Source> Stream<S> {
    async fn next(&mut self) -> Option<Event> {
        if self.is_over {
            return None;
        }
        let end = tokio::select! {
            biased;
            end = self.access.ended() => end,
            event = next(&mut self.source) => {
                let event = event?;
                // Only now, because the source may have waited for long.
                match self.access.allows().await {
                    Ok(()) => return Some(event),
                    Err(end) => end,
                }
            }
        };
        self.is_over = true;
        match end {
            StreamEnd::Refused(error) => Some(failure(&error)),
            StreamEnd::Stopping => None,
        }
    }
}

/// Builds the answer that streams `source`. `kind` labels it in the metrics; `session` is held
/// until the stream ends.
pub(crate) fn answer(
    kind: &'static str,
    gateway: Gateway,
    principal: Principal,
    grant: StreamGrant,
    session: OpenSession,
    source: impl Source,
) -> Response {
    let stop = gateway.stream_stop_token();
    let stream = Stream {
        source,
        access: AccessWatch::new(gateway, principal, grant, stop),
        is_over: false,
        _open: OpenStream::begin(kind),
        _session: session,
    };
    let events = futures::stream::unfold(stream, |mut stream| async {
        let event = stream.next().await?;
        Some((Ok::<_, Infallible>(event), stream))
    });
    let mut response = Sse::new(events)
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response();
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // A proxy that buffers answers would delay the events.
    headers.insert(
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    );
    response
}

/// An event with `value` as its data, and an `id:` to resume after.
pub(crate) fn data(id: u64, value: &impl Serialize) -> Event {
    Event::default().id(id.to_string()).data(json(value))
}

/// A named event with an `id:` to resume after.
pub(crate) fn numbered(name: &str, id: u64, value: &impl Serialize) -> Event {
    Event::default()
        .event(name)
        .id(id.to_string())
        .data(json(value))
}

/// A named event without an id; clients resume after the last event that has one.
pub(crate) fn named(name: &str, value: &impl Serialize) -> Event {
    Event::default().event(name).data(json(value))
}

/// The last event of a stream that cannot continue.
pub(crate) fn failure(error: &Error) -> Event {
    named("error", &ErrorBody::from(error))
}

fn json(value: &impl Serialize) -> String {
    // Plain data with string keys always serializes.
    serde_json::to_string(value).unwrap_or_default()
}

/// Reads the id of the last event that the client received, from `Last-Event-ID`, which browsers
/// send by themselves.
///
/// # Errors
/// [`ErrorCode::Validation`] when it is not a number.
pub(crate) fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Error> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("").trim();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let shown: String = text.chars().take(40).collect();
        Error::new(
            ErrorCode::Validation,
            format!("Last-Event-ID: must be an id of this stream, is `{shown}`"),
        )
    })
}

/// What tests of answers share.
#[cfg(test)]
pub(crate) mod testing {
    use axum::body::to_bytes;

    use super::*;

    /// The bytes that a client receives.
    pub(crate) async fn on_the_wire(events: Vec<Event>) -> String {
        let events = futures::stream::iter(events.into_iter().map(Ok::<_, Infallible>));
        let body = Sse::new(events).into_response().into_body();
        String::from_utf8(to_bytes(body, 4096).await.unwrap().to_vec()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::testing::on_the_wire;
    use super::*;

    #[tokio::test]
    async fn events_have_the_documented_wire_format() {
        let text = on_the_wire(vec![
            data(7, &json!({"stream": "stdout", "message": "two\nlines"})),
            named("end", &json!({"status": "terminated"})),
            failure(&Error::new(ErrorCode::Unauthorized, "revoked")),
        ])
        .await;
        assert_eq!(
            text,
            "id: 7\ndata: {\"message\":\"two\\nlines\",\"stream\":\"stdout\"}\n\n\
             event: end\ndata: {\"status\":\"terminated\"}\n\n\
             event: error\ndata: {\"error\":\"unauthorized\",\"message\":\"revoked\",\"code\":401}\n\n"
        );
    }

    #[test]
    fn last_event_id_must_be_a_number() {
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("last-event-id", value.parse().unwrap());
            last_event_id(&headers)
        };
        assert_eq!(last_event_id(&HeaderMap::new()), Ok(None));
        assert_eq!(with(""), Ok(None));
        assert_eq!(with("12"), Ok(Some(12)));
        for bad in ["-1", "x", "18446744073709551616"] {
            assert_eq!(with(bad).unwrap_err().code, ErrorCode::Validation, "{bad}");
        }
    }
}
