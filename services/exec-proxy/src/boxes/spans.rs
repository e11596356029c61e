//! Exports the spans that boxes return.
//!
//! A box reaches no collector: its boxd returns its spans with the response of the call
//! (docs/decisions/0003), and they are exported here as spans of `agentbox-boxd`. A box
//! belongs to a user: its spans are validated, and only times and the exit code are kept.
//!
//! * I1. A box can add spans only to the trace of its own call, below that call's span.
//! * I2. Names and attributes are set here. The number of spans is limited.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentbox_box_protocol::proto::{self, Step};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_service::RelayedSpans;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::metrics;

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
    let instant = |nanos| UNIX_EPOCH.checked_add(Duration::from_nanos(nanos));
    let (start_time, end_time) = (
        instant(returned.start_unix_nanos)?,
        instant(returned.end_unix_nanos)?,
    );
    if span_id == SpanId::INVALID || start_time > end_time || end_time > now + CLOCK_SKEW {
        return None;
    }
    let mut attributes = vec![KeyValue::new("environment.id", environment.to_string())];
    match returned.step() {
        Step::Run => attributes.extend([
            KeyValue::new("rpc.system", "grpc"),
            KeyValue::new("rpc.service", "agentbox.boxd.v1.Boxd"),
            KeyValue::new("rpc.method", "Run"),
        ]),
        Step::Command => attributes.extend([
            KeyValue::new("process.exit.code", i64::from(exited.exit_code)),
            KeyValue::new("timed_out", exited.timed_out),
            KeyValue::new("oom_killed", exited.oom_killed),
        ]),
        Step::Start | Step::Unspecified => {}
    }
    Some(SpanData {
        span_context: SpanContext::new(
            trace_id,
            span_id,
            TraceFlags::SAMPLED,
            false,
            TraceState::default(),
        ),
        parent_span_id: parent,
        parent_span_is_remote: returned.step() == Step::Run,
        span_kind,
        name: name.into(),
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
    fn span_count_is_limited() {
        let many = (2..200).map(|id| span(Step::Command, id, 1)).collect();
        assert_eq!(names(many, TraceFlags::SAMPLED).len(), MAX_SPANS);
    }
}
