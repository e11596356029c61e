//! The metrics of auth. Label values come from closed lists.

use std::time::Duration;

use agentbox_metrics::{Counter, Histogram, Label, NO_LABELS, Unit};

const OUTCOME: Label = Label::one_of("outcome", &["ok", "failed"]);

agentbox_metrics::metrics! {
    static PASSWORD_HASHES: Counter<1> = Counter::new(
        "agentbox_auth_password_hashes_total",
        Unit::Count,
        [Label::one_of("purpose", &["verify", "create"])],
        "Argon2id computations, by purpose",
    );
    static PASSWORD_HASH_DURATION: Histogram = Histogram::new(
        "agentbox_auth_password_hash_duration_seconds",
        Unit::Seconds,
        [],
        "Duration of one Argon2id computation, without the wait",
    );
    static PASSWORD_QUEUE_FULL: Counter = Counter::new(
        "agentbox_auth_password_queue_full_total",
        Unit::Count,
        [],
        "Requests refused because the queue for Argon2id was full",
    );
    static AUTHENTICATIONS: Counter<2> = Counter::new(
        "agentbox_auth_authentications_total",
        Unit::Count,
        [Label::one_of("kind", &["api_key", "token", "ticket", "revalidate"]), OUTCOME],
        "Credentials checked, by kind and outcome",
    );
    static LOGINS: Counter<1> = Counter::new(
        "agentbox_auth_logins_total",
        Unit::Count,
        [OUTCOME],
        "Login attempts, by outcome",
    );
    static SIGNING_KEYS: Counter = Counter::new(
        "agentbox_auth_signing_keys_created_total",
        Unit::Count,
        [],
        "Signing keys made by this replica",
    );
    static PURGED: Counter<1> = Counter::new(
        "agentbox_auth_rows_purged_total",
        Unit::Count,
        [Label::bounded("table", "a table of auth")],
        "Expired rows removed, by table",
    );
    static KEY_USES_DROPPED: Counter = Counter::new(
        "agentbox_auth_key_uses_dropped_total",
        Unit::Count,
        [],
        "Uses of API keys that were not recorded because the buffer was full",
    );
    static AUDIT_ENTRIES: Counter = Counter::new(
        "agentbox_auth_audit_entries_chained_total",
        Unit::Count,
        [],
        "Entries of the audit trail that this replica chained",
    );
    static DELETIONS: Counter<1> = Counter::new(
        "agentbox_auth_user_deletions_notified_total",
        Unit::Count,
        [OUTCOME],
        "Notifications of the scheduler about deleted users, by outcome",
    );
    static SETTLE_DURATION: Histogram = Histogram::new(
        "agentbox_auth_change_settle_duration_seconds",
        Unit::Seconds,
        [],
        "How long a change of credentials waited until no gateway repeated what it had confirmed before",
    );
    static LEASES_EXPIRED: Counter = Counter::new(
        "agentbox_auth_gateway_leases_expired_total",
        Unit::Count,
        [],
        "Leases of gateways that did not answer a change of credentials until the lease had run out",
    );
}

pub fn describe() {
    agentbox_metrics::describe(METRICS);
}

/// `purpose` is `verify` or `create`.
pub fn password_hashed(purpose: &'static str, took: Duration) {
    PASSWORD_HASHES.add(1, [purpose]);
    PASSWORD_HASH_DURATION.record(took.as_secs_f64(), NO_LABELS);
}

pub fn password_queue_full() {
    PASSWORD_QUEUE_FULL.add(1, NO_LABELS);
}

pub fn authenticated(kind: &'static str, ok: bool) {
    AUTHENTICATIONS.add(1, [kind, outcome(ok)]);
}

pub fn login(ok: bool) {
    LOGINS.add(1, [outcome(ok)]);
}

pub fn signing_key_created() {
    SIGNING_KEYS.add(1, NO_LABELS);
}

pub fn rows_purged(table: &'static str, rows: u64) {
    PURGED.add(rows, [table]);
}

pub fn key_uses_dropped(uses: u64) {
    KEY_USES_DROPPED.add(uses, NO_LABELS);
}

pub fn audit_chained(entries: usize) {
    AUDIT_ENTRIES.add(u64::try_from(entries).unwrap_or(u64::MAX), NO_LABELS);
}

pub fn deletion_notified(ok: bool) {
    DELETIONS.add(1, [outcome(ok)]);
}

pub fn change_settled(took: Duration) {
    SETTLE_DURATION.record(took.as_secs_f64(), NO_LABELS);
}

pub fn gateway_lease_expired() {
    LEASES_EXPIRED.add(1, NO_LABELS);
}

const fn outcome(ok: bool) -> &'static str {
    if ok { "ok" } else { "failed" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_reference_matches_code() {
        agentbox_metrics::reference::check("auth", METRICS).unwrap();
    }
}
