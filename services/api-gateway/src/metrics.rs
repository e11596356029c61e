//! The gateway's metrics. Labels are path templates and fixed words, never ids or addresses.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

const REQUEST_DURATION: &str = "agentbox_http_request_duration_seconds";
const RATE_LIMITED: &str = "agentbox_rate_limited_total";
const COUNTED_LOCALLY: &str = "agentbox_rate_limit_counted_locally_total";
const CONNECTIONS: &str = "agentbox_http_connections";
const STREAMS: &str = "agentbox_streams";
const LIMITS_REACHED: &str = "agentbox_limits_reached_total";

/// Registers the unit and the help text of every metric. Called once, at start.
pub(crate) fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_histogram!(
        REQUEST_DURATION,
        Unit::Seconds,
        "Time from a request's head to its answer's head, by method, route and status"
    );
    describe_counter!(
        RATE_LIMITED,
        "Requests refused with 429, by rate-limit category"
    );
    describe_counter!(
        COUNTED_LOCALLY,
        "Requests counted by this replica alone, because the message bus did not count them"
    );
    describe_gauge!(CONNECTIONS, "Open client connections");
    describe_gauge!(
        STREAMS,
        "Open streams, by kind: logs, events, attach, output, exec, file, file_events or ports"
    );
    describe_counter!(
        LIMITS_REACHED,
        "Connections, sessions and results that reached a limit of this replica, by limit"
    );
}

/// Records an answered request; `route` is the template, never the path.
pub(crate) fn record_request(method: &str, route: &str, status: u16, took: Duration) {
    histogram!(
        REQUEST_DURATION,
        "method" => method.to_owned(),
        "route" => route.to_owned(),
        "status" => status.to_string(),
    )
    .record(took.as_secs_f64());
}

/// Counts a request that was refused with 429; `category` may be `flood`.
pub(crate) fn rate_limited(category: &'static str) {
    counter!(RATE_LIMITED, "category" => category).increment(1);
}

/// Counts a request that the bus did not count.
pub(crate) fn counted_locally() {
    counter!(COUNTED_LOCALLY).increment(1);
}

/// Counts that a limit of this replica was reached.
pub(crate) fn limit_reached(limit: &'static str) {
    counter!(LIMITS_REACHED, "limit" => limit).increment(1);
}

/// Records the number of open connections.
pub(crate) fn connections(open: usize) {
    #[allow(clippy::cast_precision_loss, reason = "a gauge of some thousands")]
    gauge!(CONNECTIONS).set(open as f64);
}

/// Counts one open stream until it is dropped.
pub(crate) struct OpenStream {
    kind: &'static str,
}

impl OpenStream {
    /// `kind`: logs, events, attach, output, exec, file, file_events or ports.
    pub(crate) fn begin(kind: &'static str) -> Self {
        gauge!(STREAMS, "kind" => kind).increment(1.0);
        Self { kind }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        gauge!(STREAMS, "kind" => self.kind).decrement(1.0);
    }
}
