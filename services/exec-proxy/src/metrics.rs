//! Every metric of exec-proxy, by name.

use std::time::Duration;

use agentbox_contracts::error::ErrorCode;
use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

const SESSIONS_OPEN: &str = "agentbox_exec_sessions_open";
const SESSIONS: &str = "agentbox_exec_sessions_total";
const FAILURES: &str = "agentbox_exec_failures_total";
const EXEC_SECONDS: &str = "agentbox_exec_duration_seconds";
const BYTES: &str = "agentbox_exec_bytes_total";
const CONNECTIONS: &str = "agentbox_exec_box_connections";
const LIMITS_REACHED: &str = "agentbox_exec_limits_reached_total";
const RESUMES: &str = "agentbox_exec_resumes_total";
const SPANS_REFUSED: &str = "agentbox_exec_box_spans_refused_total";

pub fn describe() {
    describe_gauge!(SESSIONS_OPEN, "Open sessions, by kind");
    describe_counter!(SESSIONS, "Sessions accepted, by kind");
    describe_counter!(
        FAILURES,
        "Sessions and requests that ended with an error, by kind and code"
    );
    describe_histogram!(
        EXEC_SECONDS,
        Unit::Seconds,
        "Duration of an exec, from its request to its result"
    );
    describe_counter!(
        BYTES,
        Unit::Bytes,
        "User bytes, by direction: in (stdin, uploads, to ports), out (output, downloads, from ports)"
    );
    describe_gauge!(CONNECTIONS, "Kept connections to boxes");
    describe_counter!(
        LIMITS_REACHED,
        "Sessions that reached a limit of this process, by limit"
    );
    describe_counter!(
        RESUMES,
        "Commands, and operations on executions, resumed after their connection was lost"
    );
    describe_counter!(
        SPANS_REFUSED,
        "Spans from boxes that were refused as invalid or foreign"
    );
}

/// Counts a session as open until it is dropped.
pub struct OpenSession {
    kind: &'static str,
}

impl OpenSession {
    pub fn new(kind: &'static str) -> Self {
        counter!(SESSIONS, "kind" => kind).increment(1);
        gauge!(SESSIONS_OPEN, "kind" => kind).increment(1.0);
        Self { kind }
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        gauge!(SESSIONS_OPEN, "kind" => self.kind).decrement(1.0);
    }
}

pub fn failed(kind: &'static str, code: ErrorCode) {
    counter!(FAILURES, "kind" => kind, "code" => code.as_str()).increment(1);
}

/// Counts that a limit of this process was reached.
pub fn limit_reached(limit: &'static str) {
    counter!(LIMITS_REACHED, "limit" => limit).increment(1);
}

pub fn exec_finished(duration: Duration) {
    histogram!(EXEC_SECONDS).record(duration.as_secs_f64());
}

pub fn bytes_in(count: usize) {
    counter!(BYTES, "direction" => "in").increment(count as u64);
}

pub fn bytes_out(count: usize) {
    counter!(BYTES, "direction" => "out").increment(count as u64);
}

#[expect(
    clippy::cast_precision_loss,
    reason = "far fewer than 2^52 connections"
)]
pub fn connections(cluster: &str, count: usize) {
    gauge!(CONNECTIONS, "cluster" => cluster.to_owned()).set(count as f64);
}

pub fn resumed() {
    counter!(RESUMES).increment(1);
}

pub fn spans_refused(count: usize) {
    if count > 0 {
        counter!(SPANS_REFUSED).increment(count as u64);
    }
}
