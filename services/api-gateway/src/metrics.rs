//! The gateway's metrics. Labels are path templates and fixed words, never ids or addresses.

use std::time::{Duration, Instant};

use agentbox_metrics::{Counter, Gauge, Histogram, Label, NO_LABELS, Unit};

const METHOD: Label = Label::one_of(
    "http_request_method",
    &[
        "GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS", "OTHER",
    ],
);
const STREAM: Label = Label::one_of(
    "kind",
    &[
        "logs",
        "events",
        "attach",
        "output",
        "exec",
        "file",
        "file_events",
        "ports",
    ],
);

agentbox_metrics::metrics! {
    static REQUEST_DURATION: Histogram<3> = Histogram::new(
        "agentbox_http_server_request_duration_seconds",
        Unit::Seconds,
        [
            METHOD,
            Label::bounded(
                "http_route",
                "the template of the route, `preview` for a request to a preview, `unmatched` for any other",
            ),
            Label::bounded("http_response_status_code", "the status"),
        ],
        "Time from a request's head to its answer's head",
    );
    static ACTIVE_REQUESTS: Gauge<1> = Gauge::new(
        "agentbox_http_server_active_requests",
        Unit::Count,
        [METHOD],
        "Requests whose answer's head is not sent yet",
    );
    static RATE_LIMITED: Counter<1> = Counter::new(
        "agentbox_rate_limited_total",
        Unit::Count,
        [Label::one_of(
            "category",
            &[
                "auth", "failed_login", "create", "exec", "files", "other", "uncounted", "flood",
            ],
        )],
        "Requests refused with 429, by rate-limit category",
    );
    static COUNTED_LOCALLY: Counter = Counter::new(
        "agentbox_rate_limit_counted_locally_total",
        Unit::Count,
        [],
        "Requests counted by this replica alone, because the message bus did not count them",
    );
    static CALLERS_IDENTIFIED: Counter<1> = Counter::new(
        "agentbox_callers_identified_total",
        Unit::Count,
        [Label::one_of("source", &["auth", "memory"])],
        "Requests with a token or an API key, by the source of their caller: auth, or what auth confirmed before",
    );
    static CONNECTIONS: Gauge = Gauge::new(
        "agentbox_http_connections",
        Unit::Count,
        [],
        "Open client connections",
    );
    static STREAMS: Gauge<1> = Gauge::new(
        "agentbox_streams",
        Unit::Count,
        [STREAM],
        "Open streams",
    );
    static STREAM_DURATION: Histogram<1> = Histogram::new(
        "agentbox_stream_duration_seconds",
        Unit::Seconds,
        [STREAM],
        "Duration of a stream, from its begin to its end",
    );
    static LIMITS_REACHED: Counter<1> = Counter::new(
        "agentbox_limits_reached_total",
        Unit::Count,
        [Label::bounded("limit", "a limit of [limits](limits.md)")],
        "Connections, sessions and results that reached a limit of this replica",
    );
}

/// Registers the unit and the help text of every metric. Called once, at start.
pub(crate) fn describe() {
    agentbox_metrics::describe(METRICS);
}

/// Records an answered request; `route` is the template, never the path.
pub(crate) fn record_request(method: &str, route: &str, status: u16, took: Duration) {
    let labels = [method.to_owned(), route.to_owned(), status.to_string()];
    REQUEST_DURATION.record(took.as_secs_f64(), labels);
}

/// Counts a request as active until it is dropped.
pub(crate) struct ActiveRequest {
    method: &'static str,
}

impl ActiveRequest {
    /// `method`: a standard one, or `OTHER`.
    pub(crate) fn begin(method: &'static str) -> Self {
        ACTIVE_REQUESTS.shift(1.0, [method]);
        Self { method }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        ACTIVE_REQUESTS.shift(-1.0, [self.method]);
    }
}

/// Counts a request that was refused with 429; `category` may be `flood`.
pub(crate) fn rate_limited(category: &'static str) {
    RATE_LIMITED.add(1, [category]);
}

/// Counts a request that the bus did not count.
pub(crate) fn counted_locally() {
    COUNTED_LOCALLY.add(1, NO_LABELS);
}

/// Counts a token or key that auth was asked for (`auth`), or that it has confirmed before (`memory`).
pub(crate) fn caller_identified(source: &'static str) {
    CALLERS_IDENTIFIED.add(1, [source]);
}

/// Counts that a limit of this replica was reached.
pub(crate) fn limit_reached(limit: &'static str) {
    LIMITS_REACHED.add(1, [limit]);
}

/// Records the number of open connections.
#[expect(clippy::cast_precision_loss, reason = "a gauge of some thousands")]
pub(crate) fn connections(open: usize) {
    CONNECTIONS.set(open as f64, NO_LABELS);
}

/// Counts one open stream until it is dropped.
pub(crate) struct OpenStream {
    kind: &'static str,
    begun: Instant,
}

impl OpenStream {
    /// `kind`: logs, events, attach, output, exec, file, file_events or ports.
    pub(crate) fn begin(kind: &'static str) -> Self {
        STREAMS.shift(1.0, [kind]);
        Self {
            kind,
            begun: Instant::now(),
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        STREAMS.shift(-1.0, [self.kind]);
        STREAM_DURATION.record(self.begun.elapsed().as_secs_f64(), [self.kind]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_reference_matches_code() {
        agentbox_metrics::reference::check("api-gateway", METRICS).unwrap();
    }
}
