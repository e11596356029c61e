//! The scheduler's metrics. `agentbox_runtime` defines the stages of a create.

use std::time::Duration;

use agentbox_contracts::environment::{Status, StatusReason};
use agentbox_contracts::pool::{MissReason, PoolUse};
use agentbox_metrics::{Counter, Gauge, GaugeSet, Histogram, Label, NO_LABELS, Unit};
use agentbox_runtime::Capacity;
use agentbox_runtime::metrics::{Stage, stage_completed};
use chrono::{DateTime, Utc};

use crate::environment::store::{OwnerUse, Statistics};

const CLUSTER: Label = Label::bounded("cluster", "the name of a cluster");
const STATUS: Label = Label::bounded("status", "the status of an environment");
const OWNER: Label = Label::bounded(
    "owner",
    "the id of one of the users who have reserved the most CPU, `other` for the rest",
);
const POOL: Label = Label::bounded("pool", "the name of a warm pool");
const RESOURCE_STATE: Label = Label::one_of("state", &["total", "available"]);

agentbox_metrics::metrics! {
    static TRANSITIONS: Counter<2> = Counter::new(
        "agentbox_environment_transitions_total",
        Unit::Count,
        [STATUS, Label::bounded("reason", "a status reason, or empty")],
        "Environments that entered a status",
    );
    static RECONCILE_DURATION: Histogram = Histogram::new(
        "agentbox_reconcile_duration_seconds",
        Unit::Seconds,
        [],
        "Duration of one reconcile of one environment",
    );
    static RECONCILE_FAILURES: Counter<1> = Counter::new(
        "agentbox_reconcile_failures_total",
        Unit::Count,
        [Label::bounded("step", "a step of a reconcile")],
        "Reconcile steps that failed and are retried",
    );
    static RECONCILES_DUE: GaugeSet<1> = GaugeSet::new(
        "agentbox_reconcile_due_environments",
        Unit::Count,
        [CLUSTER],
        "Environments that are due for a reconcile and that no replica has taken, as every replica sees it",
    );
    static RECONCILE_AGE: GaugeSet<1> = GaugeSet::new(
        "agentbox_reconcile_oldest_due_age_seconds",
        Unit::Seconds,
        [CLUSTER],
        "For how long the oldest of the due environments has been due; 0 when none is",
    );
    static COMPARED_AT: Gauge<1> = Gauge::new(
        "agentbox_reconcile_last_comparison_timestamp_seconds",
        Unit::Seconds,
        [CLUSTER],
        "Unix time of the last comparison of a cluster's boxes with the database, on the replica that made \
         it",
    );
    static RUNTIME_CALL_DURATION: Histogram<3> = Histogram::new(
        "agentbox_runtime_call_duration_seconds",
        Unit::Seconds,
        [
            CLUSTER,
            Label::bounded("call", "a method of the driver"),
            Label::one_of("outcome", &["ok", "failed"]),
        ],
        "Duration of one call of a cluster's driver",
    );
    static OUTBOX_PUBLISHED: Counter<1> = Counter::new(
        "agentbox_outbox_published_total",
        Unit::Count,
        [Label::one_of("kind", &["event", "command", "route", "audit"])],
        "Outbox rows that were published",
    );
    static OUTBOX_FAILURES: Counter = Counter::new(
        "agentbox_outbox_failures_total",
        Unit::Count,
        [],
        "Attempts to publish an environment's outbox rows that failed",
    );
    static OUTBOX_PENDING: GaugeSet<0> = GaugeSet::new(
        "agentbox_outbox_pending_rows",
        Unit::Count,
        [],
        "Outbox rows that are not published yet, as every replica sees it",
    );
    static OUTBOX_AGE: GaugeSet<0> = GaugeSet::new(
        "agentbox_outbox_oldest_age_seconds",
        Unit::Seconds,
        [],
        "The age of the oldest outbox row that is not published yet; 0 when all are",
    );
    static ENVIRONMENTS: GaugeSet<2> = GaugeSet::new(
        "agentbox_environments",
        Unit::Count,
        [CLUSTER, STATUS],
        "Environments that have not ended, as every replica sees it",
    );
    static OWNER_ENVIRONMENTS: GaugeSet<1> = GaugeSet::new(
        "agentbox_owner_environments",
        Unit::Count,
        [OWNER],
        "Environments of a user that have not ended, as every replica sees it",
    );
    static OWNER_CPU: GaugeSet<1> = GaugeSet::new(
        "agentbox_owner_cpu_cores",
        Unit::Count,
        [OWNER],
        "Cores that a user's environments have reserved, as every replica sees it",
    );
    static OWNER_MEMORY: GaugeSet<1> = GaugeSet::new(
        "agentbox_owner_memory_bytes",
        Unit::Bytes,
        [OWNER],
        "Memory that a user's environments have reserved, as every replica sees it",
    );
    static OWNER_STORAGE: GaugeSet<1> = GaugeSet::new(
        "agentbox_owner_storage_bytes",
        Unit::Bytes,
        [OWNER],
        "Storage that a user's environments have reserved, as every replica sees it",
    );
    static CLUSTER_REACHABLE: Gauge<1> = Gauge::new(
        "agentbox_cluster_reachable",
        Unit::Count,
        [CLUSTER],
        "1 when the cluster has answered this replica within the last seconds, else 0",
    );
    static CLUSTER_CPU: Gauge<2> = Gauge::new(
        "agentbox_cluster_cpu_cores",
        Unit::Count,
        [CLUSTER, RESOURCE_STATE],
        "Cores of a cluster in its last answer: all, and those that no box has reserved",
    );
    static CLUSTER_MEMORY: Gauge<2> = Gauge::new(
        "agentbox_cluster_memory_bytes",
        Unit::Bytes,
        [CLUSTER, RESOURCE_STATE],
        "Memory of a cluster in its last answer: all, and what no box has reserved",
    );
    static POOL_REQUESTS: Counter<2> = Counter::new(
        "agentbox_pool_requests_total",
        Unit::Count,
        [
            POOL,
            Label::one_of(
                "outcome",
                &[
                    "hit", "resources", "runtime_class", "security_context", "node_selector", "tolerations",
                    "entrypoint", "network_policy", "empty", "claim_failed",
                ],
            ),
        ],
        "Environments created of a pool's image: hit, or the reason of the miss",
    );
    static POOL_BOXES: GaugeSet<2> = GaugeSet::new(
        "agentbox_pool_boxes",
        Unit::Count,
        [POOL, Label::one_of("status", &["starting", "ready", "draining"])],
        "Boxes of a warm pool, on the replica that reconciles the pools",
    );
    static POOL_TARGET: GaugeSet<1> = GaugeSet::new(
        "agentbox_pool_target_boxes",
        Unit::Count,
        [POOL],
        "Boxes that a warm pool keeps ready, on the replica that reconciles the pools",
    );
    static POOL_START_FAILURES: Counter<1> = Counter::new(
        "agentbox_pool_start_failures_total",
        Unit::Count,
        [POOL],
        "Starts of boxes that failed and that a warm pool retries",
    );
    static ARCHIVES_ABANDONED: Counter = Counter::new(
        "agentbox_archives_given_up_total",
        Unit::Count,
        [],
        "Environments that ended without an archive of their last output",
    );
    static ORPHANS: Counter = Counter::new(
        "agentbox_orphans_removed_total",
        Unit::Count,
        [],
        "Boxes removed because they had no environment",
    );
    static ROWS_PURGED: Counter = Counter::new(
        "agentbox_rows_purged_total",
        Unit::Count,
        [],
        "Rows deleted after their retention",
    );
    static ROWS_UNREADABLE: Counter = Counter::new(
        "agentbox_rows_unreadable_total",
        Unit::Count,
        [],
        "Rows that a periodic task skipped because it could not read them",
    );
}

/// Describes the metrics to the recorder. To be called once, at start.
pub fn describe() {
    agentbox_metrics::describe(METRICS);
    agentbox_runtime::metrics::describe();
}

pub fn transitioned(status: Status, reason: Option<StatusReason>) {
    let reason = reason.map_or("", StatusReason::as_str);
    TRANSITIONS.add(1, [status.as_str(), reason]);
}

/// Records that capacity was reserved at `now` for an environment that was requested at `requested`.
pub fn admitted(requested: DateTime<Utc>, now: DateTime<Utc>) {
    stage_completed(Stage::Admitted, between(requested, now));
}

/// Records that an environment runs since `now`: in a warm box that it has claimed, or in a box that was
/// created from `begun` on, if that is known.
pub fn started(
    requested: DateTime<Utc>,
    is_claimed: bool,
    begun: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
) {
    if is_claimed {
        stage_completed(Stage::Claimed, between(requested, now));
    } else if let Some(begun) = begun {
        stage_completed(Stage::Queued, between(requested, begun));
    }
    stage_completed(Stage::Running, between(requested, now));
}

/// The time between the two; zero when the clocks of two machines disagree about their order.
fn between(from: DateTime<Utc>, to: DateTime<Utc>) -> Duration {
    (to - from).to_std().unwrap_or_default()
}

pub fn reconciled(took: Duration) {
    RECONCILE_DURATION.record(took.as_secs_f64(), NO_LABELS);
}

pub fn step_failed(step: &'static str) {
    RECONCILE_FAILURES.add(1, [step]);
}

pub fn runtime_called(cluster: &str, call: &'static str, is_ok: bool, took: Duration) {
    let outcome = if is_ok { "ok" } else { "failed" };
    let labels = [cluster, call, outcome].map(ToOwned::to_owned);
    RUNTIME_CALL_DURATION.record(took.as_secs_f64(), labels);
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub fn compared(cluster: &str, now: DateTime<Utc>) {
    COMPARED_AT.set(now.timestamp() as f64, [cluster.to_owned()]);
}

/// `capacity`: `None` when the cluster does not answer.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub fn cluster(name: &str, capacity: Option<&Capacity>) {
    let reachable = if capacity.is_some() { 1.0 } else { 0.0 };
    CLUSTER_REACHABLE.set(reachable, [name.to_owned()]);
    let Some(capacity) = capacity else { return };
    for (state, cpu, memory) in [
        ("total", capacity.total_cpu, capacity.total_memory),
        (
            "available",
            capacity.available_cpu,
            capacity.available_memory,
        ),
    ] {
        let labels = || [name.to_owned(), state.to_owned()];
        CLUSTER_CPU.set(cpu.0 as f64 / 1000.0, labels());
        CLUSTER_MEMORY.set(memory.0 as f64, labels());
    }
}

/// Reports what the database has; `clusters` are those of the deployment.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
pub fn statistics<'a>(statistics: &Statistics, clusters: impl Iterator<Item = &'a str>) {
    let Statistics {
        environments,
        owners,
        outbox,
        due,
    } = statistics;
    OUTBOX_PENDING.replace(vec![([], outbox.count as f64)]);
    OUTBOX_AGE.replace(vec![([], outbox.oldest_s)]);
    let (mut counts, mut ages) = (Vec::new(), Vec::new());
    for cluster in clusters {
        let backlog = due.get(cluster).copied().unwrap_or_default();
        counts.push(([cluster.to_owned()], backlog.count as f64));
        ages.push(([cluster.to_owned()], backlog.oldest_s));
    }
    RECONCILES_DUE.replace(counts);
    RECONCILE_AGE.replace(ages);
    let of_status = environments.iter().map(|row| {
        let labels = [row.cluster.clone(), row.status.clone()];
        (labels, row.count as f64)
    });
    ENVIRONMENTS.replace(of_status.collect());
    OWNER_ENVIRONMENTS.replace(by_owner(owners, |row| row.environments as f64));
    OWNER_CPU.replace(by_owner(owners, |row| row.cpu_milli as f64 / 1000.0));
    OWNER_MEMORY.replace(by_owner(owners, |row| row.memory_bytes as f64));
    OWNER_STORAGE.replace(by_owner(owners, |row| row.storage_bytes as f64));
}

fn by_owner(owners: &[OwnerUse], value: impl Fn(&OwnerUse) -> f64) -> Vec<([String; 1], f64)> {
    let series = |row: &OwnerUse| ([row.owner.clone()], value(row));
    owners.iter().map(series).collect()
}

pub fn published(kind: &'static str) {
    OUTBOX_PUBLISHED.add(1, [kind]);
}

pub fn outbox_failed() {
    OUTBOX_FAILURES.add(1, NO_LABELS);
}

pub fn archive_abandoned() {
    ARCHIVES_ABANDONED.add(1, NO_LABELS);
}

pub fn orphan_removed() {
    ORPHANS.add(1, NO_LABELS);
}

pub fn rows_unreadable(rows: u64) {
    ROWS_UNREADABLE.add(rows, NO_LABELS);
}

pub fn rows_purged(rows: u64) {
    ROWS_PURGED.add(rows, NO_LABELS);
}

pub fn pool_requested(pool: &PoolUse) {
    let outcome = pool.reason.map_or("hit", MissReason::as_str);
    POOL_REQUESTS.add(1, [pool.name.clone(), outcome.to_owned()]);
}

/// The boxes of one warm pool.
pub struct PoolSize {
    pub pool: String,
    /// By status.
    pub boxes: [(&'static str, u32); 3],
    pub target: u32,
}

/// Reports the boxes of all pools. None: this replica does not reconcile them.
pub fn pools(sizes: &[PoolSize]) {
    let boxes = sizes.iter().flat_map(|size| {
        let series = size.boxes.iter();
        series.map(move |(status, count)| {
            let labels = [size.pool.clone(), (*status).to_owned()];
            (labels, f64::from(*count))
        })
    });
    POOL_BOXES.replace(boxes.collect());
    let targets = sizes
        .iter()
        .map(|size| ([size.pool.clone()], f64::from(size.target)));
    POOL_TARGET.replace(targets.collect());
}

pub fn pool_start_failed(pool: &str) {
    POOL_START_FAILURES.add(1, [pool.to_owned()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_reference_matches_code() {
        agentbox_metrics::reference::check("scheduler", METRICS).unwrap();
    }
}
