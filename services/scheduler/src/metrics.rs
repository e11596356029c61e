//! The scheduler's metrics.

use std::time::Duration;

use agentbox_contracts::environment::{Status, StatusReason};
use agentbox_contracts::pool::{MissReason, PoolUse};

const TRANSITIONS: &str = "agentbox_environment_transitions_total";
const START_SECONDS: &str = "agentbox_environment_start_seconds";
const RECONCILE_SECONDS: &str = "agentbox_reconcile_seconds";
const RECONCILE_FAILURES: &str = "agentbox_reconcile_failures_total";
const RUNTIME_SECONDS: &str = "agentbox_runtime_call_seconds";
const OUTBOX_PUBLISHED: &str = "agentbox_outbox_published_total";
const OUTBOX_FAILURES: &str = "agentbox_outbox_failures_total";
const ARCHIVES_ABANDONED: &str = "agentbox_archives_given_up_total";
const ORPHANS: &str = "agentbox_orphans_removed_total";
const ROWS_PURGED: &str = "agentbox_rows_purged_total";
const ROWS_UNREADABLE: &str = "agentbox_rows_unreadable_total";
const POOL_REQUESTS: &str = "agentbox_pool_requests_total";
const POOL_BOXES: &str = "agentbox_pool_boxes";
const POOL_TARGET: &str = "agentbox_pool_target_boxes";
const POOL_START_FAILURES: &str = "agentbox_pool_start_failures_total";

/// Describes the metrics to the recorder. To be called once, at start.
pub fn describe() {
    use metrics::{
        Unit, describe_counter as counter, describe_gauge as gauge, describe_histogram as histogram,
    };
    counter!(
        TRANSITIONS,
        "Environments that entered a status, by status and reason"
    );
    histogram!(
        START_SECONDS,
        Unit::Seconds,
        "Time from creation to running"
    );
    histogram!(
        RECONCILE_SECONDS,
        Unit::Seconds,
        "Time of one reconcile of one environment"
    );
    counter!(
        RECONCILE_FAILURES,
        "Reconcile steps that failed and are retried, by step"
    );
    histogram!(
        RUNTIME_SECONDS,
        Unit::Seconds,
        "Time of one call of a cluster, by cluster and call"
    );
    counter!(OUTBOX_PUBLISHED, "Outbox rows that were published, by kind");
    counter!(
        OUTBOX_FAILURES,
        "Attempts to publish an environment's outbox rows that failed"
    );
    counter!(
        ARCHIVES_ABANDONED,
        "Environments that ended without an archive of their last output"
    );
    counter!(ORPHANS, "Boxes removed because they had no environment");
    counter!(ROWS_PURGED, "Rows deleted after their retention");
    counter!(
        ROWS_UNREADABLE,
        "Rows that a periodic task skipped because it could not read them"
    );
    counter!(
        POOL_REQUESTS,
        "Environments created of a pool's image, by pool and outcome: hit, or the reason of the miss"
    );
    gauge!(POOL_BOXES, "Boxes of a warm pool, by pool and status");
    gauge!(POOL_TARGET, "Boxes that a warm pool keeps ready, by pool");
    counter!(
        POOL_START_FAILURES,
        "Starts of boxes that a warm pool retries, by pool"
    );
}

pub fn transitioned(status: Status, reason: Option<StatusReason>) {
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

pub fn archive_abandoned() {
    metrics::counter!(ARCHIVES_ABANDONED).increment(1);
}

pub fn orphan_removed() {
    metrics::counter!(ORPHANS).increment(1);
}

pub fn rows_unreadable(rows: u64) {
    metrics::counter!(ROWS_UNREADABLE).increment(rows);
}

pub fn rows_purged(rows: u64) {
    metrics::counter!(ROWS_PURGED).increment(rows);
}

pub fn pool_requested(pool: &PoolUse) {
    let outcome = pool.reason.map_or("hit", MissReason::as_str);
    metrics::counter!(POOL_REQUESTS, "pool" => pool.name.clone(), "outcome" => outcome)
        .increment(1);
}

pub fn pool_boxes(pool: &str, status: &'static str, boxes: u32) {
    metrics::gauge!(POOL_BOXES, "pool" => pool.to_owned(), "status" => status)
        .set(f64::from(boxes));
}

pub fn pool_target(pool: &str, target: u32) {
    metrics::gauge!(POOL_TARGET, "pool" => pool.to_owned()).set(f64::from(target));
}

pub fn pool_start_failed(pool: &str) {
    metrics::counter!(POOL_START_FAILURES, "pool" => pool.to_owned()).increment(1);
}
