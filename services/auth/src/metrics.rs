//! The metrics of auth. Label values come from closed lists.

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};
use std::time::Duration;

const PASSWORD_HASHES: &str = "agentbox_auth_password_hashes_total";
const PASSWORD_HASH_SECONDS: &str = "agentbox_auth_password_hash_seconds";
const PASSWORD_REJECTED: &str = "agentbox_auth_password_queue_full_total";
const AUTHENTICATIONS: &str = "agentbox_auth_authentications_total";
const LOGINS: &str = "agentbox_auth_logins_total";
const KEYS_ROTATED: &str = "agentbox_auth_signing_keys_created_total";
const PURGED: &str = "agentbox_auth_rows_purged_total";
const USES_DROPPED: &str = "agentbox_auth_key_uses_dropped_total";
const AUDIT_ENTRIES: &str = "agentbox_auth_audit_entries_chained_total";
const DELETIONS: &str = "agentbox_auth_user_deletions_notified_total";

pub fn describe() {
    describe_counter!(PASSWORD_HASHES, "Argon2id computations, by purpose");
    describe_histogram!(
        PASSWORD_HASH_SECONDS,
        Unit::Seconds,
        "Time of one Argon2id computation, without the wait"
    );
    describe_counter!(
        PASSWORD_REJECTED,
        "Requests refused because the queue for Argon2id was full"
    );
    describe_counter!(AUTHENTICATIONS, "Credentials checked, by kind and outcome");
    describe_counter!(LOGINS, "Login attempts, by outcome");
    describe_counter!(KEYS_ROTATED, "Signing keys made by this replica");
    describe_counter!(PURGED, "Expired rows removed, by table");
    describe_counter!(
        USES_DROPPED,
        "Uses of API keys that were not recorded because the buffer was full"
    );
    describe_counter!(
        AUDIT_ENTRIES,
        "Entries of the audit trail that this replica chained"
    );
    describe_counter!(
        DELETIONS,
        "Notifications of the scheduler about deleted users, by outcome"
    );
}

/// `purpose` is `verify` or `create`.
pub fn password_hashed(purpose: &'static str, took: Duration) {
    counter!(PASSWORD_HASHES, "purpose" => purpose).increment(1);
    histogram!(PASSWORD_HASH_SECONDS).record(took.as_secs_f64());
}

pub fn password_queue_full() {
    counter!(PASSWORD_REJECTED).increment(1);
}

pub fn authenticated(kind: &'static str, ok: bool) {
    counter!(AUTHENTICATIONS, "kind" => kind, "outcome" => outcome(ok)).increment(1);
}

pub fn login(ok: bool) {
    counter!(LOGINS, "outcome" => outcome(ok)).increment(1);
}

pub fn signing_key_created() {
    counter!(KEYS_ROTATED).increment(1);
}

pub fn rows_purged(table: &'static str, rows: u64) {
    counter!(PURGED, "table" => table).increment(rows);
}

pub fn key_uses_dropped(uses: u64) {
    counter!(USES_DROPPED).increment(uses);
}

pub fn audit_chained(entries: usize) {
    counter!(AUDIT_ENTRIES).increment(u64::try_from(entries).unwrap_or(u64::MAX));
}

pub fn deletion_notified(ok: bool) {
    counter!(DELETIONS, "outcome" => outcome(ok)).increment(1);
}

const fn outcome(ok: bool) -> &'static str {
    if ok { "ok" } else { "failed" }
}
