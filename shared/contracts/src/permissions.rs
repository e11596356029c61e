//! The subjects that each service may publish and subscribe to. The NATS server's
//! configuration is generated from this table, for local instances and the Helm chart.

use crate::audit::AuditAction;
use crate::subjects::{
    ALL_COMMANDS, ALL_DEAD_LETTERS, ALL_EVENTS, ALL_LIMITS, AUDIT_HEAD, AUDIT_HEADS_STREAM,
    AUDIT_STREAM, COMMANDS_STREAM, DEAD_LETTERS_STREAM, EVENTS_STREAM, LIMITS_STREAM,
    OUTPUT_BUCKET, PREFIX, ROUTES_BUCKET, audit,
};

/// The services that log in to NATS.
pub const SERVICES: [&str; 4] = ["api-gateway", "auth", "scheduler", "exec-proxy"];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    pub publish: Vec<String>,
    pub subscribe: Vec<String>,
}

impl Permissions {
    fn publish(mut self, subjects: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.publish.extend(subjects.into_iter().map(Into::into));
        self
    }

    fn subscribe(mut self, subjects: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.subscribe.extend(subjects.into_iter().map(Into::into));
        self
    }

    /// The JetStream API calls on one stream, and the acknowledgement of its messages.
    fn stream(self, stream: &str) -> Self {
        self.publish([
            format!("$JS.API.STREAM.*.{stream}"),
            format!("$JS.API.STREAM.MSG.*.{stream}"),
            format!("$JS.API.CONSUMER.*.{stream}"),
            format!("$JS.API.CONSUMER.*.{stream}.>"),
            format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.>"),
            format!("$JS.API.CONSUMER.DURABLE.CREATE.{stream}.>"),
            format!("$JS.API.DIRECT.GET.{stream}"),
            format!("$JS.API.DIRECT.GET.{stream}.>"),
            format!("$JS.ACK.{stream}.>"),
            format!("$JS.FC.{stream}.>"),
        ])
    }

    /// Read access to a stream: consumers and reads, without writes or administration.
    fn read_stream(self, stream: &str) -> Self {
        self.publish([
            format!("$JS.API.STREAM.INFO.{stream}"),
            format!("$JS.API.CONSUMER.CREATE.{stream}"),
            format!("$JS.API.CONSUMER.CREATE.{stream}.>"),
            format!("$JS.API.CONSUMER.DELETE.{stream}.>"),
            format!("$JS.API.CONSUMER.INFO.{stream}.>"),
            format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.>"),
            format!("$JS.API.DIRECT.GET.{stream}"),
            format!("$JS.API.DIRECT.GET.{stream}.>"),
            format!("$JS.FC.{stream}.>"),
        ])
    }
}

/// The prefix of a service's reply subjects. No other service may subscribe to it.
#[must_use]
pub fn inbox_prefix(service: &str) -> String {
    format!("_INBOX_{service}")
}

/// `None` for a name that is not in [`SERVICES`].
#[must_use]
pub fn for_service(service: &str) -> Option<Permissions> {
    let inbox = inbox_prefix(service);
    let base = Permissions::default()
        .publish(["$JS.API.INFO".to_owned()])
        .subscribe([format!("{inbox}.>"), format!("{PREFIX}.sess.{service}.>")]);
    // A server publishes replies to the inbox of each caller, and answers discovery requests.
    let serve = |permissions: Permissions, rpc: &str| {
        permissions
            .publish(SERVICES.iter().map(|s| format!("{}.>", inbox_prefix(s))))
            .publish(["_INBOX.>"])
            .subscribe([format!("{PREFIX}.rpc.{rpc}.>"), "$SRV.>".to_owned()])
    };
    Some(match service {
        "api-gateway" => base
            .publish([
                format!("{PREFIX}.rpc.auth.>"),
                format!("{PREFIX}.rpc.scheduler.>"),
                format!("{PREFIX}.rpc.exec.>"),
                format!("{PREFIX}.sess.exec-proxy.>"),
                ALL_LIMITS.to_owned(),
                audit(AuditAction::Exec),
                audit(AuditAction::Attach),
                audit(AuditAction::ReadLogs),
            ])
            .stream(LIMITS_STREAM)
            .read_stream(EVENTS_STREAM)
            .read_stream(&format!("KV_{ROUTES_BUCKET}")),
        // Auth's own actions are entries of its database, so it publishes none.
        "auth" => serve(base, "auth")
            .publish([
                format!("{PREFIX}.rpc.scheduler.delete-owned"),
                AUDIT_HEAD.to_owned(),
            ])
            .stream(AUDIT_STREAM)
            .stream(AUDIT_HEADS_STREAM),
        "scheduler" => serve(base, "scheduler")
            .publish([
                ALL_COMMANDS.to_owned(),
                ALL_EVENTS.to_owned(),
                ALL_DEAD_LETTERS.to_owned(),
                format!("{PREFIX}.rpc.exec.>"),
                format!("$KV.{ROUTES_BUCKET}.>"),
                audit(AuditAction::CreateEnvironment),
                audit(AuditAction::PatchEnvironment),
                audit(AuditAction::DeleteEnvironment),
            ])
            .stream(COMMANDS_STREAM)
            .stream(EVENTS_STREAM)
            .stream(DEAD_LETTERS_STREAM)
            .stream(&format!("KV_{ROUTES_BUCKET}")),
        "exec-proxy" => serve(base, "exec")
            .publish([
                format!("{PREFIX}.sess.api-gateway.>"),
                format!("$O.{OUTPUT_BUCKET}.>"),
            ])
            .stream(&format!("OBJ_{OUTPUT_BUCKET}")),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use strum::VariantArray as _;

    use super::*;

    #[test]
    fn only_known_services_have_permissions() {
        for service in SERVICES {
            assert!(for_service(service).is_some(), "{service}");
        }
        assert_eq!(for_service("boxd"), None);
    }

    #[test]
    fn service_publishes_audit_entries_of_its_own_actions_only() {
        for action in AuditAction::VARIANTS {
            let publishers: Vec<&str> = SERVICES
                .into_iter()
                .filter(|service| {
                    let permissions = for_service(service).unwrap();
                    permissions.publish.contains(&audit(*action))
                })
                .collect();
            let expected: &[&str] = match action {
                AuditAction::Exec | AuditAction::Attach | AuditAction::ReadLogs => &["api-gateway"],
                AuditAction::CreateEnvironment
                | AuditAction::PatchEnvironment
                | AuditAction::DeleteEnvironment => &["scheduler"],
                _ => &[],
            };
            assert_eq!(publishers, expected, "{action}");
        }
    }

    #[test]
    fn services_cannot_subscribe_to_other_services_replies_or_sessions() {
        for service in SERVICES {
            let permissions = for_service(service).unwrap();
            for other in SERVICES.iter().filter(|other| **other != service) {
                for subject in &permissions.subscribe {
                    assert!(
                        !subject.starts_with(&inbox_prefix(other)),
                        "{service}: {subject}"
                    );
                    assert!(
                        !subject.contains(&format!("sess.{other}")),
                        "{service}: {subject}"
                    );
                }
            }
            assert!(
                !permissions
                    .subscribe
                    .iter()
                    .any(|s| s == ">" || s == "_INBOX.>")
            );
            assert!(!permissions.publish.iter().any(|s| s == ">"));
        }
    }
}
