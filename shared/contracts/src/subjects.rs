//! The only place that builds and parses NATS subjects, and names streams, buckets and
//! headers.
//!
//! No text from a user is part of a subject: tokens are ids, cluster names and constants.

use crate::audit::AuditAction;
use crate::environment::EventKind;
use crate::ids::{EnvironmentId, InstanceId, UserId};

/// The prefix of every subject: the product and the version of this contract.
pub const PREFIX: &str = "abx.v1";

/// Environment commands: a work queue with explicit acknowledgements.
pub const COMMANDS_STREAM: &str = "ABX_COMMANDS";
/// Environment events, kept for 7 days.
pub const EVENTS_STREAM: &str = "ABX_EVENTS";
/// Commands that could not be processed, and malformed audit entries.
pub const DEAD_LETTERS_STREAM: &str = "ABX_DEAD_LETTERS";
/// Rate-limit counters, in memory.
pub const LIMITS_STREAM: &str = "ABX_LIMITS";
/// Audit entries that auth has yet to chain.
pub const AUDIT_STREAM: &str = "ABX_AUDIT";
/// The published heads of the audit trail's chain, kept longer than the trail by default.
pub const AUDIT_HEADS_STREAM: &str = "ABX_AUDIT_HEADS";
/// Key-value bucket: environment id to [`crate::environment::Route`].
pub const ROUTES_BUCKET: &str = "abx_routes";
/// The stream that holds [`ROUTES_BUCKET`].
pub const ROUTES_STREAM: &str = "KV_abx_routes";
/// Object store: environment id to the archived output of an ended environment.
pub const OUTPUT_BUCKET: &str = "abx_output";
/// The stream that holds [`OUTPUT_BUCKET`].
pub const OUTPUT_STREAM: &str = "OBJ_abx_output";

/// Every stream. The provisioner creates them.
pub const STREAMS: [&str; 8] = [
    COMMANDS_STREAM,
    EVENTS_STREAM,
    DEAD_LETTERS_STREAM,
    LIMITS_STREAM,
    ROUTES_STREAM,
    OUTPUT_STREAM,
    AUDIT_STREAM,
    AUDIT_HEADS_STREAM,
];

/// On a request: when the caller stops waiting, in Unix milliseconds. A server does not
/// process a request after that time.
pub const HEADER_DEADLINE: &str = "Abx-Deadline";
/// On a request: the [`crate::audit::Origin`] of the API request that caused it, as JSON.
pub const HEADER_ORIGIN: &str = "Abx-Origin";
/// On a reply: the body is an [`crate::error::Error`].
pub const HEADER_ERROR: &str = "Abx-Error";
/// On a command: when it expires, in Unix milliseconds.
pub const HEADER_EXPIRES_AT: &str = "Abx-Expires-At";
/// On a request that opens a session and continues in the session's first frames: the length of the
/// whole request, in bytes.
pub const HEADER_OPEN_LENGTH: &str = "Abx-Open-Length";
/// On a dead letter: the reason.
pub const HEADER_REASON: &str = "Abx-Reason";

/// `abx.v1.rpc.<service>.<method>`
#[must_use]
pub fn rpc(service: &str, method: &str) -> String {
    format!("{PREFIX}.rpc.{service}.{method}")
}

/// `abx.v1.rpc.<service>.<instance>.<method>`: one process serves it.
#[must_use]
pub fn instance_rpc(service: &str, instance: &InstanceId, method: &str) -> String {
    format!("{PREFIX}.rpc.{service}.{instance}.{method}")
}

/// `abx.v1.rpc.exec.<cluster>.<method>`: each exec-proxy serves one cluster.
#[must_use]
pub fn exec_rpc(cluster: &str, method: &str) -> String {
    format!("{PREFIX}.rpc.exec.{cluster}.{method}")
}

/// `abx.v1.cmd.env.<cluster>.<op>.<id>`
#[must_use]
pub fn command(cluster: &str, op: &str, id: &EnvironmentId) -> String {
    format!("{PREFIX}.cmd.env.{cluster}.{op}.{id}")
}

/// A wildcard for the commands of one cluster.
#[must_use]
pub fn cluster_commands(cluster: &str) -> String {
    format!("{PREFIX}.cmd.env.{cluster}.>")
}

pub const ALL_COMMANDS: &str = "abx.v1.cmd.env.>";

/// `abx.v1.evt.env.<owner>.<id>.<kind>`
#[must_use]
pub fn event(owner: &UserId, id: &EnvironmentId, kind: EventKind) -> String {
    format!("{PREFIX}.evt.env.{owner}.{id}.{}", kind.as_str())
}

/// A wildcard for the events of one environment.
#[must_use]
pub fn environment_events(id: &EnvironmentId) -> String {
    format!("{PREFIX}.evt.env.*.{id}.*")
}

/// A wildcard for the events of the environments of one owner.
#[must_use]
pub fn owner_events(owner: &UserId) -> String {
    format!("{PREFIX}.evt.env.{owner}.>")
}

pub const ALL_EVENTS: &str = "abx.v1.evt.env.>";

/// `abx.v1.audit.<service>.<action>`: an entry of an action of that service. No other service may
/// publish there.
#[must_use]
pub fn audit(action: AuditAction) -> String {
    format!("{PREFIX}.audit.{}.{}", action.service(), action.as_str())
}

/// A wildcard for the audit entries of one service.
#[must_use]
pub fn service_audit(service: &str) -> String {
    format!("{PREFIX}.audit.{service}.>")
}

pub const ALL_AUDIT: &str = "abx.v1.audit.>";

/// The head of the audit trail's chain, once an hour.
pub const AUDIT_HEAD: &str = "abx.v1.evt.audit.head";

/// `abx.v1.dlq.<rest>`: the dead letter of a message on `abx.v1.<rest>`.
#[must_use]
pub fn dead_letter(subject: &str) -> String {
    let rest = subject.strip_prefix(PREFIX).unwrap_or(subject);
    format!("{PREFIX}.dlq.{}", rest.trim_start_matches('.'))
}

pub const ALL_DEAD_LETTERS: &str = "abx.v1.dlq.>";
/// The dead letters of commands.
pub const DEAD_COMMANDS: &str = "abx.v1.dlq.cmd.>";
/// The dead letters of audit entries.
pub const DEAD_AUDIT: &str = "abx.v1.dlq.audit.>";

/// `abx.v1.limit.<principal>.<category>.<window>`. `principal` is an id, or an address that
/// the caller has encoded in subject characters.
#[must_use]
pub fn limit(principal: &str, category: &str, window: u64) -> String {
    format!("{PREFIX}.limit.{principal}.{category}.{window}")
}

pub const ALL_LIMITS: &str = "abx.v1.limit.>";

/// `abx.v1.sess.<service>.<instance>.<n>`: one process receives the frames of its session
/// `n` here. The reply subject of a frame is the sender's own session subject, so one
/// subscription serves all sessions of a process.
#[must_use]
pub fn session(service: &str, instance: &InstanceId, n: u64) -> String {
    format!("{PREFIX}.sess.{service}.{instance}.{n}")
}

/// A wildcard for the sessions of one process.
#[must_use]
pub fn process_sessions(service: &str, instance: &InstanceId) -> String {
    format!("{PREFIX}.sess.{service}.{instance}.*")
}

/// `abx.v1.confirm.<service>`: the service publishes a request here, and nobody may subscribe. The
/// server's answer that there is no responder confirms that it has processed all earlier messages
/// of the connection.
#[must_use]
pub fn confirmation(service: &str) -> String {
    format!("{PREFIX}.confirm.{service}")
}

/// The prefix of the sessions of all processes of one service.
#[must_use]
pub fn service_sessions(service: &str) -> String {
    format!("{PREFIX}.sess.{service}.")
}

/// A parsed subject: the inverse of the builders above.
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
    InstanceRpc {
        service: String,
        instance: InstanceId,
        method: String,
    },
    Command {
        cluster: String,
        op: String,
        id: EnvironmentId,
    },
    Event {
        owner: UserId,
        id: EnvironmentId,
        kind: String,
    },
    Audit {
        action: AuditAction,
    },
    AuditHead,
    /// The dead letter of a message on `subject`.
    DeadLetter {
        subject: String,
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
    /// The subject with placeholders for its variable tokens, such as
    /// `abx.v1.rpc.exec.{cluster}.open`. It has few values, so it can be a label.
    #[must_use]
    pub fn template(&self) -> String {
        match self {
            Self::Rpc { service, method } => rpc(service, method),
            Self::ExecRpc { method, .. } => exec_rpc("{cluster}", method),
            Self::InstanceRpc {
                service, method, ..
            } => format!("{PREFIX}.rpc.{service}.{{instance}}.{method}"),
            Self::Command { .. } => format!("{PREFIX}.cmd.env.{{cluster}}.{{op}}.{{id}}"),
            Self::Event { kind, .. } => format!("{PREFIX}.evt.env.{{owner}}.{{id}}.{kind}"),
            Self::Audit { action } => audit(*action),
            Self::AuditHead => AUDIT_HEAD.to_owned(),
            Self::DeadLetter { .. } => format!("{PREFIX}.dlq.{{subject}}"),
            Self::Limit { category, .. } => {
                format!("{PREFIX}.limit.{{principal}}.{category}.{{window}}")
            }
            Self::Session { service, .. } => format!("{PREFIX}.sess.{service}.{{instance}}.{{n}}"),
        }
    }

    /// `None` for a subject that no builder makes.
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
            ["rpc", service, instance, method] => Self::InstanceRpc {
                service: (*service).to_owned(),
                instance: instance.parse().ok()?,
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
            ["evt", "env", owner, id, kind] => Self::Event {
                owner: owner.parse().ok()?,
                id: id.parse().ok()?,
                kind: (*kind).to_owned(),
            },
            ["evt", "audit", "head"] => Self::AuditHead,
            ["audit", service, action] => {
                let action: AuditAction = action.parse().ok()?;
                if action.service() != *service {
                    return None;
                }
                Self::Audit { action }
            }
            ["dlq", _, ..] => Self::DeadLetter {
                subject: format!("{PREFIX}.{}", tokens[1..].join(".")),
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
    fn built_subjects_parse_back() {
        let id = EnvironmentId::random();
        let instance = InstanceId::random();
        let owner = UserId::random();
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
                instance_rpc("api-gateway", &instance, "forget"),
                Subject::InstanceRpc {
                    service: "api-gateway".into(),
                    instance: instance.clone(),
                    method: "forget".into(),
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
                event(&owner, &id, EventKind::Running),
                Subject::Event {
                    owner: owner.clone(),
                    id: id.clone(),
                    kind: "running".into(),
                },
            ),
            (
                audit(AuditAction::ReadLogs),
                Subject::Audit {
                    action: AuditAction::ReadLogs,
                },
            ),
            (AUDIT_HEAD.to_owned(), Subject::AuditHead),
            (
                dead_letter(&command("local", "reconcile", &id)),
                Subject::DeadLetter {
                    subject: command("local", "reconcile", &id),
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
    fn bucket_streams_have_the_names_that_the_client_library_derives() {
        assert_eq!(ROUTES_STREAM, format!("KV_{ROUTES_BUCKET}"));
        assert_eq!(OUTPUT_STREAM, format!("OBJ_{OUTPUT_BUCKET}"));
    }

    #[test]
    fn session_subject_has_the_prefix_of_its_service() {
        let session = session("api-gateway", &InstanceId::random(), 9);
        assert!(session.starts_with(&service_sessions("api-gateway")));
        assert!(!session.starts_with(&service_sessions("exec-proxy")));
    }

    #[test]
    fn unknown_subjects_do_not_parse() {
        for text in [
            "",
            "abx.v1",
            "abx.v1.",
            "abx.v1.rpc",
            "abx.v1.rpc..x",
            "abx.v1.rpc.api-gateway.nope.x",
            "abx.v1.dlq",
            "abx.v2.rpc.a.b",
            "abx.v1.evt.env.nope.nope.running",
            "abx.v1.evt.env.env-0123456789abcdef.running",
            "abx.v1.audit.exec",
            "abx.v1.audit.api-gateway.nope",
            "abx.v1.audit.scheduler.exec",
        ] {
            assert_eq!(Subject::parse(text), None, "{text}");
        }
    }

    #[test]
    fn dead_letters_of_commands_and_audit_entries_match_their_wildcards() {
        let command = command("local", "reconcile", &EnvironmentId::random());
        for (subject, wildcard) in [
            (command, DEAD_COMMANDS),
            (audit(AuditAction::Exec), DEAD_AUDIT),
        ] {
            let prefix = wildcard.trim_end_matches('>');
            let letter = dead_letter(&subject);
            assert!(letter.starts_with(prefix), "{letter}");
        }
    }

    #[test]
    fn dead_letter_keeps_original_subject() {
        assert_eq!(
            dead_letter("abx.v1.cmd.env.local.x.y"),
            "abx.v1.dlq.cmd.env.local.x.y"
        );
    }
}
