//! One span a request, its trace id on the answer.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use opentelemetry::global;
use opentelemetry::propagation::Extractor;
use opentelemetry::trace::{TraceContextExt, TraceId};
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::client_address::ClientAddress;
use crate::metrics;

pub(crate) const TRACE_ID: HeaderName = HeaderName::from_static("x-trace-id");

struct Source<'a>(&'a HeaderMap);

impl Extractor for Source<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

pub(crate) async fn trace(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = word(request.method().as_str());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unmatched", MatchedPath::as_str)
        .to_owned();
    let ClientAddress(client) = ClientAddress::of(request.extensions());
    // The path and the query are not recorded: ids are found by other attributes, and a
    // query may carry a ticket.
    let span = tracing::info_span!(
        "http",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        otel.status_code = tracing::field::Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = tracing::field::Empty,
        client.address = %client,
        enduser.id = tracing::field::Empty,
    );
    let parent = global::get_text_map_propagator(|p| p.extract(&Source(request.headers())));
    let given = parent.span().span_context().trace_id();
    // Refused only when tracing is off.
    let _ = span.set_parent(parent);
    let mut response = next.run(request).instrument(span.clone()).await;

    let status = response.status();
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    let own = span.context().span().span_context().trace_id();
    if let Ok(value) = HeaderValue::from_str(&trace_id(own, given).to_string()) {
        response.headers_mut().insert(TRACE_ID, value);
    }
    metrics::answered(method, &route, status.as_u16(), begun.elapsed());
    response
}

/// The span's; without a tracer the caller's; without that a random one, so that an
/// answer can be told from every other.
fn trace_id(own: TraceId, given: TraceId) -> TraceId {
    [own, given]
        .into_iter()
        .find(|id| *id != TraceId::INVALID)
        .unwrap_or_else(|| TraceId::from_bytes(rand::random()))
}

/// A method as a label: anybody can invent methods.
fn word(method: &str) -> &'static str {
    ["GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS"]
        .into_iter()
        .find(|known| *known == method)
        .unwrap_or("OTHER")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_always_has_a_trace_id() {
        let id = |n: u8| TraceId::from_bytes([n; 16]);
        let none = TraceId::INVALID;
        assert_eq!(trace_id(id(1), id(2)), id(1));
        assert_eq!(trace_id(none, id(2)), id(2));
        assert_ne!(trace_id(none, none), none);
    }

    #[test]
    fn an_invented_method_is_no_label() {
        assert_eq!(word("PATCH"), "PATCH");
        assert_eq!(word("BREW"), "OTHER");
    }
}
