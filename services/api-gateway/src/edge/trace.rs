//! One span for each request, and its trace id in the answer.

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
    let method = method_label(request.method().as_str());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unmatched", MatchedPath::as_str)
        .to_owned();
    let ClientAddress(client) = ClientAddress::from_extensions(request.extensions());
    // The path and the query are not recorded: other attributes carry the ids, and a query may
    // carry a ticket.
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
    // Fails only when tracing is off.
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
    metrics::record_request(method, &route, status.as_u16(), begun.elapsed());
    response
}

/// Selects the trace id of an answer: that of the span, without a tracer that of the caller, and
/// without either a random one.
fn trace_id(own: TraceId, given: TraceId) -> TraceId {
    [own, given]
        .into_iter()
        .find(|id| *id != TraceId::INVALID)
        .unwrap_or_else(random_id)
}

/// The trace id of the request that this task answers; `None` without a tracer.
pub(super) fn current_id() -> Option<String> {
    let id = tracing::Span::current()
        .context()
        .span()
        .span_context()
        .trace_id();
    (id != TraceId::INVALID).then(|| id.to_string())
}

/// A trace id for an answer without a trace.
pub(super) fn random_id() -> TraceId {
    TraceId::from_bytes(rand::random())
}

/// The method as a metric label. A client can invent methods, so unknown ones share a label.
fn method_label(method: &str) -> &'static str {
    ["GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS"]
        .into_iter()
        .find(|known| *known == method)
        .unwrap_or("OTHER")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_always_has_a_trace_id() {
        let id = |n: u8| TraceId::from_bytes([n; 16]);
        let none = TraceId::INVALID;
        assert_eq!(trace_id(id(1), id(2)), id(1));
        assert_eq!(trace_id(none, id(2)), id(2));
        assert_ne!(trace_id(none, none), none);
    }

    #[test]
    fn unknown_method_has_the_label_other() {
        assert_eq!(method_label("PATCH"), "PATCH");
        assert_eq!(method_label("BREW"), "OTHER");
    }
}
