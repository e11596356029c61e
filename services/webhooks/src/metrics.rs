//! The metrics of webhooks. Label values come from closed lists.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

const EVENTS: &str = "agentbox_webhooks_events_total";
const ATTEMPTS: &str = "agentbox_webhooks_attempts_total";
const ATTEMPT_SECONDS: &str = "agentbox_webhooks_attempt_seconds";
const DEAD: &str = "agentbox_webhooks_dead_deliveries_total";
const PURGED: &str = "agentbox_webhooks_rows_purged_total";

pub fn describe() {
    describe_counter!(EVENTS, "Events whose deliveries this replica stored");
    describe_counter!(ATTEMPTS, "Attempts of deliveries, by outcome");
    describe_histogram!(
        ATTEMPT_SECONDS,
        Unit::Seconds,
        "Time of one attempt, from the resolution of the name to the head of the answer"
    );
    describe_counter!(DEAD, "Deliveries that ended without success");
    describe_counter!(PURGED, "Rows removed, by table");
}

pub fn event_stored() {
    counter!(EVENTS).increment(1);
}

/// `outcome` is one of the constants of [`crate::delivery::send::Failure::label`], or `delivered`.
pub fn attempted(outcome: &'static str, took: Duration) {
    counter!(ATTEMPTS, "outcome" => outcome).increment(1);
    histogram!(ATTEMPT_SECONDS).record(took.as_secs_f64());
}

pub fn dead(deliveries: u64) {
    counter!(DEAD).increment(deliveries);
}

pub fn rows_purged(table: &'static str, rows: u64) {
    counter!(PURGED, "table" => table).increment(rows);
}
