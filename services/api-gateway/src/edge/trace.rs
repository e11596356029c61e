//! One span for each request, and its trace id in the answer.
//!
//! * I1. A caller's trace is continued. How many of them are sampled because their callers ask for it
//!   is limited, so that nobody decides alone what the collector gets.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use opentelemetry::propagation::Extractor;
use opentelemetry::trace::{SpanContext, TraceContextExt, TraceId};
use opentelemetry::{Context, global};
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::client_address::ClientAddress;
use crate::metrics;
use crate::previews::host::PreviewHost;

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

/// Limits the traces that are sampled because their callers ask for it.
#[derive(Clone)]
pub(crate) struct SampledTraces(Option<Arc<DefaultDirectRateLimiter>>);

impl SampledTraces {
    /// `per_second` 0: none is.
    pub(crate) fn new(per_second: u32) -> Self {
        let limiter = |rate| Arc::new(RateLimiter::direct(Quota::per_second(rate)));
        Self(NonZeroU32::new(per_second).map(limiter))
    }

    /// Removes the sampled flag from a caller's context when too many callers set it.
    fn limit(&self, caller: Context) -> Context {
        let given = caller.span().span_context().clone();
        let is_within = || {
            let limiter = self.0.as_ref();
            limiter.is_some_and(|limiter| limiter.check().is_ok())
        };
        if !given.is_sampled() || is_within() {
            return caller;
        }
        metrics::limit_reached("sampled_traces");
        caller.with_remote_span_context(SpanContext::new(
            given.trace_id(),
            given.span_id(),
            given.trace_flags().with_sampled(false),
            true,
            given.trace_state().clone(),
        ))
    }
}

pub(crate) async fn trace(
    State(sampled): State<SampledTraces>,
    request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let method = method_label(request.method().as_str());
    let _active = metrics::ActiveRequest::begin(method);
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or(unmatched(&request), MatchedPath::as_str)
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
    let parent = sampled.limit(parent);
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

/// The label of a request that matches no route of the API.
fn unmatched(request: &Request) -> &'static str {
    match request.extensions().get::<PreviewHost>() {
        Some(_) => "preview",
        None => "unmatched",
    }
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
pub(crate) fn current_id() -> Option<String> {
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
    use opentelemetry::trace::{SpanId, TraceFlags, TraceState};

    use super::*;

    #[test]
    fn trace_beyond_the_limit_is_continued_unsampled() {
        let caller = |flags| {
            let (trace, span) = (TraceId::from_bytes([1; 16]), SpanId::from_bytes([2; 8]));
            let given = SpanContext::new(trace, span, flags, true, TraceState::default());
            Context::new().with_remote_span_context(given)
        };
        let limited = |limiter: &SampledTraces, flags| {
            let context = limiter.limit(caller(flags));
            let given = context.span().span_context().clone();
            assert_eq!(given.trace_id(), TraceId::from_bytes([1; 16]));
            assert_eq!(given.span_id(), SpanId::from_bytes([2; 8]));
            given.is_sampled()
        };
        let one = SampledTraces::new(1);
        // Callers that do not ask are not counted.
        assert!(!limited(&one, TraceFlags::NOT_SAMPLED));
        assert!(limited(&one, TraceFlags::SAMPLED));
        assert!((0..100).any(|_| !limited(&one, TraceFlags::SAMPLED)));
        assert!(!limited(&SampledTraces::new(0), TraceFlags::SAMPLED));
        // A request without a trace.
        let context = SampledTraces::new(0).limit(Context::new());
        assert!(!context.span().span_context().is_valid());
    }

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
