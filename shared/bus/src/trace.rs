//! Spans of messages, and W3C trace context in NATS headers.
//!
//! The attributes follow OpenTelemetry's semantic conventions for messaging. This module makes
//! every span about a message.

use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::subjects::Subject;
use async_nats::HeaderMap;
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::TraceContextExt;
use opentelemetry::{Context, global};
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The span of a request that waits for its reply.
pub(crate) fn request_span(subject: &str) -> Span {
    tracing::info_span!(
        "request",
        otel.name = format!("request {}", method(subject)),
        otel.kind = "client",
        otel.status_code = Empty,
        messaging.system = "nats",
        messaging.operation.name = "request",
        messaging.operation.type = "send",
        messaging.destination.template = template(subject),
    )
}

/// The span of a server that processes a request; a child of the request's span.
pub(crate) fn serve_span(subject: &str, headers: Option<&HeaderMap>) -> Span {
    let span = tracing::info_span!(
        "serve",
        otel.name = format!("serve {}", method(subject)),
        otel.kind = "server",
        otel.status_code = Empty,
        messaging.system = "nats",
        messaging.operation.name = "serve",
        messaging.operation.type = "process",
        messaging.destination.template = template(subject),
    );
    // Fails only when the span is already entered or tracing is off. Then the span is a root.
    let _ = span.set_parent(extract(headers));
    span
}

/// The span of a command that is processed: a trace of its own, linked to the sender's,
/// because the work may end long after the sender's request was answered.
pub(crate) fn process_span(subject: &str, headers: Option<&HeaderMap>) -> Span {
    let span = tracing::info_span!(
        parent: None,
        "command",
        otel.name = "process env command",
        otel.kind = "consumer",
        messaging.system = "nats",
        messaging.operation.name = "process",
        messaging.operation.type = "process",
        messaging.destination.template = template(subject),
    );
    let sender = extract(headers);
    let sender = sender.span().span_context().clone();
    if sender.is_valid() {
        span.add_link(sender);
    }
    span
}

/// The span of a message about an environment that was stored first and is published later: a
/// root, which the caller continues from the stored context. `destination` is the subject, or
/// the name of the bucket.
#[must_use]
pub fn publish_span(kind: &str, destination: &str, environment: &EnvironmentId) -> Span {
    let template = Subject::parse(destination)
        .map_or_else(|| destination.to_owned(), |subject| subject.template());
    tracing::info_span!(
        parent: None,
        "publish",
        otel.name = format!("publish env {kind}"),
        otel.kind = "producer",
        messaging.system = "nats",
        messaging.operation.name = "publish",
        messaging.operation.type = "send",
        messaging.destination.template = template,
        environment.id = %environment,
    )
}

/// Marks a span as failed.
pub(crate) fn record_error(span: &Span) {
    span.record("otel.status_code", "ERROR");
}

/// The service and the method of a request's subject, such as `auth.login`: a label with
/// few values.
pub(crate) fn method(subject: &str) -> String {
    match Subject::parse(subject) {
        Some(
            Subject::Rpc { service, method }
            | Subject::InstanceRpc {
                service, method, ..
            },
        ) => format!("{service}.{method}"),
        Some(Subject::ExecRpc { method, .. }) => format!("exec.{method}"),
        _ => "other".to_owned(),
    }
}

/// The template of a subject: a label with few values.
pub(crate) fn template(subject: &str) -> String {
    Subject::parse(subject).map_or_else(|| "other".to_owned(), |subject| subject.template())
}

struct HeaderInjector<'a>(&'a mut HeaderMap);

impl Injector for HeaderInjector<'_> {
    fn set(&mut self, key: &str, value: String) {
        self.0.insert(key, value);
    }
}

struct HeaderExtractor<'a>(&'a HeaderMap);

impl Extractor for HeaderExtractor<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(async_nats::HeaderValue::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_ref()).collect()
    }
}

/// Writes the context of `span` into `headers`.
pub(crate) fn inject(span: &Span, headers: &mut HeaderMap) {
    let context = span.context();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut HeaderInjector(headers));
    });
}

/// The context in `headers`; an empty one when there is none.
fn extract(headers: Option<&HeaderMap>) -> Context {
    headers.map_or_else(Context::new, |headers| {
        global::get_text_map_propagator(|propagator| propagator.extract(&HeaderExtractor(headers)))
    })
}
