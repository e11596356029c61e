//! The rights of each user, tried on a real server and compared with `permissions.md`.

mod event_readers;
mod forged;

use std::path::Path;

use agentbox_contracts::permissions::{PROVISIONER, SERVICES, USERS, inbox_prefix};
use agentbox_contracts::subjects::STREAMS;
use agentbox_testing::{NatsEndpoint, TestNats};
use async_nats::{Client, ConnectOptions, Event};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::support::{DEADLINE, connect, connect_with_all_access, within};

/// The text above the tables.
const HEAD: &str = "\
# The rights of each user of NATS

The test `rights_match_the_table` tries every line with the credential of every user. It writes this
file if `AGENTBOX_WRITE` is set. P: may publish. S: may subscribe. A reply to a received request is
permitted to api-gateway, auth, scheduler, exec-proxy and webhooks, and not listed.
";

/// The text above the second table.
const CONSUMERS: &str = "
## Consumers

JetStream does not compare the deliver subject of a consumer with the permissions of its creator. Yes:
the user may create a consumer, named as the user, that delivers to a subject of another service. Servers
ignore the delivered message, because its reply subject is not an inbox.
";

/// No user may publish to it. The server reports errors in the order of the messages, so its error
/// comes after those of earlier messages.
const END: &str = "end.of.probe";

/// The verbs of the JetStream API on one stream, with `{}` for its name.
const STREAM_VERBS: [&str; 32] = [
    "$JS.API.STREAM.CREATE.{}",
    "$JS.API.STREAM.UPDATE.{}",
    "$JS.API.STREAM.INFO.{}",
    "$JS.API.STREAM.DELETE.{}",
    "$JS.API.STREAM.PURGE.{}",
    "$JS.API.STREAM.SNAPSHOT.{}",
    "$JS.API.STREAM.RESTORE.{}",
    "$JS.API.STREAM.PEER.REMOVE.{}",
    "$JS.API.STREAM.LEADER.STEPDOWN.{}",
    "$JS.API.STREAM.MSG.GET.{}",
    "$JS.API.STREAM.MSG.DELETE.{}",
    "$JS.API.DIRECT.GET.{}",
    "$JS.API.DIRECT.GET.{}.probe",
    "$JS.API.CONSUMER.NAMES.{}",
    "$JS.API.CONSUMER.LIST.{}",
    "$JS.API.CONSUMER.CREATE.{}",
    "$JS.API.CONSUMER.CREATE.{}.probe",
    "$JS.API.CONSUMER.CREATE.{}.probe.probe",
    "$JS.API.CONSUMER.DURABLE.CREATE.{}.probe",
    "$JS.API.CONSUMER.INFO.{}.probe",
    "$JS.API.CONSUMER.DELETE.{}.probe",
    "$JS.API.CONSUMER.PAUSE.{}.probe",
    "$JS.API.CONSUMER.RESET.{}.probe",
    "$JS.API.CONSUMER.UNPIN.{}.probe",
    "$JS.API.CONSUMER.LEADER.STEPDOWN.{}.probe",
    "$JS.API.CONSUMER.MSG.NEXT.{}.probe",
    "$JS.ACK.{}.probe.1.1.1.1.0",
    "$JS.FC.{}.probe.1",
    "$JS.API.CONSUMER.CREATE.{}.event-reader",
    "$JS.API.CONSUMER.DELETE.{}.event-reader",
    "$JS.API.CONSUMER.MSG.NEXT.{}.event-reader",
    "$JS.ACK.{}.event-reader.1.1.1.1.0",
];

/// Every kind of subject, without wildcards.
fn literal_subjects() -> Vec<String> {
    let fixed = [
        "abx.v1.rpc.auth.probe",
        "abx.v1.rpc.auth.get-user",
        "abx.v1.rpc.scheduler.probe",
        "abx.v1.rpc.scheduler.delete-owned",
        "abx.v1.rpc.scheduler.record-activity",
        "abx.v1.rpc.exec.probe.probe",
        "abx.v1.rpc.webhooks.probe",
        "abx.v1.rpc.api-gateway.probe.probe",
        "abx.v1.cmd.env.probe.probe.probe",
        "abx.v1.evt.env.probe.probe",
        "abx.v1.evt.audit.head",
        "abx.v1.audit.api-gateway.exec",
        "abx.v1.audit.scheduler.create-environment",
        "abx.v1.audit.auth.create-user",
        "abx.v1.audit.exec-proxy.probe",
        "abx.v1.audit.exec",
        "abx.v1.dlq.cmd.probe",
        "abx.v1.dlq.audit.probe",
        "abx.v1.dlq.probe",
        "abx.v1.limit.probe.probe.1",
        "abx.v1.probe",
        "$KV.abx_routes.probe",
        "$O.abx_output.C.probe",
        "$O.abx_output.M.probe",
        "$SRV.PING",
        "$SYS.REQ.SERVER.PING",
        "$SYS.REQ.ACCOUNT.PING.CONNZ",
        "$SYS.ACCOUNT.$G.CONNECT",
        "$JS.EVENT.ADVISORY.API",
        "$JS.API.INFO",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.LIST",
        "$JS.API.ACCOUNT.PURGE.$G",
        "$JS.API.META.LEADER.STEPDOWN",
        "_INBOX.probe",
        "probe",
    ];
    let mut all: Vec<String> = fixed.map(str::to_owned).into();
    for user in USERS {
        all.push(format!("abx.v1.sess.{user}.probe.1"));
        all.push(format!("abx.v1.confirm.{user}"));
        all.push(format!("{}.probe.1", inbox_prefix(user)));
    }
    for stream in STREAMS {
        all.extend(STREAM_VERBS.iter().map(|verb| verb.replace("{}", stream)));
    }
    all
}

/// Subscriptions to the subjects of several services, and to those of each.
fn wildcards() -> Vec<String> {
    let fixed = [
        ">",
        "*.>",
        "abx.>",
        "abx.v1.>",
        "abx.v1.rpc.>",
        "abx.v1.rpc.auth.>",
        "abx.v1.rpc.scheduler.>",
        "abx.v1.rpc.exec.>",
        "abx.v1.rpc.webhooks.>",
        "abx.v1.rpc.api-gateway.>",
        "abx.v1.cmd.>",
        "abx.v1.evt.>",
        "abx.v1.sess.>",
        "_INBOX.>",
        "$JS.>",
        "$JS.API.>",
        "$JS.ACK.>",
        "$KV.>",
        "$O.>",
        "$SRV.>",
        "$SYS.>",
    ];
    let mut all: Vec<String> = fixed.map(str::to_owned).into();
    for user in USERS {
        all.push(format!("abx.v1.sess.{user}.>"));
        all.push(format!("{}.>", inbox_prefix(user)));
    }
    all
}

/// A connection as one user, and the errors that the server reports on it.
struct User {
    name: String,
    client: Client,
    errors: mpsc::UnboundedReceiver<String>,
}

impl User {
    async fn log_in(nats: &NatsEndpoint, name: &str) -> Self {
        let (sender, errors) = mpsc::unbounded_channel();
        let password = nats.passwords[name].clone();
        let client = ConnectOptions::with_user_and_password(name.to_owned(), password)
            .custom_inbox_prefix(inbox_prefix(name))
            .event_callback(move |event| {
                if let Event::ServerError(error) = event {
                    // After the test nobody receives.
                    let _ = sender.send(error.to_string());
                }
                async {}
            })
            .connect(&nats.url)
            .await
            .unwrap();
        Self {
            name: name.to_owned(),
            client,
            errors,
        }
    }

    /// Whether the server has refused a message since the last call.
    async fn was_refused(&mut self) -> bool {
        self.client.publish(END, "".into()).await.unwrap();
        let mut refused = false;
        loop {
            let error = within(DEADLINE, self.errors.recv()).await.unwrap();
            let is_violation = error.contains("Permissions Violation");
            assert!(is_violation, "{error}");
            if error.contains(END) {
                return refused;
            }
            refused = true;
        }
    }

    async fn may_publish(&mut self, subject: &str) -> bool {
        let subject = subject.to_owned();
        self.client.publish(subject, "".into()).await.unwrap();
        !self.was_refused().await
    }

    async fn may_subscribe(&mut self, subject: &str) -> bool {
        let subscriber = self.client.subscribe(subject.to_owned()).await.unwrap();
        let may = !self.was_refused().await;
        drop(subscriber);
        may
    }

    /// Whether a consumer of `stream` can deliver to a subject of auth.
    async fn may_deliver_from(&mut self, stream: &str) -> bool {
        let subject = format!("$JS.API.CONSUMER.CREATE.{stream}.{}", self.name);
        if !self.may_publish(&subject).await {
            return false;
        }
        let request = foreign_consumer(stream, &self.name, "abx.v1.rpc.auth.probe");
        let reply = within(DEADLINE, self.client.request(subject, request.into()));
        let reply: Value = serde_json::from_slice(&reply.await.unwrap().payload).unwrap();
        reply["error"].is_null()
    }
}

/// A request for a consumer that delivers the messages of `stream` to `subject`.
fn foreign_consumer(stream: &str, name: &str, subject: &str) -> String {
    let config = json!({
        "name": name, "deliver_subject": subject, "deliver_policy": "all", "ack_policy": "explicit",
    });
    json!({ "stream_name": stream, "config": config }).to_string()
}

fn heading(first: &str) -> String {
    let users = USERS.join(" | ");
    let line = "|---".repeat(USERS.len() + 1);
    format!("\n| {first} | {users} |\n{line}|\n")
}

fn row(first: &str, cells: &[&str]) -> String {
    format!("| `{first}` | {} |\n", cells.join(" | "))
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_match_the_table() {
    // A server of its own: the test also tries to delete and purge.
    let (_system, nats) = TestNats::own().await.unwrap();
    let mut users = Vec::new();
    for name in USERS {
        users.push(User::log_in(&nats, name).await);
    }
    let mut table = format!("{HEAD}{}", heading("subject"));
    for subject in literal_subjects() {
        let mut cells = Vec::new();
        for user in &mut users {
            let (publish, subscribe) = (
                user.may_publish(&subject).await,
                user.may_subscribe(&subject).await,
            );
            cells.push(match (publish, subscribe) {
                (true, true) => "PS",
                (true, false) => "P",
                (false, true) => "S",
                (false, false) => "-",
            });
        }
        table.push_str(&row(&subject, &cells));
    }
    for subject in wildcards() {
        let mut cells = Vec::new();
        for user in &mut users {
            let may = user.may_subscribe(&subject).await;
            cells.push(if may { "S" } else { "-" });
        }
        table.push_str(&row(&subject, &cells));
    }
    table.push_str(CONSUMERS);
    table.push_str(&heading("consumer of"));
    for stream in STREAMS {
        let mut cells = Vec::new();
        for user in &mut users {
            let may = user.may_deliver_from(stream).await;
            cells.push(if may { "yes" } else { "-" });
        }
        table.push_str(&row(stream, &cells));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bus/permissions.md");
    if std::env::var_os("AGENTBOX_WRITE").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    for (found, expected) in table.lines().zip(expected.lines()) {
        assert_eq!(found, expected);
    }
    assert_eq!(table, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn provisioner_creates_every_stream() {
    let (_system, nats) = TestNats::own().await.unwrap();
    let admin = connect_with_all_access(&nats).await;
    for stream in STREAMS {
        admin.jetstream().delete_stream(stream).await.unwrap();
    }
    let provisioner = connect(&nats, PROVISIONER).await;
    provisioner.provision().await.unwrap();
    provisioner.provision().await.unwrap();
    for service in SERVICES {
        let bus = connect(&nats, service).await;
        within(DEADLINE, bus.wait_for_streams(service))
            .await
            .unwrap();
    }
    for stream in STREAMS {
        admin.jetstream().get_stream(stream).await.unwrap();
    }
}
