//! Trace context that is stored with an outbox row: the relay that publishes the row, perhaps
//! in another process, continues the trace of the transaction that wrote it.

use std::collections::HashMap;

use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

const TRACEPARENT: &str = "traceparent";

/// The current span as a W3C `traceparent`; `None` when tracing is off.
#[must_use]
pub fn current() -> Option<String> {
    let mut carrier = HashMap::new();
    opentelemetry::global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&Span::current().context(), &mut carrier);
    });
    carrier.remove(TRACEPARENT)
}

/// Makes `span` a child of the span that `traceparent` names.
pub fn continue_from(span: &Span, traceparent: Option<&str>) {
    let Some(traceparent) = traceparent else {
        return;
    };
    let carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let context =
        opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&carrier));
    // Fails only when no telemetry is installed: then there is no trace to continue.
    let _ = span.set_parent(context);
}
