//! Every NATS subject, stream, consumer, bucket and header, built and parsed here alone.
//!
//! User text never enters a subject: tokens are ids, cluster names and fixed words.

use crate::environment::EventKind;
use crate::ids::{EnvironmentId, InstanceId};

/// The version of everything below.
pub const PREFIX: &str = "abx.v1";

/// Environment commands: a work queue, explicit acks.
pub const COMMANDS_STREAM: &str = "ABX_COMMANDS";
/// Environment events: kept 7 days, replayable.
pub const EVENTS_STREAM: &str = "ABX_EVENTS";
/// Commands that could not be carried out.
pub const DEAD_LETTERS_STREAM: &str = "ABX_DEAD_LETTERS";
/// Rate-limit counters, in memory.
pub const LIMITS_STREAM: &str = "ABX_LIMITS";
/// Key-value: environment id to [`crate::environment::Route`].
pub const ROUTES_BUCKET: &str = "abx_routes";
/// Object store: environment id to the last output of an ended environment.
pub const OUTPUT_BUCKET: &str = "abx_output";

/// When the caller stops waiting, Unix milliseconds. A request past it is not worked on.
pub const HEADER_DEADLINE: &str = "Abx-Deadline";
/// On a reply: the body is an [`crate::error::Error`].
pub const HEADER_ERROR: &str = "Abx-Error";
/// On a command: when it stops being wanted, Unix milliseconds.
pub const HEADER_EXPIRES_AT: &str = "Abx-Expires-At";
/// On a dead letter: why.
pub const HEADER_REASON: &str = "Abx-Reason";

/// `abx.v1.rpc.<service>.<method>`
#[must_use]
pub fn rpc(service: &str, method: &str) -> String {
    format!("{PREFIX}.rpc.{service}.{method}")
}

/// `abx.v1.rpc.exec.<cluster>.<method>`: exec-proxies serve one cluster each.
#[must_use]
pub fn exec_rpc(cluster: &str, method: &str) -> String {
    format!("{PREFIX}.rpc.exec.{cluster}.{method}")
}

/// `abx.v1.cmd.env.<cluster>.<op>.<id>`
#[must_use]
pub fn command(cluster: &str, op: &str, id: &EnvironmentId) -> String {
    format!("{PREFIX}.cmd.env.{cluster}.{op}.{id}")
}

/// The commands of one cluster.
#[must_use]
pub fn commands_of(cluster: &str) -> String {
    format!("{PREFIX}.cmd.env.{cluster}.>")
}

pub const ALL_COMMANDS: &str = "abx.v1.cmd.env.>";

/// `abx.v1.evt.env.<id>.<kind>`
#[must_use]
pub fn event(id: &EnvironmentId, kind: EventKind) -> String {
    format!("{PREFIX}.evt.env.{id}.{}", kind.as_str())
}

/// The events of one environment.
#[must_use]
pub fn events_of(id: &EnvironmentId) -> String {
    format!("{PREFIX}.evt.env.{id}.*")
}

pub const ALL_EVENTS: &str = "abx.v1.evt.env.>";

/// The dead letter of what was sent to `subject`.
#[must_use]
pub fn dead_letter(subject: &str) -> String {
    let rest = subject.strip_prefix(PREFIX).unwrap_or(subject);
    format!("{PREFIX}.dlq.{}", rest.trim_start_matches('.'))
}

pub const ALL_DEAD_LETTERS: &str = "abx.v1.dlq.>";

/// `abx.v1.limit.<principal>.<category>.<window>`. `principal` is an id, or an address
/// hashed or encoded to subject characters by the caller.
#[must_use]
pub fn limit(principal: &str, category: &str, window: u64) -> String {
    format!("{PREFIX}.limit.{principal}.{category}.{window}")
}

pub const ALL_LIMITS: &str = "abx.v1.limit.>";

/// Where one process receives the frames of its session number `n`:
/// `abx.v1.sess.<service>.<instance>.<n>`. Each frame's reply subject is the sender's
/// own, so one subscription a process serves all its sessions.
#[must_use]
pub fn session(service: &str, instance: &InstanceId, n: u64) -> String {
    format!("{PREFIX}.sess.{service}.{instance}.{n}")
}

/// All sessions of one process.
#[must_use]
pub fn sessions_of(service: &str, instance: &InstanceId) -> String {
    format!("{PREFIX}.sess.{service}.{instance}.*")
}

/// What a subject of ours names; the inverse of the builders above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Rpc {
        service: String,
        method: String,
    },
    ExecRpc {
        cluster: String,
        method: String,
    },
    Command {
        cluster: String,
        op: String,
        id: EnvironmentId,
    },
    Event {
        id: EnvironmentId,
        kind: String,
    },
    Limit {
        principal: String,
        category: String,
        window: u64,
    },
    Session {
        service: String,
        instance: InstanceId,
        n: u64,
    },
}

impl Subject {
    /// `None` for what is not ours.
    #[must_use]
    pub fn parse(subject: &str) -> Option<Self> {
        let rest = subject.strip_prefix(PREFIX)?.strip_prefix('.')?;
        let tokens: Vec<&str> = rest.split('.').collect();
        if tokens.iter().any(|token| token.is_empty()) {
            return None;
        }
        Some(match tokens.as_slice() {
            ["rpc", "exec", cluster, method] => Self::ExecRpc {
                cluster: (*cluster).to_owned(),
                method: (*method).to_owned(),
            },
            ["rpc", service, method] => Self::Rpc {
                service: (*service).to_owned(),
                method: (*method).to_owned(),
            },
            ["cmd", "env", cluster, op, id] => Self::Command {
                cluster: (*cluster).to_owned(),
                op: (*op).to_owned(),
                id: id.parse().ok()?,
            },
            ["evt", "env", id, kind] => Self::Event {
                id: id.parse().ok()?,
                kind: (*kind).to_owned(),
            },
            ["limit", principal, category, window] => Self::Limit {
                principal: (*principal).to_owned(),
                category: (*category).to_owned(),
                window: window.parse().ok()?,
            },
            ["sess", service, instance, n] => Self::Session {
                service: (*service).to_owned(),
                instance: instance.parse().ok()?,
                n: n.parse().ok()?,
            },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_parses_back_to_what_it_was_built_from() {
        let id = EnvironmentId::random();
        let instance = InstanceId::random();
        let table = [
            (
                rpc("auth", "login"),
                Subject::Rpc {
                    service: "auth".into(),
                    method: "login".into(),
                },
            ),
            (
                exec_rpc("local", "open"),
                Subject::ExecRpc {
                    cluster: "local".into(),
                    method: "open".into(),
                },
            ),
            (
                command("local", "reconcile", &id),
                Subject::Command {
                    cluster: "local".into(),
                    op: "reconcile".into(),
                    id: id.clone(),
                },
            ),
            (
                event(&id, EventKind::Running),
                Subject::Event {
                    id: id.clone(),
                    kind: "running".into(),
                },
            ),
            (
                limit("user-1", "exec", 7),
                Subject::Limit {
                    principal: "user-1".into(),
                    category: "exec".into(),
                    window: 7,
                },
            ),
            (
                session("api-gateway", &instance, 9),
                Subject::Session {
                    service: "api-gateway".into(),
                    instance: instance.clone(),
                    n: 9,
                },
            ),
        ];
        for (text, parsed) in table {
            assert_eq!(Subject::parse(&text), Some(parsed), "{text}");
        }
    }

    #[test]
    fn what_is_not_ours_does_not_parse() {
        for text in [
            "",
            "abx.v1",
            "abx.v1.",
            "abx.v1.rpc",
            "abx.v1.rpc..x",
            "abx.v2.rpc.a.b",
            "abx.v1.evt.env.nope.running",
        ] {
            assert_eq!(Subject::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_dead_letter_keeps_the_subject_it_came_from() {
        assert_eq!(
            dead_letter("abx.v1.cmd.env.local.x.y"),
            "abx.v1.dlq.cmd.env.local.x.y"
        );
    }
}
