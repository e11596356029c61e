//! Spans of calls to boxd, and their trace context (W3C Trace Context).

use opentelemetry::global;
use opentelemetry::propagation::Injector;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// A client span for one call, by the OpenTelemetry RPC conventions.
#[must_use]
pub fn call_span(method: &'static str) -> Span {
    tracing::info_span!(
        "boxd",
        otel.name = format!("agentbox.boxd.v1.Boxd/{method}"),
        otel.kind = "client",
        rpc.system = "grpc",
        rpc.service = "agentbox.boxd.v1.Boxd",
        rpc.method = method,
        peer.service = "boxd",
    )
}

/// A request with `span`'s trace context.
#[must_use]
pub fn traced<T>(span: &Span, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let context = span.context();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut Metadata(request.metadata_mut()));
    });
    request
}

struct Metadata<'a>(&'a mut MetadataMap);

impl Injector for Metadata<'_> {
    fn set(&mut self, key: &str, value: String) {
        let key = MetadataKey::<Ascii>::from_bytes(key.as_bytes());
        // Propagators write valid names and values; others are skipped.
        if let (Ok(key), Ok(value)) = (key, MetadataValue::try_from(value)) {
            self.0.insert(key, value);
        }
    }
}
