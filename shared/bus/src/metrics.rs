//! The metrics of the bus. The other modules of this crate call these functions.

use std::time::Duration;

const SLOW_CONSUMERS: &str = "agentbox_bus_slow_consumer_total";
const RPC_DURATION: &str = "agentbox_rpc_duration_seconds";
const RPC_REFUSED: &str = "agentbox_rpc_refused_total";
const RPC_EXPIRED: &str = "agentbox_rpc_expired_total";
const RPC_IGNORED: &str = "agentbox_rpc_ignored_total";
const COMMANDS_EXPIRED: &str = "agentbox_commands_expired_total";
const DEAD_LETTERS: &str = "agentbox_dead_letters_total";
const AUDIT_DEFERRED: &str = "agentbox_audit_entries_deferred_total";
const SESSIONS_OPEN: &str = "agentbox_sessions_open";
const SESSION_EXPIRED: &str = "agentbox_session_expired_total";
const SESSION_RETRANSMITS: &str = "agentbox_session_retransmits_total";
const SESSION_FOREIGN_FRAMES: &str = "agentbox_session_foreign_frames_total";
const SESSION_MALFORMED_FRAMES: &str = "agentbox_session_malformed_frames_total";
const SESSION_DROPPED_FRAMES: &str = "agentbox_session_dropped_frames_total";

/// Registers the descriptions. May be called repeatedly.
pub(crate) fn describe() {
    for (name, description) in [
        (
            SLOW_CONSUMERS,
            "Messages that were dropped because a subscription was full",
        ),
        (
            RPC_REFUSED,
            "Requests that were refused because the server was at its limit",
        ),
        (
            RPC_EXPIRED,
            "Requests that were not processed because their deadline had passed",
        ),
        (
            RPC_IGNORED,
            "Requests that were ignored because their reply subject was not an inbox",
        ),
        (
            COMMANDS_EXPIRED,
            "Commands that were discarded because they had expired",
        ),
        (
            DEAD_LETTERS,
            "Messages that became dead letters: commands after their last attempt, and audit \
             entries that are malformed",
        ),
        (
            AUDIT_DEFERRED,
            "Deliveries of audit entries that only a newer auth can read; they are delivered again",
        ),
        (
            SESSION_EXPIRED,
            "Requests for a session that were not accepted because their deadline had passed",
        ),
        (
            SESSION_RETRANSMITS,
            "Times that a session sent its unacknowledged frames again",
        ),
        (
            SESSION_FOREIGN_FRAMES,
            "Session frames that were ignored because another process had sent them",
        ),
        (
            SESSION_MALFORMED_FRAMES,
            "Messages on a session subject that were not frames",
        ),
        (
            SESSION_DROPPED_FRAMES,
            "Session frames that were dropped because the session's inbox was full",
        ),
    ] {
        metrics::describe_counter!(name, description);
    }
    metrics::describe_gauge!(SESSIONS_OPEN, "Sessions of this process that are open");
    metrics::describe_histogram!(
        RPC_DURATION,
        metrics::Unit::Seconds,
        "Duration of requests by `method` and `outcome` (`ok` or an error code)"
    );
}

pub(crate) fn slow_consumer() {
    metrics::counter!(SLOW_CONSUMERS).increment(1);
}

pub(crate) fn rpc_answered(method: String, outcome: &'static str, took: Duration) {
    metrics::histogram!(RPC_DURATION, "method" => method, "outcome" => outcome)
        .record(took.as_secs_f64());
}

pub(crate) fn rpc_refused() {
    metrics::counter!(RPC_REFUSED).increment(1);
}

pub(crate) fn rpc_expired() {
    metrics::counter!(RPC_EXPIRED).increment(1);
}

pub(crate) fn rpc_ignored() {
    metrics::counter!(RPC_IGNORED).increment(1);
}

pub(crate) fn command_expired() {
    metrics::counter!(COMMANDS_EXPIRED).increment(1);
}

pub(crate) fn dead_letter() {
    metrics::counter!(DEAD_LETTERS).increment(1);
}

pub(crate) fn audit_deferred(entries: u64) {
    metrics::counter!(AUDIT_DEFERRED).increment(entries);
}

pub(crate) fn session_opened() {
    metrics::gauge!(SESSIONS_OPEN).increment(1.0);
}

pub(crate) fn session_ended() {
    metrics::gauge!(SESSIONS_OPEN).decrement(1.0);
}

pub(crate) fn session_expired() {
    metrics::counter!(SESSION_EXPIRED).increment(1);
}

pub(crate) fn session_retransmitted() {
    metrics::counter!(SESSION_RETRANSMITS).increment(1);
}

pub(crate) fn session_foreign_frame() {
    metrics::counter!(SESSION_FOREIGN_FRAMES).increment(1);
}

pub(crate) fn session_malformed_frame() {
    metrics::counter!(SESSION_MALFORMED_FRAMES).increment(1);
}

pub(crate) fn session_dropped_frame() {
    metrics::counter!(SESSION_DROPPED_FRAMES).increment(1);
}
