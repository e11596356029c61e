//! Every metric of exec-proxy, by name.

use std::time::Duration;

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::executions::ExecutionStatus;
use agentbox_metrics::{Counter, Gauge, Histogram, Label, NO_LABELS, Unit};

use crate::outcome::Outcome;

const SESSION_KIND: Label = Label::one_of(
    "kind",
    &["exec", "logs", "files", "executions", "port", "ports"],
);
const BYTES_KIND: Label = Label::one_of("kind", &["exec", "logs", "files", "executions", "port"]);
const DIRECTION: Label = Label::one_of("direction", &["in", "out"]);
const STREAM: Label = Label::one_of("stream", &["stdout", "stderr"]);
const ERROR_TYPE: Label = Label::bounded("error_type", "empty, or an error code");

agentbox_metrics::metrics! {
    static SESSIONS_OPEN: Gauge<1> = Gauge::new(
        "agentbox_exec_sessions_open",
        Unit::Count,
        [SESSION_KIND],
        "Open sessions",
    );
    static SESSIONS: Counter<1> = Counter::new(
        "agentbox_exec_sessions_total",
        Unit::Count,
        [SESSION_KIND],
        "Sessions that were accepted",
    );
    static SESSION_DURATION: Histogram<2> = Histogram::new(
        "agentbox_exec_session_duration_seconds",
        Unit::Seconds,
        [
            SESSION_KIND,
            Label::one_of("outcome", &["finished", "peer_gone", "failed"]),
        ],
        "Duration of a session; peer_gone: the gateway closed it before its last message",
    );
    static FAILURES: Counter<2> = Counter::new(
        "agentbox_exec_failures_total",
        Unit::Count,
        [
            Label::bounded("kind", "the kind of the session, or the request"),
            Label::bounded("code", "an error code"),
        ],
        "Sessions and requests that ended with an error",
    );
    static EXEC_DURATION: Histogram = Histogram::new(
        "agentbox_exec_duration_seconds",
        Unit::Seconds,
        [],
        "Duration of an exec, from its request to its result",
    );
    static BYTES: Counter<2> = Counter::new(
        "agentbox_exec_bytes_total",
        Unit::Bytes,
        [BYTES_KIND, DIRECTION],
        "User bytes by kind of session: in (stdin, uploads, to ports), out (output, downloads, from ports)",
    );
    static FILE_OPERATIONS: Histogram<2> = Histogram::new(
        "agentbox_file_operation_duration_seconds",
        Unit::Seconds,
        [
            Label::one_of(
                "operation",
                &[
                    "stat", "list", "read", "write", "make_directory", "move", "copy", "delete", "change",
                    "watch", "unknown",
                ],
            ),
            ERROR_TYPE,
        ],
        "Duration of a file operation that the box completed; `error_type` is empty if it succeeded",
    );
    static EXECUTION_OPERATIONS: Histogram<2> = Histogram::new(
        "agentbox_execution_operation_duration_seconds",
        Unit::Seconds,
        [
            Label::one_of(
                "operation",
                &[
                    "start", "list", "get", "output", "stdin", "control", "delete", "attach", "unknown",
                ],
            ),
            ERROR_TYPE,
        ],
        "Duration of an operation on executions; `error_type` is empty if it succeeded, and `peer_gone` if \
         the gateway ended it",
    );
    static EXECUTIONS_STARTED: Counter = Counter::new(
        "agentbox_executions_started_total",
        Unit::Count,
        [],
        "Executions that were started through this process, without repeated requests",
    );
    static EXECUTIONS_RUNNING: Gauge = Gauge::new(
        "agentbox_executions_running",
        Unit::Count,
        [],
        "Executions that were started through this process and whose end it has not seen",
    );
    static EXECUTIONS_ENDED: Counter<1> = Counter::new(
        "agentbox_executions_ended_total",
        Unit::Count,
        [Label::one_of(
            "status",
            &["exited", "signalled", "timed_out", "oom_killed", "failed_to_start", "lost"],
        )],
        "Executions whose end this process has seen, by the outcome: when a request read it, or at the end \
         of the environment",
    );
    static EXECUTION_OUTPUT: Counter<1> = Counter::new(
        "agentbox_execution_output_bytes_total",
        Unit::Bytes,
        [STREAM],
        "Output of executions that was sent to readers",
    );
    static EXECUTION_GAPS: Counter<1> = Counter::new(
        "agentbox_execution_output_gaps_total",
        Unit::Count,
        [STREAM],
        "Gaps that readers of output were told of, because the output was no longer kept",
    );
    static EXECUTION_GAP_BYTES: Counter<1> = Counter::new(
        "agentbox_execution_output_gap_bytes_total",
        Unit::Bytes,
        [STREAM],
        "Bytes of output in these gaps",
    );
    static CONNECTIONS: Gauge<1> = Gauge::new(
        "agentbox_exec_box_connections",
        Unit::Count,
        [Label::bounded("cluster", "the name of a cluster")],
        "Kept connections to boxes",
    );
    static LIMITS_REACHED: Counter<1> = Counter::new(
        "agentbox_exec_limits_reached_total",
        Unit::Count,
        [Label::one_of(
            "limit",
            &["sessions", "sessions_per_box", "sessions_per_owner"],
        )],
        "Sessions that reached a limit of this process",
    );
    static RESUMES: Counter = Counter::new(
        "agentbox_exec_resumes_total",
        Unit::Count,
        [],
        "Commands, and operations on executions, resumed after their connection was lost",
    );
    static SPANS_REFUSED: Counter = Counter::new(
        "agentbox_exec_box_spans_refused_total",
        Unit::Count,
        [],
        "Spans from boxes that were refused as invalid or foreign",
    );
}

pub fn describe() {
    agentbox_metrics::describe(METRICS);
}

/// Counts a session as open until it is dropped.
pub struct OpenSession {
    kind: &'static str,
}

impl OpenSession {
    pub fn new(kind: &'static str) -> Self {
        SESSIONS.add(1, [kind]);
        SESSIONS_OPEN.shift(1.0, [kind]);
        Self { kind }
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        SESSIONS_OPEN.shift(-1.0, [self.kind]);
    }
}

pub fn session_ended(kind: &'static str, outcome: Outcome, took: Duration) {
    let outcome = match outcome {
        Outcome::Finished => "finished",
        Outcome::PeerGone => "peer_gone",
        Outcome::Failed(_) => "failed",
    };
    SESSION_DURATION.record(took.as_secs_f64(), [kind, outcome]);
}

pub fn failed(kind: &'static str, code: ErrorCode) {
    FAILURES.add(1, [kind, code.as_str()]);
}

/// Counts that a limit of this process was reached.
pub fn limit_reached(limit: &'static str) {
    LIMITS_REACHED.add(1, [limit]);
}

pub fn exec_finished(duration: Duration) {
    EXEC_DURATION.record(duration.as_secs_f64(), NO_LABELS);
}

/// `kind`: of the session.
pub fn bytes_in(kind: &'static str, count: usize) {
    BYTES.add(count as u64, [kind, "in"]);
}

/// `kind`: of the session.
pub fn bytes_out(kind: &'static str, count: usize) {
    BYTES.add(count as u64, [kind, "out"]);
}

/// `error`: the code of the box's failure.
pub fn file_operation(operation: &'static str, error: Option<ErrorCode>, took: Duration) {
    let error = error.map_or("", ErrorCode::as_str);
    FILE_OPERATIONS.record(took.as_secs_f64(), [operation, error]);
}

pub fn execution_operation(operation: &'static str, outcome: Outcome, took: Duration) {
    let error = match outcome {
        Outcome::Finished => "",
        Outcome::PeerGone => "peer_gone",
        Outcome::Failed(code) => code.as_str(),
    };
    EXECUTION_OPERATIONS.record(took.as_secs_f64(), [operation, error]);
}

pub fn execution_started() {
    EXECUTIONS_STARTED.add(1, NO_LABELS);
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 executions")]
pub fn executions_running(count: usize) {
    EXECUTIONS_RUNNING.set(count as f64, NO_LABELS);
}

/// An execution without an outcome at the end of its environment is lost.
pub fn execution_ended(status: ExecutionStatus) {
    let status = match status {
        ExecutionStatus::Exited => "exited",
        ExecutionStatus::Signalled => "signalled",
        ExecutionStatus::TimedOut => "timed_out",
        ExecutionStatus::OomKilled => "oom_killed",
        ExecutionStatus::FailedToStart => "failed_to_start",
        ExecutionStatus::Starting | ExecutionStatus::Running | ExecutionStatus::Lost => "lost",
    };
    EXECUTIONS_ENDED.add(1, [status]);
}

pub fn execution_output(stderr: bool, bytes: usize) {
    EXECUTION_OUTPUT.add(bytes as u64, [stream(stderr)]);
}

pub fn execution_gap(stderr: bool, bytes: u64) {
    EXECUTION_GAPS.add(1, [stream(stderr)]);
    EXECUTION_GAP_BYTES.add(bytes, [stream(stderr)]);
}

const fn stream(stderr: bool) -> &'static str {
    if stderr { "stderr" } else { "stdout" }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "far fewer than 2^52 connections"
)]
pub fn connections(cluster: &str, count: usize) {
    CONNECTIONS.set(count as f64, [cluster.to_owned()]);
}

pub fn resumed() {
    RESUMES.add(1, NO_LABELS);
}

pub fn spans_refused(count: usize) {
    if count > 0 {
        SPANS_REFUSED.add(count as u64, NO_LABELS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_reference_matches_code() {
        agentbox_metrics::reference::check("exec-proxy", METRICS).unwrap();
    }
}
