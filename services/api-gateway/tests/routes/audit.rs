//! `/audit`, and the entries of requests.

use agentbox_bus::{Bus, BusConfig};
use agentbox_contracts::ids::InstanceId;
use agentbox_contracts::permissions::PROVISIONER;
use agentbox_contracts::subjects::AUDIT_STREAM;
use agentbox_testing::System;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::answer::{Answer, header};
use crate::support::boxes::{script, small};
use crate::support::caller::{Caller, User, admin, admin_of, new_user};
use crate::support::eventually;
use crate::support::site::Site;
use crate::support::socket::Socket;
use crate::support::system::{options, unlimited, with_default_limits};

/// The entry of the request with this answer, as `reader` sees it.
async fn entry_of(reader: &Caller, answer: &Answer) -> Value {
    entry_of_trace(reader, answer.header("x-trace-id")).await
}

/// The entry of the request with this trace id, as `reader` sees it.
async fn entry_of_trace(reader: &Caller, trace_id: &str) -> Value {
    eventually("the entry of a request", async || {
        let list = reader.get("/audit?limit=1000").await.expect_status(200);
        let entries = list["entries"].as_array().unwrap();
        let mut of_request = entries.iter().filter(|e| e["trace_id"] == trace_id);
        let entry = of_request.next().cloned();
        assert_eq!(of_request.next(), None, "one entry for a request");
        entry
    })
    .await
}

/// Asserts that the user's own trail has this entry of a request.
async fn expect_entry(user: &User, answer: &Answer, action: &str, target: &str, outcome: &str) {
    let entry = entry_of(&user.caller, answer).await;
    for (field, value) in [
        ("user", user.id.as_str()),
        ("address", user.caller.address.as_str()),
        ("action", action),
        ("target", target),
        ("outcome", outcome),
    ] {
        assert_eq!(entry[field], value, "{field}: {entry}");
    }
    assert_eq!(entry["arguments"], Value::Null, "{entry}");
    assert_eq!(entry["hash"].as_str().unwrap().len(), 64, "{entry}");
}

#[tokio::test]
async fn every_change_and_every_access_to_a_box_has_one_entry() {
    let user = new_user().await;
    let caller = &user.caller;
    let created = caller
        .post("/environments", &script("echo hi; sleep 600"))
        .await;
    let id = created.json()["id"].as_str().unwrap().to_owned();
    expect_entry(&user, &created, "create-environment", &id, "ok").await;
    caller.wait_for_status(&id, "running").await;

    let path = format!("/environments/{id}");
    let patched = caller.patch(&path, &json!({"name": "other"})).await;
    expect_entry(&user, &patched, "patch-environment", &id, "ok").await;
    let command = json!({"command": ["true"]});
    let ran = caller.post(&format!("{path}/exec"), &command).await;
    expect_entry(&user, &ran, "exec", &id, "accepted").await;
    let read = caller.get(&format!("{path}/logs")).await;
    expect_entry(&user, &read, "read-logs", &id, "accepted").await;
    let content = format!("{path}/files/content?path=/tmp/file");
    let uploaded = caller.put(&content, &json!({})).await;
    expect_entry(&user, &uploaded, "upload-file", &id, "accepted").await;
    let downloaded = caller.get(&content).await;
    expect_entry(&user, &downloaded, "download-file", &id, "accepted").await;
    let deleted = format!("{path}/files?path=/tmp/file");
    let deleted = caller.delete(&deleted).await;
    expect_entry(&user, &deleted, "change-files", &id, "accepted").await;
    let ticket = json!({"environment_id": id, "action": "attach"});
    let ticket = caller.post("/auth/tickets", &ticket).await;
    expect_entry(&user, &ticket, "issue-ticket", &id, "ok").await;
    let key = caller.post("/api-keys", &json!({})).await;
    let key_id = key.json()["id"].as_str().unwrap().to_owned();
    expect_entry(&user, &key, "create-key", &key_id, "ok").await;
    let deleted = caller.delete(&path).await;
    expect_entry(&user, &deleted, "delete-environment", &id, "ok").await;
}

#[tokio::test]
async fn terminal_is_recorded_under_the_key_of_its_ticket() {
    let user = new_user().await;
    let id = user.caller.create_running(&small()).await;
    let (key, by_key) = user.key(json!({})).await;
    let ticket = json!({"environment_id": id, "action": "attach"});
    let ticket = by_key
        .post("/auth/tickets", &ticket)
        .await
        .expect_status(201);
    let query = format!("ticket={}", ticket["ticket"].as_str().unwrap());
    let mut socket = Socket::open(&user.caller.without_token(), &id, &query).await;
    socket.ready().await;
    let list = eventually("the entry of the terminal", async || {
        let list = user.caller.get("/audit?action=attach").await;
        let list = list.expect_status(200);
        (list["total"] == 1).then_some(list)
    })
    .await;
    let entry = &list["entries"][0];
    assert_eq!(entry["target"], id, "{entry}");
    assert_eq!(entry["user"], user.id, "{entry}");
    assert_eq!(entry["key"], key, "{entry}");
}

#[tokio::test]
async fn visitor_of_a_public_preview_has_one_entry_for_many_requests() {
    const VISITORS: [&str; 2] = ["192.0.2.1", "192.0.2.2"];
    let site = Site::start(with_default_limits().await).await;
    let caller = &site.user.caller;
    let preview = site.preview(true).await;
    let url = format!("http://{}/headers", caller.host(0));
    for address in VISITORS.repeat(3) {
        let visit = reqwest::Client::new()
            .get(&url)
            .header("host", preview.host())
            .header("x-forwarded-for", address)
            // Any token: a browser of another machine would need a domain.
            .header("x-agentbox-preview-token", "none");
        assert_eq!(visit.send().await.unwrap().status(), 200);
    }
    // The entry of this request is stored after those of the visits.
    let last = site.request(Method::GET, "headers").send().await.unwrap();
    entry_of_trace(caller, header(last.headers(), "x-trace-id").unwrap()).await;
    let path = format!("/audit?action=use-port&target={}&limit=1000", site.id);
    let counts = eventually("the entries of both visitors", async || {
        let list = caller.get(&path).await.expect_status(200);
        let entries = list["entries"].as_array().unwrap();
        let count = |address: &str| entries.iter().filter(|e| e["address"] == address).count();
        let counts = VISITORS.map(count);
        counts.iter().all(|count| *count > 0).then_some(counts)
    })
    .await;
    assert_eq!(counts, [1, 1]);
}

#[tokio::test]
async fn access_of_an_administrator_to_another_users_box_is_recorded() {
    let user = new_user().await;
    let id = user.caller.create_running(&small()).await;
    let admin = admin().await;
    let command = json!({"command": ["true"]});
    admin
        .post(&format!("/environments/{id}/exec"), &command)
        .await
        .expect_status(200);
    let logs = admin.get(&format!("/environments/{id}/logs")).await;
    logs.expect_status(200);
    let mut socket = Socket::open(admin, &id, "tty=false&command=true").await;
    socket.ready().await;
    for action in ["exec", "read-logs", "attach"] {
        let path = format!("/audit?action={action}&target={id}");
        let list = eventually("the entry of the administrator", async || {
            let list = admin.get(&path).await.expect_status(200);
            (list["total"] == 1).then_some(list)
        })
        .await;
        assert_ne!(list["entries"][0]["user"], user.id, "{list}");
        // A user sees the own actions only.
        let own = user.caller.get(&path).await.expect_status(200);
        assert_eq!(own["total"], 0, "{own}");
    }
}

#[tokio::test]
async fn access_to_a_box_does_not_begin_without_its_entry() {
    let system = System::start(unlimited(options())).await.unwrap();
    let admin = admin_of(&system).await;
    let id = admin.create_running(&small()).await;
    let nats = system.nats.as_ref().unwrap();
    let (user, password) = nats.all_access();
    let bus = Bus::connect(BusConfig {
        url: nats.url.clone(),
        tls_ca: nats.tls_ca.clone(),
        user: user.to_owned(),
        password: password.to_owned(),
        service: PROVISIONER,
        instance: InstanceId::random(),
    })
    .await
    .unwrap();
    bus.jetstream().delete_stream(AUDIT_STREAM).await.unwrap();

    let path = format!("/environments/{id}");
    let command = json!({"command": ["touch", "/tmp/exec"]});
    let exec = admin.post(&format!("{path}/exec"), &command).await;
    let logs = admin.get(&format!("{path}/logs")).await;
    for refused in [exec, logs] {
        let message = refused.expect_error(503, "unavailable");
        assert!(message.starts_with("the audit trail"), "{message}");
    }
    let query = "tty=false&command=touch&command=/tmp/attach";
    let attach = Socket::open_on(&admin, 0, &id, query).await.err();
    let (status, body) = attach.expect("a refused handshake");
    assert_eq!((status, &body["error"]), (503, &json!("unavailable")));

    bus.provision().await.unwrap();
    let found = admin.sh(&id, "ls /tmp/exec /tmp/attach 2> /dev/null").await;
    assert_eq!(found["stdout"], "", "{found}");
    system.stop().await;
}

#[tokio::test]
async fn filters_are_checked_and_other_users_entries_are_forbidden() {
    let (user, other) = (new_user().await, new_user().await);
    let path = format!("/audit?user={}", other.id);
    user.caller.get(&path).await.expect_error(403, "forbidden");
    let login = eventually("the login of the user", async || {
        let path = format!("/audit?user={}&action=login", other.id);
        let list = admin().await.get(&path).await.expect_status(200);
        list["entries"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!(login["user"], other.id);
    let later = "/audit?since=2100-01-01T00:00:00Z";
    let later = user.caller.get(later).await.expect_status(200);
    assert_eq!(
        (&later["total"], &later["entries"]),
        (&json!(0), &json!([]))
    );
    for query in [
        "user=x",
        "action=dance",
        "target=",
        "target=a%20b",
        "since=now",
        "until=x",
    ] {
        let refused = user.caller.get(&format!("/audit?{query}")).await;
        let message = refused.expect_error(400, "validation_failed");
        let named = query.split('=').next().unwrap();
        assert!(message.starts_with(named), "{query}: {message}");
    }
}

#[tokio::test]
async fn arguments_are_recorded_if_the_operator_says_so() {
    let options = options().env("api-gateway", "AGENTBOX_AUDIT_ARGUMENTS", "true");
    let system = System::start(options).await.unwrap();
    let admin = admin_of(&system).await;
    let id = admin.create_running(&small()).await;
    let path = format!("/environments/{id}/exec");
    let body = json!({"command": ["echo", "hello"]});
    let ran = admin.request(Method::POST, &path).json(&body);
    let ran = crate::support::caller::send_with_retry(ran).await;
    let entry = entry_of(&admin, &ran).await;
    assert_eq!(entry["arguments"], body["command"], "{entry}");
    system.stop().await;
}
