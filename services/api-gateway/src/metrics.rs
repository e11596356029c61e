//! What the gateway counts.

use std::time::Duration;

/// One answered request; `route` is the template, never the path.
pub(crate) fn answered(method: &str, route: &str, status: u16, took: Duration) {
    metrics::histogram!(
        "agentbox_http_request_duration_seconds",
        "method" => method.to_owned(),
        "route" => route.to_owned(),
        "status" => status.to_string(),
    )
    .record(took.as_secs_f64());
}

pub(crate) fn rate_limited(category: &'static str) {
    metrics::counter!("agentbox_rate_limited_total", "category" => category).increment(1);
}

/// A request was let through uncounted: the bus did not answer.
pub(crate) fn rate_limit_unknown() {
    metrics::counter!("agentbox_rate_limit_unknown_total").increment(1);
}

pub(crate) fn connections(open: usize) {
    #[allow(clippy::cast_precision_loss, reason = "a gauge of some thousands")]
    metrics::gauge!("agentbox_http_connections").set(open as f64);
}
