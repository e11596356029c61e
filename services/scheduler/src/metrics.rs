//! The scheduler's metrics, declared in one place.

use std::time::Duration;

use agentbox_contracts::environment::{Status, StatusReason};

const TRANSITIONS: &str = "agentbox_environment_transitions_total";
const START_SECONDS: &str = "agentbox_environment_start_seconds";
const RECONCILE_SECONDS: &str = "agentbox_reconcile_seconds";
const RECONCILE_FAILURES: &str = "agentbox_reconcile_failures_total";
const RUNTIME_SECONDS: &str = "agentbox_runtime_call_seconds";
const OUTBOX_PUBLISHED: &str = "agentbox_outbox_published_total";
const OUTBOX_FAILURES: &str = "agentbox_outbox_failures_total";
const ARCHIVES_GIVEN_UP: &str = "agentbox_archives_given_up_total";
const ORPHANS: &str = "agentbox_orphans_removed_total";
const FORGOTTEN: &str = "agentbox_rows_forgotten_total";

/// Names and units for whoever scrapes. Once, at start.
pub fn describe() {
    use metrics::{Unit, describe_counter as counter, describe_histogram as histogram};
    counter!(
        TRANSITIONS,
        "Environments that arrived in a status, by status and reason"
    );
    histogram!(START_SECONDS, Unit::Seconds, "From created to running");
    histogram!(
        RECONCILE_SECONDS,
        Unit::Seconds,
        "One claim of one environment"
    );
    counter!(
        RECONCILE_FAILURES,
        "Steps that failed and are tried again, by step"
    );
    histogram!(
        RUNTIME_SECONDS,
        Unit::Seconds,
        "One call of a cluster, by cluster and call"
    );
    counter!(
        OUTBOX_PUBLISHED,
        "Outbox rows that reached the bus, by kind"
    );
    counter!(
        OUTBOX_FAILURES,
        "Outbox passes that the bus or the database broke off"
    );
    counter!(
        ARCHIVES_GIVEN_UP,
        "Environments that ended without their last output stored"
    );
    counter!(ORPHANS, "Boxes removed because nothing wants them");
    counter!(FORGOTTEN, "Rows deleted after their retention");
}

pub fn arrived(status: Status, reason: Option<StatusReason>) {
    let reason = reason.map_or("", StatusReason::as_str);
    metrics::counter!(TRANSITIONS, "status" => status.as_str(), "reason" => reason).increment(1);
}

pub fn started(after: Duration) {
    metrics::histogram!(START_SECONDS).record(after);
}

pub fn reconciled(took: Duration) {
    metrics::histogram!(RECONCILE_SECONDS).record(took);
}

pub fn step_failed(step: &'static str) {
    metrics::counter!(RECONCILE_FAILURES, "step" => step).increment(1);
}

pub fn runtime_called(cluster: &str, call: &'static str, took: Duration) {
    metrics::histogram!(RUNTIME_SECONDS, "cluster" => cluster.to_owned(), "call" => call)
        .record(took);
}

pub fn published(kind: &'static str) {
    metrics::counter!(OUTBOX_PUBLISHED, "kind" => kind).increment(1);
}

pub fn outbox_failed() {
    metrics::counter!(OUTBOX_FAILURES).increment(1);
}

pub fn archive_given_up() {
    metrics::counter!(ARCHIVES_GIVEN_UP).increment(1);
}

pub fn orphan_removed() {
    metrics::counter!(ORPHANS).increment(1);
}

pub fn forgotten(rows: u64) {
    metrics::counter!(FORGOTTEN).increment(rows);
}
