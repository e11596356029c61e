//! boxd's spans in its caller's trace (W3C Trace Context).
//!
//! boxd reaches no collector and holds no credential for one. It returns its spans with
//! the response of the call they belong to, and the caller exports them. A span contains
//! times only: no argument, no variable, no user data. The spans of a run are in its last message, the
//! span of another call is in the header of its response.
//!
//! * I1. A call is recorded only when its `traceparent` is sampled.
//! * I2. A call has at most one span for each step.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentbox_box_protocol::call_span::CallSpan;
use agentbox_box_protocol::proto::{self, Step};
use tonic::metadata::MetadataMap;
use uuid::Uuid;

const TRACEPARENT: &str = "traceparent";
const SAMPLED: u8 = 1;

/// The trace context of a recorded call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    trace_id: [u8; 16],
    parent: [u8; 8],
    started_at: SystemTime,
}

impl Trace {
    /// From the metadata of a call that starts now; `None` unless it is sampled.
    #[must_use]
    pub fn from_metadata(metadata: &MetadataMap) -> Option<Self> {
        let (trace_id, parent) = parse(metadata.get(TRACEPARENT)?.to_str().ok()?)?;
        Some(Self {
            trace_id,
            parent,
            started_at: SystemTime::now(),
        })
    }

    /// The spans of a command whose process was started at `launched` and took `duration`.
    #[must_use]
    pub fn command_spans(&self, launched: SystemTime, duration: Duration) -> Vec<proto::Span> {
        // The duration comes from another clock than the instants: extend the run's span so
        // that it covers its command.
        let ended = launched + duration;
        let run = self.run_until(ended.max(SystemTime::now()));
        let start = child(&run, Step::Start, self.started_at, launched);
        let command = child(&run, Step::Command, launched, ended);
        vec![run, start, command]
    }

    /// The spans of a command that could not be started.
    #[must_use]
    pub fn failed_start_spans(&self) -> Vec<proto::Span> {
        let ended = SystemTime::now();
        let run = self.run_until(ended);
        let start = child(&run, Step::Start, self.started_at, ended);
        vec![run, start]
    }

    /// The span of a call that is accepted now.
    #[must_use]
    pub fn accepted(&self) -> CallSpan {
        CallSpan {
            id: new_span_id(),
            start_unix_nanos: unix_nanos(self.started_at),
            end_unix_nanos: unix_nanos(SystemTime::now().max(self.started_at)),
        }
    }

    fn run_until(&self, ended: SystemTime) -> proto::Span {
        proto::Span {
            trace_id: self.trace_id.to_vec(),
            span_id: new_span_id().to_vec(),
            parent_span_id: self.parent.to_vec(),
            step: Step::Run.into(),
            start_unix_nanos: unix_nanos(self.started_at),
            end_unix_nanos: unix_nanos(ended),
        }
    }
}

fn child(run: &proto::Span, step: Step, from: SystemTime, to: SystemTime) -> proto::Span {
    proto::Span {
        trace_id: run.trace_id.clone(),
        span_id: new_span_id().to_vec(),
        parent_span_id: run.span_id.clone(),
        step: step.into(),
        start_unix_nanos: unix_nanos(from),
        end_unix_nanos: unix_nanos(to),
    }
}

/// A unique span id. It is never zero: a UUID's version is among its bytes.
fn new_span_id() -> [u8; 8] {
    Uuid::new_v4().as_u64_pair().0.to_be_bytes()
}

fn unix_nanos(instant: SystemTime) -> u64 {
    instant.duration_since(UNIX_EPOCH).map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// The ids of a sampled `traceparent`. As the standard requires, a later version may have
/// more fields after the known ones.
fn parse(text: &str) -> Option<([u8; 16], [u8; 8])> {
    let mut parts = text.split('-');
    let [version] = bytes(parts.next()?)?;
    let trace_id: [u8; 16] = bytes(parts.next()?)?;
    let parent: [u8; 8] = bytes(parts.next()?)?;
    let [flags] = bytes(parts.next()?)?;
    let known = version != 0xff && (version != 0 || parts.next().is_none());
    let valid = trace_id != [0; 16] && parent != [0; 8];
    (known && valid && flags & SAMPLED != 0).then_some((trace_id, parent))
}

/// Decodes exactly `N` bytes of lower-case hexadecimal.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut out = [0; N];
    for (byte, [high, low]) in out.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const PARENT: &str = "b7ad6b7169203331";

    #[test]
    fn traceparent_is_parsed_only_when_valid_and_sampled() {
        let sampled = format!("00-{TRACE}-{PARENT}-01");
        let (trace_id, parent) = parse(&sampled).unwrap();
        assert_eq!((trace_id[0], trace_id[15]), (0x0a, 0x9c));
        assert_eq!((parent[0], parent[7]), (0xb7, 0x31));
        for continued in [
            format!("00-{TRACE}-{PARENT}-03"),
            format!("01-{TRACE}-{PARENT}-01-later"),
        ] {
            assert!(parse(&continued).is_some(), "{continued}");
        }
        let zeros = "0".repeat(32);
        for refused in [
            String::new(),
            "00".into(),
            format!("00-{TRACE}-{PARENT}"),
            format!("00-{TRACE}-{PARENT}-00"),
            format!("00-{TRACE}-{PARENT}-01-more"),
            format!("ff-{TRACE}-{PARENT}-01"),
            format!("00-{zeros}-{PARENT}-01"),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}0-{PARENT}-01"),
        ] {
            assert_eq!(parse(&refused), None, "{refused}");
        }
    }

    #[test]
    fn run_span_is_child_of_caller_and_parent_of_steps() {
        let trace = Trace {
            trace_id: [7; 16],
            parent: [9; 8],
            started_at: UNIX_EPOCH + Duration::from_secs(1),
        };
        let launched = UNIX_EPOCH + Duration::from_secs(2);
        let spans = trace.command_spans(launched, Duration::from_secs(3));
        let [run, start, command] = spans.as_slice() else {
            panic!("three spans: {spans:?}");
        };
        assert_eq!(run.parent_span_id, [9; 8]);
        assert_eq!(start.parent_span_id, run.span_id);
        assert_eq!(command.parent_span_id, run.span_id);
        assert!(spans.iter().all(|span| span.trace_id == [7; 16]));
        assert_eq!(start.end_unix_nanos, command.start_unix_nanos);
        assert_eq!(command.end_unix_nanos, 5_000_000_000);
        assert_eq!(trace.failed_start_spans().len(), 2);
    }

    #[test]
    fn span_of_an_accepted_call_does_not_end_before_it_starts() {
        let after_now = SystemTime::now() + Duration::from_secs(3600);
        for started_at in [UNIX_EPOCH + Duration::from_secs(1), after_now] {
            let trace = Trace {
                trace_id: [7; 16],
                parent: [9; 8],
                started_at,
            };
            let span = trace.accepted();
            assert_eq!(span.start_unix_nanos, unix_nanos(started_at));
            assert!(span.end_unix_nanos >= span.start_unix_nanos, "{span:?}");
            assert_ne!(span.id, [0; 8]);
        }
    }
}
