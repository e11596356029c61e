//! Auth's metrics, by name. Labels come from closed lists.

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};
use std::time::Duration;

const PASSWORD_HASHES: &str = "auth_password_hashes_total";
const PASSWORD_HASH_SECONDS: &str = "auth_password_hash_seconds";
const PASSWORD_REJECTED: &str = "auth_password_queue_full_total";
const AUTHENTICATIONS: &str = "auth_authentications_total";
const LOGINS: &str = "auth_logins_total";
const KEYS_ROTATED: &str = "auth_signing_keys_created_total";
const SWEPT: &str = "auth_rows_swept_total";
const USES_DROPPED: &str = "auth_key_uses_dropped_total";
const DELETIONS: &str = "auth_user_deletions_told_total";

pub fn describe() {
    describe_counter!(
        PASSWORD_HASHES,
        "Argon2id computations, by what they were for"
    );
    describe_histogram!(
        PASSWORD_HASH_SECONDS,
        Unit::Seconds,
        "Time of one, without the wait"
    );
    describe_counter!(
        PASSWORD_REJECTED,
        "Requests refused because too many wait for a hash"
    );
    describe_counter!(AUTHENTICATIONS, "Credentials checked, by kind and outcome");
    describe_counter!(LOGINS, "Logins tried, by outcome");
    describe_counter!(KEYS_ROTATED, "Signing keys made by this replica");
    describe_counter!(SWEPT, "Expired rows removed, by table");
    describe_counter!(
        USES_DROPPED,
        "Uses of API keys that were not noted for want of room"
    );
    describe_counter!(
        DELETIONS,
        "Deleted users the scheduler was told of, by outcome"
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

pub fn swept(table: &'static str, rows: u64) {
    counter!(SWEPT, "table" => table).increment(rows);
}

pub fn key_uses_dropped(uses: u64) {
    counter!(USES_DROPPED).increment(uses);
}

pub fn deletion_told(ok: bool) {
    counter!(DELETIONS, "outcome" => outcome(ok)).increment(1);
}

const fn outcome(ok: bool) -> &'static str {
    if ok { "ok" } else { "failed" }
}
