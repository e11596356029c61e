//! The metrics of the gateway. Labels are templates and fixed words, never ids or addresses.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

/// Records one answered request; `route` is the template, never the path.
pub(crate) fn answered(method: &str, route: &str, status: u16, took: Duration) {
    histogram!(
        "agentbox_http_request_duration_seconds",
        "method" => method.to_owned(),
        "route" => route.to_owned(),
        "status" => status.to_string(),
    )
    .record(took.as_secs_f64());
}

/// Counts a request above a rate limit; `category` may be `flood`.
pub(crate) fn rate_limited(category: &'static str) {
    counter!("agentbox_rate_limited_total", "category" => category).increment(1);
}

/// Counts a request that this replica counted alone, because the bus could not.
pub(crate) fn counted_locally() {
    counter!("agentbox_rate_limit_counted_locally_total").increment(1);
}

pub(crate) fn connections(open: usize) {
    #[allow(clippy::cast_precision_loss, reason = "a gauge of some thousands")]
    gauge!("agentbox_http_connections").set(open as f64);
}

/// Counts one open stream of a kind until it is dropped.
pub(crate) struct OpenStream {
    kind: &'static str,
}

impl OpenStream {
    /// `kind`: logs, events or attach.
    pub(crate) fn begin(kind: &'static str) -> Self {
        gauge!("agentbox_streams", "kind" => kind).increment(1.0);
        Self { kind }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        gauge!("agentbox_streams", "kind" => self.kind).decrement(1.0);
    }
}
