//! Exports the spans that boxes return.
//!
//! A box reaches no collector: its boxd returns its spans with the response of the call
//! (docs/decisions/0003), and they are exported here as spans of `agentbox-boxd`. A box
//! belongs to a user: its spans are validated, and only times and the exit code are kept.
//! The spans of a run are in its last message, the span of another call in the header of its response.
//!
//! * I1. A box can add spans only to the trace of its own call, below that call's span.
//! * I2. Names and attributes are set here. The number of spans is limited.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentbox_box_protocol::call_span::{CallSpan, SPAN_METADATA};
use agentbox_box_protocol::proto::{self, Step};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_service::RelayedSpans;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tonic::metadata::MetadataMap;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::metrics;

const SERVICE: &str = "agentbox.boxd.v1.Boxd";
/// One for each step.
const MAX_SPANS: usize = 3;
/// How far a box's clock may be ahead.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// The exporter of boxes' spans. The default exports nothing.
#[derive(Clone, Debug, Default)]
pub struct BoxSpans {
    spans: RelayedSpans,
}

impl BoxSpans {
    #[must_use]
    pub fn new(spans: RelayedSpans) -> Self {
        Self { spans }
    }

    /// Exports the spans that `environment`'s box returned for the run of `call`.
    pub fn export(&self, call: &Span, environment: &EnvironmentId, exited: &proto::Exited) {
        if exited.spans.is_empty() || !self.spans.is_enabled() {
            return;
        }
        let context = call.context();
        let call = context.span().span_context().clone();
        let (spans, refused) = accepted(exited, &call, environment, SystemTime::now());
        metrics::spans_refused(refused);
        for span in spans {
            self.spans.export(span);
        }
    }

    /// Exports the span with which `environment`'s box has accepted `call` of `method`, if the header of
    /// its response has one.
    pub fn export_accepted(
        &self,
        call: &Span,
        environment: &EnvironmentId,
        method: &str,
        response: &MetadataMap,
    ) {
        let Some(header) = response.get(SPAN_METADATA) else {
            return;
        };
        if !self.spans.is_enabled() {
            return;
        }
        let context = call.context();
        let call = context.span().span_context().clone();
        let text = header.to_str().ok();
        let returned = text.and_then(|text| text.parse::<CallSpan>().ok());
        let span = returned.and_then(|returned| {
            accepted_call(&returned, &call, environment, method, SystemTime::now())
        });
        match span {
            Some(span) => self.spans.export(span),
            None => metrics::spans_refused(1),
        }
    }
}

/// The span below `call`; `None` if it is not valid.
fn accepted_call(
    returned: &CallSpan,
    call: &SpanContext,
    environment: &EnvironmentId,
    method: &str,
    now: SystemTime,
) -> Option<SpanData> {
    let id = SpanId::from_bytes(returned.id);
    if !call.is_sampled() || id == call.span_id() {
        return None;
    }
    let ids = (call.trace_id(), id, call.span_id());
    let times = (returned.start_unix_nanos, returned.end_unix_nanos);
    let name = format!("{SERVICE}/{method}");
    let attributes = of_method(environment, method.to_owned());
    span_data(ids, times, now, name.into(), SpanKind::Server, attributes)
}

/// The attributes of the span of a call.
fn of_method(environment: &EnvironmentId, method: String) -> Vec<KeyValue> {
    vec![
        KeyValue::new("environment.id", environment.to_string()),
        KeyValue::new("rpc.system", "grpc"),
        KeyValue::new("rpc.service", SERVICE),
        KeyValue::new("rpc.method", method),
    ]
}

/// The valid spans below `call`, and the number of refused ones.
fn accepted(
    exited: &proto::Exited,
    call: &SpanContext,
    environment: &EnvironmentId,
    now: SystemTime,
) -> (Vec<SpanData>, usize) {
    let mut spans: Vec<SpanData> = Vec::new();
    for returned in exited.spans.iter().take(MAX_SPANS) {
        let span = convert(returned, exited, environment, now).filter(|span| {
            let is_below = |above: &SpanContext| above.span_id() == span.parent_span_id;
            let is_new = |other: &SpanContext| other.span_id() != span.span_context.span_id();
            let contexts = || std::iter::once(call).chain(spans.iter().map(|s| &s.span_context));
            call.is_sampled()
                && call.trace_id() == span.span_context.trace_id()
                && contexts().any(is_below)
                && contexts().all(is_new)
        });
        spans.extend(span);
    }
    let refused = exited.spans.len() - spans.len();
    (spans, refused)
}

fn convert(
    returned: &proto::Span,
    exited: &proto::Exited,
    environment: &EnvironmentId,
    now: SystemTime,
) -> Option<SpanData> {
    let (name, span_kind) = match returned.step() {
        Step::Run => ("agentbox.boxd.v1.Boxd/Run", SpanKind::Server),
        Step::Start => ("start", SpanKind::Internal),
        Step::Command => ("command", SpanKind::Internal),
        Step::Unspecified => return None,
    };
    let trace_id = TraceId::from_bytes(returned.trace_id.as_slice().try_into().ok()?);
    let span_id = SpanId::from_bytes(returned.span_id.as_slice().try_into().ok()?);
    let parent = SpanId::from_bytes(returned.parent_span_id.as_slice().try_into().ok()?);
    let of_environment = KeyValue::new("environment.id", environment.to_string());
    let attributes = match returned.step() {
        Step::Run => of_method(environment, "Run".to_owned()),
        Step::Command => vec![
            of_environment,
            KeyValue::new("process.exit.code", i64::from(exited.exit_code)),
            KeyValue::new("timed_out", exited.timed_out),
            KeyValue::new("oom_killed", exited.oom_killed),
        ],
        Step::Start | Step::Unspecified => vec![of_environment],
    };
    span_data(
        (trace_id, span_id, parent),
        (returned.start_unix_nanos, returned.end_unix_nanos),
        now,
        name.into(),
        span_kind,
        attributes,
    )
}

/// A span with the ids of its trace, its own and its parent's, and its begin and end in nanoseconds.
fn span_data(
    (trace_id, span_id, parent): (TraceId, SpanId, SpanId),
    (start, end): (u64, u64),
    now: SystemTime,
    name: Cow<'static, str>,
    span_kind: SpanKind,
    attributes: Vec<KeyValue>,
) -> Option<SpanData> {
    let instant = |nanos| UNIX_EPOCH.checked_add(Duration::from_nanos(nanos));
    let (start_time, end_time) = (instant(start)?, instant(end)?);
    if span_id == SpanId::INVALID || start_time > end_time || end_time > now + CLOCK_SKEW {
        return None;
    }
    let parent_span_is_remote = span_kind == SpanKind::Server;
    Some(SpanData {
        span_context: SpanContext::new(
            trace_id,
            span_id,
            TraceFlags::SAMPLED,
            false,
            TraceState::default(),
        ),
        parent_span_id: parent,
        parent_span_is_remote,
        span_kind,
        name,
        start_time,
        end_time,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("agentbox").build(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: [u8; 16] = [7; 16];
    const CALL: [u8; 8] = [1; 8];

    fn call(flags: TraceFlags) -> SpanContext {
        SpanContext::new(
            TraceId::from_bytes(TRACE),
            SpanId::from_bytes(CALL),
            flags,
            false,
            TraceState::default(),
        )
    }

    fn span(step: Step, id: u8, parent: u8) -> proto::Span {
        proto::Span {
            trace_id: TRACE.to_vec(),
            span_id: vec![id; 8],
            parent_span_id: vec![parent; 8],
            step: step.into(),
            start_unix_nanos: 1,
            end_unix_nanos: 2,
        }
    }

    fn names(spans: Vec<proto::Span>, flags: TraceFlags) -> Vec<String> {
        let returned = spans.len();
        let exited = proto::Exited {
            spans,
            start_error: "a secret".into(),
            ..Default::default()
        };
        let now = UNIX_EPOCH + Duration::from_secs(1);
        let (spans, refused) = accepted(&exited, &call(flags), &EnvironmentId::random(), now);
        assert_eq!(spans.len() + refused, returned);
        assert!(!format!("{spans:?}").contains("secret"));
        spans.iter().map(|span| span.name.to_string()).collect()
    }

    #[test]
    fn only_spans_below_own_call_are_accepted() {
        let whole = vec![
            span(Step::Run, 2, 1),
            span(Step::Start, 3, 2),
            span(Step::Command, 4, 2),
        ];
        assert_eq!(
            names(whole.clone(), TraceFlags::SAMPLED),
            ["agentbox.boxd.v1.Boxd/Run", "start", "command"]
        );
        assert!(names(whole, TraceFlags::default()).is_empty());
        let foreign = proto::Span {
            trace_id: vec![8; 16],
            ..span(Step::Run, 2, 1)
        };
        let backwards = proto::Span {
            start_unix_nanos: 3,
            ..span(Step::Run, 2, 1)
        };
        let future = proto::Span {
            end_unix_nanos: u64::MAX,
            ..span(Step::Run, 2, 1)
        };
        let short = proto::Span {
            span_id: vec![2],
            ..span(Step::Run, 2, 1)
        };
        for refused in [
            foreign,
            backwards,
            future,
            short,
            span(Step::Run, 2, 9),
            span(Step::Run, 1, 1),
            span(Step::Run, 0, 1),
            span(Step::Unspecified, 2, 1),
        ] {
            assert!(names(vec![refused], TraceFlags::SAMPLED).is_empty());
        }
    }

    #[test]
    fn span_of_an_accepted_call_is_below_the_call_or_refused() {
        let environment = EnvironmentId::random();
        let now = UNIX_EPOCH + Duration::from_secs(1);
        let accept = |id: u8, (start_unix_nanos, end_unix_nanos), flags| {
            let returned = CallSpan {
                id: [id; 8],
                start_unix_nanos,
                end_unix_nanos,
            };
            accepted_call(&returned, &call(flags), &environment, "Files", now)
        };
        let span = accept(2, (1, 2), TraceFlags::SAMPLED).unwrap();
        assert_eq!(span.name, "agentbox.boxd.v1.Boxd/Files");
        assert_eq!(span.parent_span_id, SpanId::from_bytes(CALL));
        assert_eq!(span.span_context.trace_id(), TraceId::from_bytes(TRACE));
        assert!(span.parent_span_is_remote);
        for (id, times, flags) in [
            (2, (1, 2), TraceFlags::default()),
            (1, (1, 2), TraceFlags::SAMPLED),
            (0, (1, 2), TraceFlags::SAMPLED),
            (2, (3, 2), TraceFlags::SAMPLED),
            (2, (1, u64::MAX), TraceFlags::SAMPLED),
        ] {
            let refused = accept(id, times, flags);
            assert!(refused.is_none(), "{id} {times:?} {flags:?}");
        }
    }

    #[test]
    fn span_count_is_limited() {
        let many = (2..200).map(|id| span(Step::Command, id, 1)).collect();
        assert_eq!(names(many, TraceFlags::SAMPLED).len(), MAX_SPANS);
    }
}
