//! `/environments/{id}/files`: contents, conditions, lists, tickets and events.

mod archives;
mod kinds;
mod rights;
mod transfers;
mod watching;

use reqwest::{Body, Method};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::support::answer::Answer;
use crate::support::boxes::{OwnedEnvironment, idle, small};
use crate::support::caller::{Caller, new_user, send};
use crate::support::sse::Events;
use crate::support::system::shared;

static MODEST: OnceCell<OwnedEnvironment> = OnceCell::const_new();

/// An environment shared by the tests below this module. It has less memory than their largest
/// transfers.
async fn modest() -> &'static OwnedEnvironment {
    MODEST
        .get_or_init(async || {
            let user = new_user().await;
            let mut body = small();
            body["resources"] = json!({"cpu": "1", "memory": "128Mi", "storage": "1Gi"});
            let id = user.caller.create_running(&body).await;
            OwnedEnvironment { user, id }
        })
        .await
}

/// The name of a directory that no other test uses.
fn directory() -> String {
    format!("/tmp/files-{:016x}", rand::random::<u64>())
}

fn files(owned: &OwnedEnvironment, rest: &str) -> String {
    format!("/environments/{}/files{rest}", owned.id)
}

fn content(owned: &OwnedEnvironment, path: &str) -> String {
    files(owned, &format!("/content?path={path}"))
}

/// The metadata of a path, of a link itself.
async fn metadata(owned: &OwnedEnvironment, path: &str) -> Value {
    let path = files(owned, &format!("?path={path}&depth=0"));
    owned.user.caller.get(&path).await.expect_status(200)
}

/// Runs a shell script, which must succeed, and returns its output.
async fn run(owned: &OwnedEnvironment, script: &str) -> String {
    let reply = owned.user.caller.sh(&owned.id, script).await;
    assert_eq!(reply["exit_code"], 0, "{script}: {reply}");
    reply["stdout"].as_str().unwrap().to_owned()
}

/// A request with headers.
async fn request(
    caller: &Caller,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> Answer {
    let mut request = caller.request(method, path).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(request).await
}

async fn put(caller: &Caller, path: &str, body: &str) -> Answer {
    request(caller, Method::PUT, path, &[], body.to_owned()).await
}

/// Asserts the status of an answer, and its error unless `error` is empty.
#[track_caller]
fn expect(answer: &Answer, status: u16, error: &str, what: &str) {
    assert_eq!(answer.status, status, "{what}: {}", answer.text);
    if !error.is_empty() {
        assert_eq!(answer.json()["error"], error, "{what}");
    }
}

#[tokio::test]
async fn uploaded_file_is_downloaded_whole_and_in_parts() {
    let owned = idle().await;
    let caller = &owned.user.caller;
    let path = content(owned, &format!("{}/a%20b.txt", directory()));
    let created = put(caller, &path, "0123456789").await;
    assert_eq!(created.status, 201, "{}", created.text);
    let answer = caller.get(&path).await;
    assert_eq!((answer.status, answer.text.as_str()), (200, "0123456789"));
    let etag = answer.header("etag");
    assert_eq!(etag, created.header("etag"));
    for (name, expected) in [
        ("content-length", "10"),
        ("content-type", "application/octet-stream"),
        ("accept-ranges", "bytes"),
        ("content-disposition", "attachment; filename=\"a b.txt\""),
    ] {
        assert_eq!(answer.header(name), expected);
    }
    let get =
        async |headers: &[(&str, &str)]| request(caller, Method::GET, &path, headers, "").await;
    let part = get(&[("range", "bytes=2-4"), ("if-range", etag)]).await;
    assert_eq!((part.status, part.text.as_str()), (206, "234"));
    assert_eq!(part.header("content-range"), "bytes 2-4/10");
    let beyond = get(&[("range", "bytes=10-")]).await;
    beyond.expect_error(416, "range_not_satisfiable");
    assert_eq!(beyond.header("content-range"), "bytes */10");
    for ignored in ["bytes=0-1,3-4", "lines=1-2"] {
        assert_eq!(get(&[("range", ignored)]).await.status, 200, "{ignored}");
    }
    assert_eq!(get(&[("if-none-match", etag)]).await.status, 304);
    let head = request(caller, Method::HEAD, &path, &[], "").await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
    assert_eq!(head.header("content-length"), "10");
    assert_eq!(head.header("etag"), etag);
}

#[tokio::test]
async fn upload_whose_condition_fails_leaves_the_file() {
    let owned = idle().await;
    let caller = &owned.user.caller;
    let path = content(owned, &format!("{}/file", directory()));
    let etag = put(caller, &path, "old").await.header("etag").to_owned();
    let upload =
        async |headers: &[(&str, &str)]| request(caller, Method::PUT, &path, headers, "new").await;
    upload(&[("if-none-match", "*")])
        .await
        .expect_error(412, "precondition_failed");
    upload(&[("if-match", "\"other\"")])
        .await
        .expect_error(412, "precondition_failed");
    let of_empty = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";
    upload(&[("content-digest", of_empty)])
        .await
        .expect_error(400, "digest_mismatch");
    upload(&[("content-digest", "md5=:AA==:")])
        .await
        .expect_error(400, "validation_failed");
    assert_eq!(caller.get(&path).await.text, "old");
    assert_eq!(upload(&[("if-match", &etag)]).await.status, 204);
    assert_eq!(caller.get(&path).await.text, "new");
}

#[tokio::test]
async fn directory_is_listed_in_pages_and_changed() {
    let owned = idle().await;
    let caller = &owned.user.caller;
    let directory = directory();
    let body = json!({"path": directory});
    let create = files(owned, "/directories");
    assert_eq!(caller.post(&create, &body).await.status, 201);
    assert_eq!(caller.post(&create, &body).await.status, 200);
    let script = format!("cd {directory} && touch a b \"$(printf 'c\\377')\" && ln -s a d");
    assert_eq!(caller.sh(&owned.id, &script).await["exit_code"], 0);
    let mut entries: Vec<Value> = Vec::new();
    let mut cursor = String::new();
    loop {
        let query = format!("?path={directory}&limit=3{cursor}");
        let page = caller.get(&files(owned, &query)).await.expect_status(200);
        assert_eq!(page["type"], "directory");
        entries.extend(page["entries"].as_array().unwrap().iter().cloned());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let field =
        |name: &str| -> Vec<Value> { entries.iter().map(|entry| entry[name].clone()).collect() };
    assert_eq!(field("name"), ["a", "b", "c\u{fffd}", "d"]);
    assert_eq!(field("type"), ["file", "file", "file", "symlink"]);
    assert_eq!(entries[2]["name_base64"], "Y/8=");
    assert_eq!(entries[3]["target"], "a");

    let moved = json!({"from": format!("{directory}/a"), "to": format!("{directory}/e")});
    let answer = caller.post(&files(owned, "/move"), &moved).await;
    answer.expect_status(204);
    let query = files(owned, &format!("?path={directory}/c%FF"));
    let patched = caller.patch(&query, &json!({"mode": "0600"})).await;
    assert_eq!(patched.expect_status(200)["mode"], "0600");
    caller.delete(&query).await.expect_status(204);
    caller.get(&query).await.expect_error(404, "file_not_found");
    let query = files(owned, &format!("?path={directory}"));
    caller.delete(&query).await.expect_error(409, "not_empty");
    let recursive = format!("{query}&recursive=true");
    caller.delete(&recursive).await.expect_status(204);
    let message = caller
        .get(&files(owned, "?path=relative"))
        .await
        .expect_error(400, "invalid_path");
    assert!(message.starts_with("path: "), "{message}");
}

#[tokio::test]
async fn ticket_downloads_its_path_once() {
    let owned = idle().await;
    let caller = &owned.user.caller;
    let directory = directory();
    for name in ["a", "b"] {
        let path = content(owned, &format!("{directory}/{name}"));
        assert_eq!(put(caller, &path, name).await.status, 201);
    }
    let body = json!({
        "environment_id": owned.id, "action": "file_download", "path": format!("{directory}/a")
    });
    let reply = caller.post("/auth/tickets", &body).await.expect_status(201);
    let ticket = reply["ticket"].as_str().unwrap();
    let browser = Caller::without_token_on(shared().await);
    let with_ticket = |name: &str| {
        let path = content(owned, &format!("{directory}/{name}"));
        format!("{path}&ticket={ticket}")
    };
    browser
        .get(&with_ticket("b"))
        .await
        .expect_error(401, "unauthorized");
    put(&browser, &with_ticket("a"), "new")
        .await
        .expect_error(401, "unauthorized");
    let answer = browser.get(&with_ticket("a")).await;
    assert_eq!((answer.status, answer.text.as_str()), (200, "a"));
    browser
        .get(&with_ticket("a"))
        .await
        .expect_error(401, "unauthorized");
}

#[tokio::test]
async fn follower_that_reconnects_is_told_of_missed_changes() {
    let owned = idle().await;
    let caller = &owned.user.caller;
    let directory = directory();
    let body = json!({"path": directory});
    let answer = caller.post(&files(owned, "/directories"), &body).await;
    answer.expect_status(201);
    let path = files(owned, &format!("/events?path={directory}"));
    let mut events = Events::open(caller, &path).await;
    let touch = format!("mkdir {directory}/a");
    assert_eq!(caller.sh(&owned.id, &touch).await["exit_code"], 0);
    let event = events.next().await.unwrap();
    assert_eq!(event.name, "created");
    assert_eq!(event.json()["path"], format!("{directory}/a"));
    let last = Some(event.number());
    drop(events);
    let mut events = Events::resume(caller, caller.next_gateway(), &path, last).await;
    assert_eq!(events.next().await.unwrap().name, "overflow");
}
