//! The metrics of the bus. The other modules of this crate call these functions.
//!
//! Names and labels follow OpenTelemetry's semantic conventions for RPC and messaging.

use std::time::Duration;

use agentbox_metrics::{Counter, Gauge, GaugeSet, Histogram, Label, NO_LABELS, Unit};

use crate::error::BusError;

const METHOD: Label = Label::bounded(
    "rpc_method",
    "the service and the method, such as `auth.login`",
);
const STATUS: Label = Label::bounded("rpc_response_status_code", "`ok` or an error code");
const DESTINATION: Label = Label::bounded(
    "messaging_destination_template",
    "a template of a subject, or a bucket",
);
const CONSUMER: Label = Label::bounded(
    "messaging_consumer_group_name",
    "the durable consumer that the replicas of a service share",
);

agentbox_metrics::metrics! {
    static SERVER_CALLS: Histogram<2> = Histogram::new(
        "agentbox_rpc_server_call_duration_seconds",
        Unit::Seconds,
        [METHOD, STATUS],
        "Duration of a request that this process served",
    );
    static CLIENT_CALLS: Histogram<2> = Histogram::new(
        "agentbox_rpc_client_call_duration_seconds",
        Unit::Seconds,
        [METHOD, STATUS],
        "Duration of a request that this process sent, until its reply or its deadline",
    );
    static REFUSED_CALLS: Counter<1> = Counter::new(
        "agentbox_rpc_server_refused_calls_total",
        Unit::Count,
        [Label::one_of("reason", &["limit", "deadline", "reply_subject"])],
        "Requests that were not processed: the server was at its limit, their deadline had passed, or \
         their reply subject was not an inbox",
    );
    static SENT: Histogram<2> = Histogram::new(
        "agentbox_messaging_client_operation_duration_seconds",
        Unit::Seconds,
        [
            DESTINATION,
            Label::one_of("error_type", &["", "disconnected", "deadline", "nats", "malformed"]),
        ],
        "Time until JetStream has stored a message; `error_type` is empty if it has",
    );
    static PROCESSED: Histogram<2> = Histogram::new(
        "agentbox_messaging_process_duration_seconds",
        Unit::Seconds,
        [
            DESTINATION,
            Label::one_of("error_type", &["", "retry", "dead_letter"]),
        ],
        "Duration of one delivery of a command; `error_type` is empty if it was processed",
    );
    static PENDING: GaugeSet<1> = GaugeSet::new(
        "agentbox_messaging_consumer_pending_messages",
        Unit::Count,
        [CONSUMER],
        "Messages that are stored and not delivered to the consumer yet, as each of its replicas sees it",
    );
    static UNACKNOWLEDGED: GaugeSet<1> = GaugeSet::new(
        "agentbox_messaging_consumer_unacknowledged_messages",
        Unit::Count,
        [CONSUMER],
        "Messages that are delivered and not acknowledged yet, as each replica of the consumer sees it",
    );
    static SLOW_CONSUMERS: Counter = Counter::new(
        "agentbox_bus_slow_consumer_total",
        Unit::Count,
        [],
        "Messages that were dropped because a subscription was full",
    );
    static COMMANDS_EXPIRED: Counter = Counter::new(
        "agentbox_commands_expired_total",
        Unit::Count,
        [],
        "Commands that were discarded because they had expired",
    );
    static DEAD_LETTERS: Counter = Counter::new(
        "agentbox_dead_letters_total",
        Unit::Count,
        [],
        "Messages that became dead letters: commands after their last attempt, and audit entries that are \
         malformed",
    );
    static AUDIT_DEFERRED: Counter = Counter::new(
        "agentbox_audit_entries_deferred_total",
        Unit::Count,
        [],
        "Deliveries of audit entries that only a newer auth can read; they are delivered again",
    );
    static SESSIONS_OPEN: Gauge = Gauge::new(
        "agentbox_sessions_open",
        Unit::Count,
        [],
        "Sessions of this process that are open",
    );
    static SESSION_BYTES: Counter<1> = Counter::new(
        "agentbox_session_bytes_total",
        Unit::Bytes,
        [Label::one_of("direction", &["sent", "received"])],
        "Bytes of the messages of sessions, without those that were sent again",
    );
    static SESSION_WINDOW_WAIT: Histogram = Histogram::new(
        "agentbox_session_window_wait_seconds",
        Unit::Seconds,
        [],
        "Time for which a session with a message to send had a full window, because its peer had not \
         consumed the messages before",
    );
    static SESSION_EXPIRED: Counter = Counter::new(
        "agentbox_session_expired_total",
        Unit::Count,
        [],
        "Requests for a session that were not accepted because their deadline had passed",
    );
    static SESSION_RETRANSMITS: Counter = Counter::new(
        "agentbox_session_retransmits_total",
        Unit::Count,
        [],
        "Times that a session sent its unacknowledged frames again",
    );
    static SESSION_IGNORED: Counter<1> = Counter::new(
        "agentbox_session_ignored_frames_total",
        Unit::Count,
        [Label::one_of("reason", &["foreign", "malformed", "inbox_full"])],
        "Frames that were ignored: another process had sent them, they were not frames, or the session's \
         inbox was full",
    );
}

/// Registers the descriptions. May be called repeatedly.
pub(crate) fn describe() {
    agentbox_metrics::describe(METRICS);
}

pub(crate) fn slow_consumer() {
    SLOW_CONSUMERS.add(1, NO_LABELS);
}

pub(crate) fn rpc_served(method: String, status: &'static str, took: Duration) {
    SERVER_CALLS.record(took.as_secs_f64(), [method, status.to_owned()]);
}

pub(crate) fn rpc_called(method: String, status: &'static str, took: Duration) {
    CLIENT_CALLS.record(took.as_secs_f64(), [method, status.to_owned()]);
}

/// `reason`: `limit`, `deadline` or `reply_subject`.
pub(crate) fn rpc_refused(reason: &'static str) {
    REFUSED_CALLS.add(1, [reason]);
}

pub(crate) fn message_sent(destination: String, error: Option<&BusError>, took: Duration) {
    let error = error.map_or("", |error| match error {
        BusError::Connect { .. } | BusError::Disconnected => "disconnected",
        BusError::Deadline(_) => "deadline",
        BusError::Nats { .. } => "nats",
        BusError::Malformed(_) => "malformed",
    });
    SENT.record(took.as_secs_f64(), [destination, error.to_owned()]);
}

/// `error`: empty, `retry` or `dead_letter`.
pub(crate) fn command_processed(destination: String, error: &'static str, took: Duration) {
    PROCESSED.record(took.as_secs_f64(), [destination, error.to_owned()]);
}

/// The lag of a consumer.
#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 messages")]
pub(crate) fn consumer_lag(consumer: &str, pending: u64, unacknowledged: usize) {
    let of = |count: f64| vec![([consumer.to_owned()], count)];
    PENDING.replace_of(consumer, of(pending as f64));
    UNACKNOWLEDGED.replace_of(consumer, of(unacknowledged as f64));
}

/// The lag of a consumer is not known.
pub(crate) fn consumer_lag_unknown(consumer: &str) {
    PENDING.replace_of(consumer, Vec::new());
    UNACKNOWLEDGED.replace_of(consumer, Vec::new());
}

pub(crate) fn command_expired() {
    COMMANDS_EXPIRED.add(1, NO_LABELS);
}

pub(crate) fn dead_letter() {
    DEAD_LETTERS.add(1, NO_LABELS);
}

pub(crate) fn audit_deferred(entries: u64) {
    AUDIT_DEFERRED.add(entries, NO_LABELS);
}

pub(crate) fn session_opened() {
    SESSIONS_OPEN.shift(1.0, NO_LABELS);
}

pub(crate) fn session_ended() {
    SESSIONS_OPEN.shift(-1.0, NO_LABELS);
}

pub(crate) fn session_sent(bytes: usize) {
    SESSION_BYTES.add(bytes as u64, ["sent"]);
}

pub(crate) fn session_received(bytes: usize) {
    SESSION_BYTES.add(bytes as u64, ["received"]);
}

pub(crate) fn session_waited(time: Duration) {
    SESSION_WINDOW_WAIT.record(time.as_secs_f64(), NO_LABELS);
}

pub(crate) fn session_expired() {
    SESSION_EXPIRED.add(1, NO_LABELS);
}

pub(crate) fn session_retransmitted() {
    SESSION_RETRANSMITS.add(1, NO_LABELS);
}

pub(crate) fn session_foreign_frame() {
    SESSION_IGNORED.add(1, ["foreign"]);
}

pub(crate) fn session_malformed_frame() {
    SESSION_IGNORED.add(1, ["malformed"]);
}

pub(crate) fn session_dropped_frame() {
    SESSION_IGNORED.add(1, ["inbox_full"]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_reference_matches_code() {
        agentbox_metrics::reference::check("bus", METRICS).unwrap();
    }
}
