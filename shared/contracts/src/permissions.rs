//! The subjects that each NATS user may publish and subscribe to. The NATS server's
//! configuration is generated from this table, for local instances and the Helm chart.
//!
//! * I1. Only the provisioner creates and changes streams. A stream that a service could change
//!   would copy the subjects of another service, or publish to them.
//! * I2. A service publishes to the inbox of another one only as the reply to a request that the
//!   server has delivered to it. It cannot send such a request to itself, with a reply subject of
//!   its choice: no subject is in both of its lists.
//! * I3. JetStream delivers to any subject that a consumer, a pull or a direct read names, without
//!   a check of the permissions. So servers accept no such message as a request ([`is_inbox`]) or
//!   as a frame of a session. The exec-proxy, whose stream has bytes of users, has neither on it.
//! * I4. Each subject that a stream records has one publisher. The subject of an audit entry names
//!   it, and auth refuses an entry of another service's action.
//! * I5. A program outside the product reads events by one durable consumer, which has the name of its
//!   user ([`event_reader`]). It cannot publish a message of the contract, and it cannot use or delete
//!   another consumer.
//!
//! `shared/bus/tests/bus/permissions.md` lists the effect of this table on every kind of subject.

use serde_json::{Value, json};

use crate::subjects::{
    ALL_COMMANDS, ALL_EVENTS, ALL_LIMITS, AUDIT_HEAD, AUDIT_HEADS_STREAM, AUDIT_STREAM,
    COMMANDS_STREAM, DEAD_AUDIT, DEAD_COMMANDS, DEAD_LETTERS_STREAM, EVENTS_STREAM, LIMITS_STREAM,
    OUTPUT_BUCKET, OUTPUT_STREAM, PREFIX, ROUTES_BUCKET, ROUTES_STREAM, STREAMS, confirmation,
    service_audit, service_sessions,
};

/// The services that log in to NATS.
pub const SERVICES: [&str; 5] = ["api-gateway", "auth", "scheduler", "exec-proxy", "webhooks"];

/// The user that creates and updates the streams and buckets, and does nothing else.
pub const PROVISIONER: &str = "provisioner";

/// The user of programs outside the product that read environment events, and do nothing else.
pub const EVENT_READER: &str = "event-reader";

/// Every user of NATS. An operator adds more event readers, with the rights of [`event_reader`].
pub const USERS: [&str; 7] = [
    SERVICES[0],
    SERVICES[1],
    SERVICES[2],
    SERVICES[3],
    SERVICES[4],
    PROVISIONER,
    EVENT_READER,
];

/// The first characters of every reply subject.
pub const INBOX: &str = "_INBOX";

/// How long after a request its reply is permitted. It is longer than a server works on a request.
const REPLY_WITHIN: &str = "3m";
/// The same for the gateway, which serves requests that take no time. The NATS server remembers for that long
/// each message with a reply subject that it has delivered, and so each event that the gateway reads.
const GATEWAY_REPLY_WITHIN: &str = "5s";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    pub publish: Vec<String>,
    pub subscribe: Vec<String>,
    /// How long the user may send one reply to each request that it receives; `None`: it may not.
    pub replies_within: Option<&'static str>,
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

    /// The state of a stream.
    fn stream_info(self, stream: &str) -> Self {
        self.publish([format!("$JS.API.STREAM.INFO.{stream}")])
    }

    /// The state of a stream, and single messages in JSON.
    fn read_stream(self, stream: &str) -> Self {
        self.stream_info(stream)
            .publish([format!("$JS.API.STREAM.MSG.GET.{stream}")])
    }

    /// The removal of single messages.
    fn delete_messages(self, stream: &str) -> Self {
        self.publish([format!("$JS.API.STREAM.MSG.DELETE.{stream}")])
    }

    /// The state of a stream, and consumers.
    fn consume_stream(self, stream: &str) -> Self {
        self.stream_info(stream).publish([
            format!("$JS.API.CONSUMER.CREATE.{stream}"),
            format!("$JS.API.CONSUMER.CREATE.{stream}.>"),
            format!("$JS.API.CONSUMER.DELETE.{stream}.>"),
            format!("$JS.API.CONSUMER.INFO.{stream}.>"),
            format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.>"),
            format!("$JS.FC.{stream}.>"),
        ])
    }

    /// The state of a stream, and the one consumer `consumer` of it: its creation, its messages and
    /// their acknowledgement, its state and its deletion.
    fn own_consumer(self, stream: &str, consumer: &str) -> Self {
        self.stream_info(stream).publish([
            format!("$JS.API.CONSUMER.CREATE.{stream}.{consumer}"),
            format!("$JS.API.CONSUMER.CREATE.{stream}.{consumer}.>"),
            format!("$JS.API.CONSUMER.DELETE.{stream}.{consumer}"),
            format!("$JS.API.CONSUMER.INFO.{stream}.{consumer}"),
            format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
            format!("$JS.ACK.{stream}.{consumer}.>"),
        ])
    }

    /// The acknowledgement of the messages of a stream.
    fn acknowledge(self, stream: &str) -> Self {
        self.publish([format!("$JS.ACK.{stream}.>")])
    }

    /// The requests to a service, discovery, and one reply to each request. `rpc` is the token of the
    /// service in the subjects of its requests.
    fn serve(self, service: &str, rpc: &str) -> Self {
        let mut permissions = self
            .publish([confirmation(service)])
            .subscribe([format!("{PREFIX}.rpc.{rpc}.>"), "$SRV.>".to_owned()]);
        permissions.replies_within = Some(match service {
            "api-gateway" => GATEWAY_REPLY_WITHIN,
            _ => REPLY_WITHIN,
        });
        permissions
    }

    /// The form of the NATS server's configuration.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut permissions = json!({
            "publish": { "allow": self.publish },
            "subscribe": { "allow": self.subscribe },
        });
        if let Some(expires) = self.replies_within {
            permissions["allow_responses"] = json!({ "max": 1, "expires": expires });
        }
        permissions
    }
}

/// The prefix of a user's reply subjects. No other user may subscribe to it.
#[must_use]
pub fn inbox_prefix(user: &str) -> String {
    format!("{INBOX}_{user}")
}

/// Whether `subject` is the reply subject of a request: of a service, or of a tool such as
/// `nats`. A message that JetStream delivers has another one or none.
#[must_use]
pub fn is_inbox(subject: &str) -> bool {
    subject
        .strip_prefix(INBOX)
        .is_some_and(|rest| rest.starts_with(['.', '_']))
}

/// The service with which `service` exchanges the frames of sessions.
#[must_use]
pub fn session_peer(service: &str) -> Option<&'static str> {
    match service {
        "api-gateway" => Some("exec-proxy"),
        "exec-proxy" => Some("api-gateway"),
        _ => None,
    }
}

/// The streams that a service uses. It waits for them when it starts.
#[must_use]
pub fn streams_of(service: &str) -> &'static [&'static str] {
    match service {
        "api-gateway" => &[LIMITS_STREAM, EVENTS_STREAM, ROUTES_STREAM, AUDIT_STREAM],
        "scheduler" => &[
            COMMANDS_STREAM,
            EVENTS_STREAM,
            DEAD_LETTERS_STREAM,
            ROUTES_STREAM,
        ],
        "exec-proxy" => &[OUTPUT_STREAM],
        "auth" => &[AUDIT_STREAM, AUDIT_HEADS_STREAM],
        "webhooks" => &[EVENTS_STREAM],
        _ => &[],
    }
}

/// The rights of a program that reads environment events: an inbox, and the durable consumer that has
/// the name of its user.
#[must_use]
pub fn event_reader(user: &str) -> Permissions {
    Permissions::default()
        .subscribe([format!("{}.>", inbox_prefix(user))])
        .own_consumer(EVENTS_STREAM, user)
}

/// `None` for a name that is not in [`USERS`].
#[must_use]
pub fn for_user(user: &str) -> Option<Permissions> {
    if user == EVENT_READER {
        return Some(event_reader(user));
    }
    let sessions_of_peer = session_peer(user).map(|peer| format!("{}>", service_sessions(peer)));
    let base = Permissions::default().publish(sessions_of_peer).subscribe([
        format!("{}.>", inbox_prefix(user)),
        format!("{}>", service_sessions(user)),
    ]);
    Some(match user {
        "api-gateway" => base
            .serve(user, user)
            .publish([
                format!("{PREFIX}.rpc.auth.>"),
                format!("{PREFIX}.rpc.scheduler.>"),
                format!("{PREFIX}.rpc.exec.>"),
                format!("{PREFIX}.rpc.webhooks.>"),
                ALL_LIMITS.to_owned(),
                service_audit(user),
            ])
            .stream_info(LIMITS_STREAM)
            .stream_info(AUDIT_STREAM)
            .consume_stream(EVENTS_STREAM)
            .consume_stream(ROUTES_STREAM),
        "auth" => base
            .serve(user, "auth")
            // Auth's own actions are entries of its database, so it publishes none.
            .publish([
                format!("{PREFIX}.rpc.scheduler.delete-owned"),
                format!("{PREFIX}.rpc.api-gateway.>"),
                AUDIT_HEAD.to_owned(),
                DEAD_AUDIT.to_owned(),
            ])
            .consume_stream(AUDIT_STREAM)
            .acknowledge(AUDIT_STREAM)
            .consume_stream(AUDIT_HEADS_STREAM),
        "scheduler" => base
            .serve(user, "scheduler")
            .publish([
                ALL_COMMANDS.to_owned(),
                ALL_EVENTS.to_owned(),
                DEAD_COMMANDS.to_owned(),
                format!("{PREFIX}.rpc.exec.>"),
                format!("$KV.{ROUTES_BUCKET}.>"),
                service_audit(user),
            ])
            .consume_stream(COMMANDS_STREAM)
            .acknowledge(COMMANDS_STREAM)
            .consume_stream(EVENTS_STREAM)
            .read_stream(DEAD_LETTERS_STREAM)
            .delete_messages(DEAD_LETTERS_STREAM)
            .read_stream(ROUTES_STREAM),
        "exec-proxy" => base
            .serve(user, "exec")
            .publish([
                format!("{PREFIX}.rpc.scheduler.record-activity"),
                format!("$O.{OUTPUT_BUCKET}.>"),
                // The object store removes the chunks of an archive that it has replaced.
                format!("$JS.API.STREAM.PURGE.{OUTPUT_STREAM}"),
            ])
            .read_stream(OUTPUT_STREAM),
        "webhooks" => base
            .serve(user, "webhooks")
            .publish([format!("{PREFIX}.rpc.auth.get-user")])
            .own_consumer(EVENTS_STREAM, user),
        PROVISIONER => base
            .publish(["$JS.API.INFO".to_owned()])
            .publish(STREAMS.iter().flat_map(|stream| {
                ["CREATE", "UPDATE", "INFO"].map(|verb| format!("$JS.API.STREAM.{verb}.{stream}"))
            })),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use strum::VariantArray as _;

    use super::*;
    use crate::audit::AuditAction;
    use crate::subjects::audit;

    #[test]
    fn only_known_users_have_permissions() {
        for user in USERS {
            assert!(for_user(user).is_some(), "{user}");
        }
        assert_eq!(for_user("boxd"), None);
    }

    #[test]
    fn service_publishes_audit_entries_of_its_own_actions_only() {
        for action in AuditAction::VARIANTS {
            let subject = audit(*action);
            let publishers: Vec<&str> = USERS
                .into_iter()
                .filter(|user| {
                    let publish = for_user(user).unwrap().publish;
                    publish.iter().any(|allowed| overlap(allowed, &subject))
                })
                .collect();
            // Auth's own actions are entries of its database.
            let expected = match action.service() {
                "auth" => Vec::new(),
                service => vec![service],
            };
            assert_eq!(publishers, expected, "{action}");
        }
    }

    #[test]
    fn recorded_subject_has_one_publisher() {
        for subject in [
            "abx.v1.cmd.env.local.reconcile.x",
            "abx.v1.evt.env.x.x.running",
            "abx.v1.evt.audit.head",
            "abx.v1.dlq.cmd.x",
            "abx.v1.dlq.audit.x",
            "abx.v1.audit.api-gateway.exec",
            "abx.v1.audit.scheduler.create-environment",
            "abx.v1.limit.x.x.1",
            "$KV.abx_routes.x",
            "$O.abx_output.C.x",
        ] {
            let publishers = USERS.into_iter().filter(|user| {
                let publish = for_user(user).unwrap().publish;
                publish.iter().any(|allowed| overlap(allowed, subject))
            });
            assert_eq!(publishers.count(), 1, "{subject}");
        }
    }

    #[test]
    fn user_cannot_use_replies_or_sessions_of_other_users() {
        for user in USERS {
            let permissions = for_user(user).unwrap();
            for other in USERS.iter().filter(|other| **other != user) {
                for subject in &permissions.subscribe {
                    assert!(
                        !subject.starts_with(&inbox_prefix(other)),
                        "{user}: {subject}"
                    );
                    assert!(
                        !subject.contains(&format!("sess.{other}")),
                        "{user}: {subject}"
                    );
                }
                for subject in &permissions.publish {
                    assert!(
                        !subject.starts_with(&inbox_prefix(other)),
                        "{user}: {subject}"
                    );
                }
            }
            for subject in permissions.subscribe.iter().chain(&permissions.publish) {
                assert!(subject != ">" && subject != "_INBOX.>", "{user}");
            }
        }
    }

    /// Whether a subject matches both, each of which may end with `>`.
    fn overlap(one: &str, other: &str) -> bool {
        let (mut one, mut other) = (one.split('.'), other.split('.'));
        loop {
            match (one.next(), other.next()) {
                (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
                (Some(a), Some(b)) if a == b => {}
                _ => return false,
            }
        }
    }

    #[test]
    fn user_cannot_send_a_request_to_itself() {
        for user in USERS {
            let Permissions {
                publish, subscribe, ..
            } = for_user(user).unwrap();
            for sent in &publish {
                assert!(!sent.contains('*'), "{user}: {sent}");
                for received in &subscribe {
                    assert!(!overlap(sent, received), "{user}: {sent} and {received}");
                }
            }
        }
        assert!(overlap("a.b.>", "a.b.c") && overlap("a.>", "a.b.>"));
        assert!(!overlap("a.b", "a.b.>") && !overlap("a.b.>", "a.c.>"));
    }

    #[test]
    fn service_cannot_change_a_stream_but_remove_messages_of_its_own() {
        for service in SERVICES {
            for subject in for_user(service).unwrap().publish {
                let verb = subject.strip_prefix("$JS.API.STREAM.");
                let Some(verb) = verb else { continue };
                let is_own_removal = match service {
                    "exec-proxy" => verb == format!("PURGE.{OUTPUT_STREAM}"),
                    "scheduler" => verb == format!("MSG.DELETE.{DEAD_LETTERS_STREAM}"),
                    _ => false,
                };
                assert!(
                    verb.starts_with("INFO.") || verb.starts_with("MSG.GET.") || is_own_removal,
                    "{service}: {subject}"
                );
            }
        }
    }

    #[test]
    fn event_reader_publishes_only_about_its_own_consumer() {
        let reader = event_reader("billing");
        assert_eq!(reader.subscribe, ["_INBOX_billing.>"]);
        assert_eq!(reader.replies_within, None);
        for subject in &reader.publish {
            let is_own = ["CREATE", "DELETE", "INFO", "MSG.NEXT"].iter().any(|verb| {
                let own = format!("$JS.API.CONSUMER.{verb}.{EVENTS_STREAM}.billing");
                *subject == own || *subject == format!("{own}.>")
            });
            let is_known = is_own
                || *subject == format!("$JS.API.STREAM.INFO.{EVENTS_STREAM}")
                || *subject == format!("$JS.ACK.{EVENTS_STREAM}.billing.>");
            assert!(is_known, "{subject}");
        }
    }

    #[test]
    fn only_reply_subjects_are_inboxes() {
        for inbox in ["_INBOX_api-gateway.x.1", "_INBOX.x"] {
            assert!(is_inbox(inbox), "{inbox}");
        }
        for other in [
            "",
            "_INBOX",
            "_INBOXES.x",
            "$JS.ACK.ABX_EVENTS.c.1.1.1.1.0",
            "abx.v1.rpc.auth.login",
        ] {
            assert!(!is_inbox(other), "{other}");
        }
    }
}
