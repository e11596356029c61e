//! The metrics of webhooks. Label values come from closed lists.

use std::time::Duration;

use agentbox_metrics::{Counter, Histogram, Label, NO_LABELS, Unit};

agentbox_metrics::metrics! {
    static EVENTS: Counter = Counter::new(
        "agentbox_webhooks_events_total",
        Unit::Count,
        [],
        "Events whose deliveries this replica stored",
    );
    static ATTEMPT_DURATION: Histogram<1> = Histogram::new(
        "agentbox_webhooks_attempt_duration_seconds",
        Unit::Seconds,
        [Label::one_of(
            "outcome",
            &[
                "delivered", "url", "key", "not_allowed", "unreachable", "broken", "deadline", "redirect",
                "status",
            ],
        )],
        "Duration of one attempt of a delivery, from the resolution of the name to the head of the answer",
    );
    static DEAD: Counter = Counter::new(
        "agentbox_webhooks_dead_deliveries_total",
        Unit::Count,
        [],
        "Deliveries that ended without success",
    );
    static PURGED: Counter<1> = Counter::new(
        "agentbox_webhooks_rows_purged_total",
        Unit::Count,
        [Label::one_of("table", &["deliveries", "webhooks"])],
        "Rows removed, by table",
    );
}

pub fn describe() {
    agentbox_metrics::describe(METRICS);
}

pub fn event_stored() {
    EVENTS.add(1, NO_LABELS);
}

/// `outcome` is one of the constants of [`crate::delivery::send::Failure::label`], or `delivered`.
pub fn attempted(outcome: &'static str, took: Duration) {
    ATTEMPT_DURATION.record(took.as_secs_f64(), [outcome]);
}

pub fn dead(deliveries: u64) {
    DEAD.add(deliveries, NO_LABELS);
}

pub fn rows_purged(table: &'static str, rows: u64) {
    PURGED.add(rows, [table]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_reference_matches_code() {
        agentbox_metrics::reference::check("webhooks", METRICS).unwrap();
    }
}
