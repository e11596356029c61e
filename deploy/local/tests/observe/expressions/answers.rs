//! The answers: for each expression of each panel and rule, what follows from what the client did and saw, from
//! its configuration, and from what NATS, Postgres and the kernel count themselves.
//!
//! A row has the title of the panel or the name of the rule, the index of the expression, the labels of the series
//! that are added, and what is known.

use std::collections::BTreeMap;
use std::time::Duration;

use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::subjects;

use super::known::Known::{
    Between, Data, EachAtMost, Events, EventsBetween, EventsBy, Nothing, Unknown, Value,
};
use super::known::{Known, Row, bucket_end};
use super::readings::{Readings, SERVICES};
use super::receiver::ANSWER_S;
use super::scenario::{Done, EXEC_S, POOL};
use crate::client::Sent;

const MIB: f64 = 1024.0 * 1024.0;
const PROCESSES: [&str; 6] = [
    "api-gateway",
    "auth",
    "scheduler",
    "exec-proxy",
    "webhooks",
    "canary",
];
/// The connections to Postgres of a replica, by service: the defaults of the configuration.
const CONNECTIONS: [(&str, f64); 3] = [("auth", 8.0), ("scheduler", 16.0), ("webhooks", 4.0)];
/// The kinds of sessions of the exec-proxy that are used in the window, and not open at its end.
const IDLE_KINDS: [&str; 3] = ["exec", "files", "executions"];
/// Longer than the interval of the comparisons of boxes and rows, 30 s, by a stall of the machine.
const COMPARISON_S: f64 = 45.0;
/// The timeout of an attempt to deliver a webhook, as the end of its bucket.
const ATTEMPT_S: f64 = 15.0;
/// Ranks are rounded, and buckets are extrapolated differently: the client's rank is so much higher.
const RANK_MARGIN: f64 = 0.02;
/// Environments that ran before the window: the canary's, and those of the preparation.
const STARTS_BEFORE: f64 = 5.0;
/// The headers and messages of a session, beside the bytes of users.
const SESSION_BYTES: f64 = 8192.0;

/// An expression of no panel, whose values a scenario knows.
pub const STAGES: &str = "stages of creates and claims";
pub const EXTRA: [(&str, &str); 1] = [(
    STAGES,
    "sum by (stage) (rate(agentbox_environment_stage_duration_seconds_count[$__rate_interval]))",
)];

/// Rows of the table, one a line.
macro_rules! rows {
    ($($name:tt $index:literal { $($label:ident = $value:expr),* } => $known:expr;)*) => {
        vec![$(Row::new($name, $index, &[$((stringify!($label), $value)),*], $known)),*]
    };
}

/// Everything from which the answers follow.
pub struct Facts {
    pub done: Done,
    pub before: Readings,
    pub after: Readings,
    /// In seconds.
    pub window: f64,
    /// The deliveries that the receiver got.
    pub deliveries: f64,
    /// The spans that the collector counted.
    pub spans: f64,
    /// All cores and all memory of the cluster.
    pub total_cores: f64,
    pub total_memory: f64,
}

impl Facts {
    fn requests(&self, keep: impl Fn(&Sent) -> bool) -> f64 {
        number(self.done.sent.iter().filter(|sent| keep(sent)).count())
    }

    /// The number of requests by a key.
    fn requests_by(&self, key: impl Fn(&Sent) -> String) -> Vec<(String, f64)> {
        let mut counts: BTreeMap<String, f64> = BTreeMap::new();
        for sent in &self.done.sent {
            *counts.entry(key(sent)).or_default() += 1.0;
        }
        counts.into_iter().collect()
    }

    /// The most that a histogram may report as this quantile of steps that are parts of these requests.
    fn quantile(&self, q: f64, keep: impl Fn(&Sent) -> bool) -> f64 {
        let kept = self.done.sent.iter().filter(|sent| keep(sent));
        quantile(q, kept.map(|sent| sent.took).collect())
    }

    /// The messages that a stream of NATS stored in the window.
    fn stored(&self, stream: &str) -> f64 {
        let messages = self.after.stored(stream) - self.before.stored(stream);
        f64::from(u32::try_from(messages).unwrap())
    }

    /// The most that can be the part of the environments since the start that ran too late.
    fn slow_creates(&self) -> f64 {
        let all = f64::from(self.done.started());
        (number(self.done.slow_starts()) + STARTS_BEFORE) / (all + STARTS_BEFORE)
    }
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap())
}

/// The most that a histogram may report as this quantile of steps that last at most so long.
fn quantile(q: f64, mut durations: Vec<Duration>) -> f64 {
    durations.sort_unstable();
    let rank = (q + RANK_MARGIN) * number(durations.len());
    let chosen = durations
        .iter()
        .zip(1_u32..)
        .find(|(_, position)| f64::from(*position) >= rank);
    let longest = chosen.map(|(duration, _)| duration).or(durations.last());
    longest.map_or(0.0, |duration| bucket_end(*duration))
}

fn is_route(sent: &Sent, method: &str, route: &str) -> bool {
    sent.method == method && sent.route == format!("/api/v1{route}")
}

/// The whole table.
pub fn table(facts: &Facts) -> Vec<Row> {
    [
        api(facts),
        accounts(facts),
        environments(facts),
        drivers(facts),
        executions(facts),
        streams(facts),
        nats(facts),
        stores(facts),
        processes(facts),
        rules(facts),
    ]
    .concat()
}

fn api(f: &Facts) -> Vec<Row> {
    let done = &f.done;
    let longest = bucket_end(done.longest());
    let is_create = |sent: &Sent| is_route(sent, "POST", "/environments");
    let is_exec = |sent: &Sent| is_route(sent, "POST", "/environments/{id}/exec");
    let is_content = |sent: &Sent| sent.route.ends_with("/files/content");
    let all = |_: &Sent| true;
    let statuses = f.requests_by(|sent| sent.status.to_string());
    let routes = f.requests_by(|sent| format!("{} {}", sent.method, sent.route));
    rows! {
        "Failed creates, last hour" 0 {} => Value(0.0);
        "Failed execs, last hour" 0 {} => Value(0.0);
        "Slow creates, last hour" 0 {} => Between(0.0, f.slow_creates());
        "Slow execs, last hour" 0 {} => Data("the canary alone knows how long its only exec took");
        "Requests by status" 0 {} => EventsBy(&["http_response_status_code"], statuses);
        "Requests by route" 0 {} => EventsBy(&["http_request_method", "http_route"], routes);
        "Answers with 5xx by route" 0 {} => Nothing;
        "Time to the answer's head" 0 {} => Between(0.0, f.quantile(0.5, all));
        "Time to the answer's head" 1 {} => Between(0.0, f.quantile(0.95, all));
        "Time to the answer's head" 2 {} => Between(0.0, f.quantile(0.99, all));
        "p99 by route" 0 {} => EachAtMost(longest);
        "p95 of creates and execs" 0 {} => Between(0.0, f.quantile(0.95, is_create));
        "p95 of creates and execs" 1 {} => Between(EXEC_S, f.quantile(0.95, is_exec));
        "p95 of the gateway's spans" 0 {} => EachAtMost(longest);
        "Requests refused with 429" 0 {} => Value(0.0);
        "Requests in progress" 0 {} => Value(0.0);
        "Open client connections" 0 {} => Between(2.0, 10.0);
        "Open streams" 0 { kind = "logs" } => Value(1.0);
        "Open streams" 0 { kind = "events" } => Value(1.0);
        "Open streams" 0 { kind = "file" } => Value(0.0);
        "Limits reached" 0 {} => Unknown("each request starts a trace, and the gateway bounds them by time");
        "Requests counted by one replica alone" 0 {} => EventsBetween(0.0, f.requests(all));
        "p95 of a stream" 0 { kind = "file" } => Between(0.0, f.quantile(0.95, is_content));
        "Attempts of deliveries" 0 { outcome = "delivered" } => Events(f.deliveries);
        "p95 of an attempt" 0 { outcome = "delivered" } => Between(ANSWER_S, ATTEMPT_S);
        "Events, and deliveries given up" 0 {} => Events(f.deliveries);
        "Events, and deliveries given up" 1 {} => Value(0.0);
    }
}

fn accounts(f: &Facts) -> Vec<Row> {
    let done = &f.done;
    let is_login = |sent: &Sent| is_route(sent, "POST", "/auth/login");
    let logins = f64::from(done.logins);
    let authenticated = f.requests(|sent| sent.is_authenticated);
    let mut rows = rows! {
        // The gateway repeats what auth has confirmed.
        "Credentials checked" 0 { kind = "token", outcome = "ok" } => EventsBetween(1.0, authenticated);
        "Credentials checked" 0 { kind = "api_key" } => Value(0.0);
        "Logins" 0 { outcome = "ok" } => Events(logins);
        "Logins" 0 { outcome = "failed" } => Events(done.refused_logins.into());
        "Password hashes" 0 {} => Between(0.0, f.quantile(0.5, is_login));
        "Password hashes" 1 {} => Between(0.0, f.quantile(0.95, is_login));
        "Password hashes" 2 {} => Between(0.0, f.quantile(0.99, is_login));
        "Logins refused, the queue was full" 0 {} => Value(0.0);
        "Uses of API keys not recorded" 0 {} => Value(0.0);
        "Deleted users, the scheduler notified" 0 { outcome = "ok" } => Events(done.deleted_users.into());
        "Deleted users, the scheduler notified" 0 { outcome = "failed" } => Value(0.0);
    };
    for process in PROCESSES {
        let job = job(process);
        rows.extend(rows! { "Replicas that answer" 0 { job = job.as_str() } => Value(1.0); });
    }
    rows
}

fn environments(f: &Facts) -> Vec<Row> {
    let done = &f.done;
    let longest = bucket_end(done.longest());
    let (cold, unknown) = (
        f64::from(done.cold + done.missed),
        f64::from(done.unknown_images),
    );
    let (claims, creates) = (f64::from(done.claims), f64::from(done.creates()));
    let started = f64::from(done.started());
    // Each box that was taken from the pool was replaced by one that started.
    let boxes = cold + claims;
    let starts: Vec<_> = done
        .cold_starts
        .iter()
        .chain(&done.claim_starts)
        .copied()
        .collect();
    let claim_p95 = quantile(0.95, done.claim_starts.clone());
    rows! {
        "Environments" 0 { status = "running" } => Value(1.0);
        "Status changes" 0 { status = "pending" } => Events(creates);
        "Status changes" 0 { status = "running" } => Events(started);
        "Status changes" 0 { status = "terminated" } => Events(done.deletes.into());
        "Status changes" 0 { status = "failed" } => Events(unknown);
        "Failures by reason" 0 { reason = "IMAGE_PULL" } => Events(unknown);
        "Create to running" 0 {} => Between(0.0, quantile(0.5, starts.clone()));
        "Create to running" 1 {} => Between(0.0, quantile(0.95, starts.clone()));
        "Create to running" 2 {} => Between(0.0, quantile(0.99, starts.clone()));
        "p95 of the stages of a create" 0 { stage = "running" } => Between(0.0, quantile(0.95, starts.clone()));
        "p95 of the stages of a create" 0 { stage = "claimed" } => Between(0.0, claim_p95);
        "p95 of the stages of a create" 0 { stage = "queued" } => Between(0.0, quantile(0.95, done.cold_starts.clone()));
        "p95 of the stages of a create" 0 {} => EachAtMost(longest);
        STAGES 0 { stage = "queued" } => Events(cold);
        STAGES 0 { stage = "admitted" } => Events(cold + unknown);
        STAGES 0 { stage = "pulled" } => Value(0.0);
        STAGES 0 { stage = "sandbox" } => Events(boxes);
        STAGES 0 { stage = "started" } => Events(boxes);
        STAGES 0 { stage = "claimed" } => Events(claims);
        STAGES 0 { stage = "running" } => Events(started);
        "Environments of users" 0 {} => Value(1.0);
        "Cores reserved by users" 0 {} => Value(0.1);
        "Memory reserved by users" 0 {} => Value(64.0 * MIB);
        "Storage reserved by users" 0 {} => Value(64.0 * MIB);
        "Reconciles" 0 {} => Data("timers and signals reconcile an environment as often as they like");
        "Duration of a reconcile" 0 {} => Between(0.0, longest);
        "Duration of a reconcile" 1 {} => Between(0.0, longest);
        "Duration of a reconcile" 2 {} => Between(0.0, longest);
        "Failed steps" 0 {} => Unknown("a pull that fails is tried again if its error may pass");
        "Age of the oldest due environment" 0 {} => Between(0.0, f.window);
        "Due environments" 0 {} => Between(0.0, 1.0);
        "Since the last comparison of boxes and rows" 0 {} => Between(0.0, COMPARISON_S);
        "Orphans removed" 0 {} => Events(done.orphans.into());
        "Ended without an archive" 0 {} => EventsBetween(0.0, unknown);
        "Rows that were not readable" 0 {} => Value(0.0);
        "Boxes of pools" 0 { pool = POOL, status = "ready" } => Value(1.0);
        "Boxes of pools" 0 { pool = POOL, status = "starting" } => Value(0.0);
        "Boxes of pools" 1 { pool = POOL } => Value(1.0);
        "Creates that match a pool" 0 { pool = POOL, outcome = "hit" } => Events(claims);
        "Creates that match a pool" 0 { pool = POOL, outcome = "resources" } => Events(done.cold.into());
        "Failed starts of boxes for a pool" 0 {} => Nothing;
    }
}

fn drivers(f: &Facts) -> Vec<Row> {
    let done = &f.done;
    let longest = bucket_end(done.longest());
    // The environment that is kept and the pool's box have each a tenth of a core, 64 and 96 MiB.
    let (least, most) = (f.total_cores - 0.31, f.total_cores - 0.09);
    let least_memory = f.total_memory - 2.0 * (64.0 + 96.0) * MIB;
    rows! {
        "Reachable clusters" 0 {} => Value(1.0);
        "Free cores" 0 {} => Between(least, most);
        "Free memory" 0 {} => Between(least_memory, f.total_memory);
        // A reconcile may complete the claim of a create that is not answered yet.
        "Calls of a driver" 0 { call = "claim", outcome = "ok" } => EventsBetween(done.claims.into(), (2 * done.claims).into());
        "p95 of a call" 0 {} => EachAtMost(longest);
        "Connections to boxes" 0 {} => Between(1.0, f64::from(done.started()) + STARTS_BEFORE);
        "File system of images" 0 {} => Unknown("it is measured when images are looked for that may be removed");
        "Images removed" 0 {} => Value(0.0);
        "Pulls refused" 0 {} => Unknown("a pull is refused or tried again, as the network of the machine answers");
        "Steps" 0 {} => Value(0.0);
        "p95 of a step" 0 {} => Nothing;
        "Clock of the API against the canary's" 0 {} => Between(-2.0, 2.0);
    }
}

fn executions(f: &Facts) -> Vec<Row> {
    let done = &f.done;
    let is_exec = |sent: &Sent| is_route(sent, "POST", "/environments/{id}/exec");
    let is_content = |sent: &Sent| sent.route.ends_with("/files/content");
    let is_status = |sent: &Sent| sent.route.ends_with("/executions/{execution}");
    let files = f64::from(done.uploads + done.downloads + done.missing_files);
    let output = f64::from(done.output_bytes());
    let started = f64::from(done.executions);
    // The route of the output reads the execution first.
    let gets = f.requests(is_status) + started;
    let p95_of_content = f.quantile(0.95, is_content);
    let mut rows = rows! {
        "Sessions begun" 0 { kind = "exec" } => Events(f64::from(done.execs + done.refused_execs));
        "Sessions begun" 0 { kind = "files" } => Events(files);
        "Sessions begun" 0 { kind = "executions" } => Events(started + gets + started);
        "Sessions begun" 0 { kind = "logs" } => Value(0.0);
        "Open sessions" 0 { kind = "logs" } => Value(1.0);
        "Failures" 0 { kind = "exec", code = "working_dir_not_found" } => Events(done.refused_execs.into());
        "Duration of an exec" 0 {} => Between(EXEC_S, f.quantile(0.5, is_exec));
        "Duration of an exec" 1 {} => Between(EXEC_S, f.quantile(0.95, is_exec));
        "Duration of an exec" 2 {} => Between(EXEC_S, f.quantile(0.99, is_exec));
        "p95 of a session" 0 { kind = "exec", outcome = "finished" } => Between(EXEC_S, f.quantile(0.95, is_exec));
        "p95 of a session" 0 { kind = "files", outcome = "finished" } => Between(0.0, p95_of_content);
        "Limits of exec-proxy reached" 0 {} => Value(0.0);
        "Executions" 0 {} => Events(started);
        "Executions" 1 { status = "exited" } => Events(started);
        "Executions" 1 { status = "lost" } => Value(0.0);
        "Running executions" 0 {} => Value(1.0);
        "Output of executions" 0 { stream = "stdout" } => Events(output);
        "Output of executions" 0 { stream = "stderr" } => Value(0.0);
        "Output of executions" 1 {} => Value(0.0);
        "Gaps in the output" 0 {} => Value(0.0);
        "Operations on executions" 0 { operation = "start", error_type = "" } => Events(started);
        "Operations on executions" 0 { operation = "get", error_type = "" } => Events(gets);
        "Operations on executions" 0 { operation = "output", error_type = "" } => Events(started);
        "Operations on files" 0 { operation = "write", error_type = "" } => Events(done.uploads.into());
        "Operations on files" 0 { operation = "read", error_type = "" } => Events(done.downloads.into());
        "Operations on files" 0 { operation = "read", error_type = "file_not_found" } => Events(done.missing_files.into());
        "p95 of an operation on files" 0 { operation = "write" } => Between(0.0, p95_of_content);
        "p95 of an operation on files" 0 { operation = "read" } => Between(0.0, p95_of_content);
        "Bytes of users" 0 { kind = "files", direction = "in" } => Events(done.uploaded_bytes().into());
        "Bytes of users" 0 { kind = "files", direction = "out" } => Events(done.downloaded_bytes().into());
        "Bytes of users" 0 { kind = "executions", direction = "out" } => Events(output);
    };
    for kind in IDLE_KINDS {
        rows.extend(rows! { "Open sessions" 0 { kind = kind } => Value(0.0); });
    }
    rows
}

fn streams(f: &Facts) -> Vec<Row> {
    let done = &f.done;
    let longest = bucket_end(done.longest());
    let (sent, received) = (
        f64::from(done.uploaded_bytes()),
        f64::from(done.downloaded_bytes() + done.output_bytes()),
    );
    let beside = f.requests(|_| true) * SESSION_BYTES;
    rows! {
        "Open sessions by process" 0 { job = "agentbox-api-gateway" } => Value(1.0);
        "Open sessions by process" 0 { job = "agentbox-exec-proxy" } => Value(1.0);
        "Bytes of sessions" 0 { job = "agentbox-api-gateway", direction = "sent" } => EventsBetween(sent, sent + beside);
        "Bytes of sessions" 0 { job = "agentbox-api-gateway", direction = "received" } => EventsBetween(received, received + beside);
        "Bytes of sessions" 0 { job = "agentbox-exec-proxy", direction = "received" } => EventsBetween(sent, sent + beside);
        "Bytes of sessions" 0 { job = "agentbox-exec-proxy", direction = "sent" } => EventsBetween(received, received + beside);
        "p95 of the waits for a window" 0 {} => Data("whether a session waits depends on the speed of its reader");
        "Frames sent again" 0 {} => Data("a machine that stalls makes a session send its frames again");
        "Frames ignored" 0 {} => Data("the frames of a session that has just ended are ignored");
        "Sessions not accepted in time" 0 {} => Value(0.0);
        "Resumed after a lost connection" 0 {} => Value(0.0);
        "Spans of boxes refused" 0 {} => Value(0.0);
        "p95 of the spans in exec-proxy and boxd" 0 {} => EachAtMost(longest);
    }
}

fn nats(f: &Facts) -> Vec<Row> {
    let done = &f.done;
    let longest = bucket_end(done.longest());
    let (creates, started) = (f64::from(done.creates()), f64::from(done.started()));
    let logins = f64::from(done.logins + done.refused_logins);
    let authenticated = f.requests(|sent| sent.is_authenticated);
    let execs = f64::from(done.execs + done.refused_execs);
    let event = |kind: &str| format!("abx.v1.evt.env.{{owner}}.{{id}}.{kind}");
    let (created, running, terminated) = (event("created"), event("running"), event("terminated"));
    let (created, running, terminated) = (created.as_str(), running.as_str(), terminated.as_str());
    let exec = subjects::audit(AuditAction::Exec);
    let exec = exec.as_str();
    let command = "abx.v1.cmd.env.{cluster}.{op}.{id}";
    let commands = f.stored(subjects::COMMANDS_STREAM);
    let audit_entries = f.after.audit_entries - f.before.audit_entries;
    let refused_logins = f64::from(done.refused_logins);
    rows! {
        "Requests served" 0 { rpc_method = "scheduler.create" } => Events(creates);
        "Requests served" 0 { rpc_method = "auth.login" } => Events(logins);
        "Requests served" 0 { rpc_method = "auth.authenticate" } => EventsBetween(1.0, authenticated);
        "Requests that failed" 0 { rpc_method = "auth.login", rpc_response_status_code = "invalid_credentials" } => Events(refused_logins);
        "p95 by method" 0 {} => EachAtMost(longest);
        "p95 by method" 0 { rpc_method = "auth.login" } => Between(0.0, f.quantile(0.95, |sent| is_route(sent, "POST", "/auth/login")));
        "Requests refused" 0 {} => Value(0.0);
        "Messages dropped, a subscription was full" 0 {} => Value(0.0);
        "Components that are not ready" 0 {} => Nothing;
        "Messages stored" 0 { messaging_destination_template = created, error_type = "" } => Events(creates);
        "Messages stored" 0 { messaging_destination_template = running, error_type = "" } => Events(started);
        "Messages stored" 0 { messaging_destination_template = terminated, error_type = "" } => Events(done.deletes.into());
        "Messages stored" 0 { messaging_destination_template = exec, error_type = "" } => Events(execs);
        "Messages stored" 0 { messaging_destination_template = command, error_type = "" } => Events(commands);
        "p95 until a message is stored" 0 {} => EachAtMost(longest);
        "Commands processed" 0 { messaging_destination_template = command, error_type = "" } => Events(commands);
        "Messages that wait for a consumer" 0 {} => Value(0.0);
        "Messages not acknowledged yet" 0 {} => Value(0.0);
        "Age of the oldest row of the outbox" 0 {} => Value(0.0);
        "Published from the outbox" 0 { kind = "event" } => Events(f.stored(subjects::EVENTS_STREAM));
        "Published from the outbox" 0 { kind = "command" } => Events(commands);
        "Published from the outbox" 1 {} => Value(0.0);
        "Rows in the outbox" 0 {} => Value(0.0);
        "Dead letters" 0 {} => Value(0.0);
        "Commands that expired" 0 {} => Value(0.0);
        "Audit entries" 0 {} => Events(audit_entries);
        "Audit entries" 1 {} => Value(0.0);
    }
}

fn stores(f: &Facts) -> Vec<Row> {
    let done = &f.done;
    let longest = bucket_end(done.longest());
    let (least, most) = (done.creates() - done.claims, done.creates());
    let inserts = EventsBetween(least.into(), most.into());
    let mut rows = rows! {
        "Statements" 0 { db_operation_name = "INSERT", db_collection_name = "environments" } => inserts;
        "p95 of a statement" 0 {} => EachAtMost(longest);
        "Statements by service" 0 {} => EachAtMost(longest);
        "Requests that failed because of Postgres" 0 {} => Value(0.0);
        "Rows removed after their retention" 0 {} => Data("published rows are removed after some time");
        "Rows removed after their retention" 1 {} => Unknown("expired logins are removed from time to time");
    };
    for (service, most) in CONNECTIONS {
        let job = job(service);
        let job = job.as_str();
        let open = f.after.connections[service];
        rows.extend(rows! {
            "Connections" 0 { job = job } => Between(1.0, open);
            "Connections" 1 { job = job } => Value(most);
        });
    }
    rows
}

fn processes(f: &Facts) -> Vec<Row> {
    // The collector also counts the spans of boxes, which are less than half.
    let mut rows = rows! {
        "Spans" 0 {} => EventsBetween(0.5 * f.spans, 1.1 * f.spans);
        "Spans" 1 {} => Value(0.0);
    };
    for service in SERVICES {
        let job = job(service);
        let job = job.as_str();
        let (before, after) = (f.before.processes[service], f.after.processes[service]);
        let (least, most) = (
            before.resident_bytes.min(after.resident_bytes),
            before.resident_bytes.max(after.resident_bytes),
        );
        let cpu = (after.cpu_s - before.cpu_s) / f.window;
        let descriptors = after.descriptors;
        rows.extend(rows! {
            "Memory" 0 { job = job } => Between(0.8 * least, 1.2 * most);
            "Processors" 0 { job = job } => Between(0.8 * cpu - 0.01, 1.1 * cpu + 0.01);
            "Open file descriptors" 0 { job = job } => Between(0.8 * descriptors - 5.0, 1.2 * descriptors + 5.0);
            "Versions" 0 { service = service, version = env!("CARGO_PKG_VERSION") } => Value(1.0);
        });
    }
    rows
}

/// In the scenario nothing is wrong with availability. Images that no registry has were asked for.
fn rules(f: &Facts) -> Vec<Row> {
    const CANARY: &str = "the canary alone knows how long its only exec took";
    const SLOW: &str =
        "the first environments of a system may run later than 5 s after their request";
    let done = &f.done;
    let failed = f64::from(done.unknown_images);
    let failing = above(failed / (f64::from(done.started()) + failed), 0.2);
    let slow = f.slow_creates();
    rows! {
        "agentbox:create_errors:ratio_rate5m" 0 {} => Value(0.0);
        "agentbox:create_errors:ratio_rate30m" 0 {} => Value(0.0);
        "agentbox:create_errors:ratio_rate1h" 0 {} => Value(0.0);
        "agentbox:create_errors:ratio_rate6h" 0 {} => Value(0.0);
        "agentbox:exec_errors:ratio_rate5m" 0 {} => Value(0.0);
        "agentbox:exec_errors:ratio_rate30m" 0 {} => Value(0.0);
        "agentbox:exec_errors:ratio_rate1h" 0 {} => Value(0.0);
        "agentbox:exec_errors:ratio_rate6h" 0 {} => Value(0.0);
        "agentbox:create_slow:ratio_rate5m" 0 {} => Between(0.0, slow);
        "agentbox:create_slow:ratio_rate30m" 0 {} => Between(0.0, slow);
        "agentbox:create_slow:ratio_rate1h" 0 {} => Between(0.0, slow);
        "agentbox:create_slow:ratio_rate6h" 0 {} => Between(0.0, slow);
        "agentbox:exec_slow:ratio_rate5m" 0 {} => Data(CANARY);
        "agentbox:exec_slow:ratio_rate30m" 0 {} => Data(CANARY);
        "agentbox:exec_slow:ratio_rate1h" 0 {} => Data(CANARY);
        "agentbox:exec_slow:ratio_rate6h" 0 {} => Data(CANARY);
        "AgentBoxCreateErrors" 0 {} => Nothing;
        "AgentBoxCreateErrors" 1 {} => Nothing;
        "AgentBoxExecErrors" 0 {} => Nothing;
        "AgentBoxExecErrors" 1 {} => Nothing;
        "AgentBoxCreateSlow" 0 {} => Unknown(SLOW);
        "AgentBoxCreateSlow" 1 {} => Unknown(SLOW);
        "AgentBoxExecSlow" 0 {} => Unknown(CANARY);
        "AgentBoxExecSlow" 1 {} => Unknown(CANARY);
        "AgentBoxTargetDown" 0 {} => Nothing;
        "AgentBoxNatsUnreachable" 0 {} => Nothing;
        "AgentBoxPostgresSlow" 0 {} => Unknown("one statement in a hundred may take 0.5 s on a busy machine");
        "AgentBoxImageDiskFull" 0 {} => Unknown("the machine's file system may be full");
        "AgentBoxImagePullsFailing" 0 {} => failing;
        "AgentBoxPoolEmpty" 0 {} => Nothing;
        "AgentBoxClockOff" 0 {} => Nothing;
        "AgentBoxQueueStuck" 0 {} => Nothing;
        "AgentBoxQueueStuck" 1 {} => Nothing;
        "AgentBoxDeadLetters" 0 {} => Nothing;
        "AgentBoxBoxesLost" 0 {} => Nothing;
        "AgentBoxSpansDropped" 0 {} => Nothing;
        "AgentBoxCanaryFailing" 0 {} => Nothing;
    }
}

/// A ratio that is shown above `threshold`. The range of the rule includes the preparation, so the ratio is known
/// within a quarter.
fn above(ratio: f64, threshold: f64) -> Known {
    if ratio > 1.25 * threshold {
        Between(0.75 * ratio, 1.25 * ratio)
    } else if ratio < 0.75 * threshold {
        Nothing
    } else {
        Unknown("the part of failed creates is near the threshold")
    }
}

fn job(service: &str) -> String {
    format!("agentbox-{service}")
}
