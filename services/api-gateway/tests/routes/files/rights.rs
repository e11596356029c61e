//! Who may do what with files: credentials of the API, and users of the environment.

use reqwest::Method;
use serde_json::{Value, json};

use super::{content, directory, expect, files, metadata, modest, put, request, run};
use crate::support::answer::Answer;
use crate::support::boxes::{OwnedEnvironment, small};
use crate::support::caller::{Caller, new_user, send};

/// Calls each route of files of one path; those that `read` permits are first.
async fn call_every_route(caller: &Caller, id: &str, path: &str) -> Vec<Answer> {
    let one = json!({"path": path});
    let two = json!({"from": path, "to": format!("{path}-2"), "overwrite": true});
    let mode = json!({"mode": "0600"});
    let at = format!("/environments/{id}/files");
    let mut answers = Vec::new();
    for (method, rest, body) in [
        (Method::GET, format!("?path={path}"), None),
        (Method::GET, format!("?path={path}&depth=0"), None),
        (Method::GET, format!("/content?path={path}"), None),
        (Method::HEAD, format!("/content?path={path}"), None),
        (Method::PUT, format!("/content?path={path}"), Some(&one)),
        (Method::POST, "/directories".to_owned(), Some(&one)),
        (Method::POST, "/move".to_owned(), Some(&two)),
        (Method::POST, "/copy".to_owned(), Some(&two)),
        (Method::PATCH, format!("?path={path}"), Some(&mode)),
        (Method::GET, format!("/events?path={path}"), None),
        (Method::DELETE, format!("?path={path}"), None),
    ] {
        let is_head = method == Method::HEAD;
        let mut request = caller.request(method, &format!("{at}{rest}"));
        if let Some(body) = body {
            request = request.json(body);
        }
        match is_head {
            // An error of HEAD has no body to check.
            true => {
                let response = request.send().await.unwrap();
                answers.push(Answer {
                    status: response.status().as_u16(),
                    headers: response.headers().clone(),
                    text: String::new(),
                });
            }
            false => answers.push(send(request).await),
        }
    }
    answers
}

fn expect_all(answers: &[Answer], status: u16, error: &str) {
    for (number, answer) in answers.iter().enumerate() {
        let error = if answer.text.is_empty() { "" } else { error };
        expect(answer, status, error, &format!("route {number}"));
    }
}

#[tokio::test]
async fn key_reads_metadata_and_needs_write_for_all_else() {
    let owned = modest().await;
    let path = format!("{}-file", directory());
    run(owned, &format!("echo a > {path}")).await;
    let other = owned.user.caller.create(&small()).await;
    let none = owned.user.key_for(&other, "admin").await;
    expect_all(
        &call_every_route(&none, &owned.id, &path).await,
        404,
        "not_found",
    );
    let read = owned.user.key_for(&owned.id, "read").await;
    let answers = call_every_route(&read, &owned.id, &path).await;
    expect_all(&answers[..2], 200, "");
    expect_all(&answers[2..], 403, "forbidden");
    assert_eq!(run(owned, &format!("cat {path}")).await, "a\n");
    let write = owned.user.key_for(&owned.id, "write").await;
    let content = content(owned, &path);
    assert_eq!(put(&write, &content, "b").await.status, 204);
    assert_eq!(write.get(&content).await.text, "b");
    let query = files(owned, &format!("?path={path}"));
    write.delete(&query).await.expect_status(204);
    owned
        .user
        .caller
        .delete(&format!("/environments/{other}"))
        .await
        .expect_status(204);
}

#[tokio::test]
async fn every_route_of_an_ended_environment_answers_409() {
    let user = new_user().await;
    let id = user.caller.create_running(&small()).await;
    let environment = format!("/environments/{id}");
    user.caller.delete(&environment).await.expect_status(204);
    user.caller.wait_until_ended(&id).await;
    let answers = call_every_route(&user.caller, &id, "/tmp/file").await;
    expect_all(&answers, 409, "environment_not_running");
}

#[tokio::test]
async fn ticket_uploads_its_path_once() {
    let owned = modest().await;
    let caller = &owned.user.caller;
    let root = directory();
    let ticket = async |action: &str| {
        let body = json!({
            "environment_id": owned.id, "action": action, "path": format!("{root}/a")
        });
        let reply = caller.post("/auth/tickets", &body).await.expect_status(201);
        reply["ticket"].as_str().unwrap().to_owned()
    };
    let browser = caller.at_new_address();
    let at = |name: &str, ticket: &str| {
        let path = content(owned, &format!("{root}/{name}"));
        format!("{path}&ticket={ticket}")
    };
    let download = ticket("file_download").await;
    let upload = ticket("file_upload").await;
    for path in [at("a", &download), at("b", &upload)] {
        let refused = put(&browser, &path, "x").await;
        refused.expect_error(401, "unauthorized");
    }
    assert_eq!(put(&browser, &at("a", &upload), "x").await.status, 201);
    let again = put(&browser, &at("a", &upload), "y").await;
    again.expect_error(401, "unauthorized");
    assert_eq!(run(owned, &format!("cat {root}/a")).await, "x");
    // A ticket names its path.
    let body = json!({"environment_id": owned.id, "action": "file_upload"});
    let answer = caller.post("/auth/tickets", &body).await;
    answer.expect_error(400, "validation_failed");
}

#[tokio::test]
async fn upload_of_another_user_has_the_rights_of_that_user() {
    let owned = modest().await;
    let caller = &owned.user.caller;
    let root = directory();
    run(
        owned,
        &format!("mkdir -p {root}/open && chmod 777 {root}/open"),
    )
    .await;
    let of_root = content(owned, &format!("{root}/file"));
    for (user, status, error) in [
        ("1000", 403, "permission_denied"),
        ("no-such-user", 400, "user_not_found"),
        ("1000:no-such-group", 400, "user_not_found"),
        ("", 400, "validation_failed"),
        ("0", 201, ""),
    ] {
        let answer = put(caller, &format!("{of_root}&user={user}"), "x").await;
        expect(&answer, status, error, user);
    }
    let path = format!("{root}/open/sub/file");
    let upload = format!("{}&user=1000:1001&mode=0600", content(owned, &path));
    expect(&put(caller, &upload, "x").await, 201, "", "as user 1000");
    for path in [path, format!("{root}/open/sub")] {
        let found = metadata(owned, &path).await;
        assert_eq!((&found["uid"], &found["gid"]), (&json!(1000), &json!(1001)));
    }
    let body = json!({"path": format!("{root}/other"), "user": "1000"});
    let answer = caller.post(&files(owned, "/directories"), &body).await;
    answer.expect_error(403, "permission_denied");
}

/// A box whose root file system is read-only, and whose user is not root.
async fn restricted() -> OwnedEnvironment {
    let user = new_user().await;
    let mut body = small();
    body["isolation"] = json!({"security_context": {
        "run_as_user": 1000,
        "run_as_group": 1000,
        "run_as_non_root": true,
        "read_only_root_filesystem": true,
    }});
    let id = user.caller.create_running(&body).await;
    OwnedEnvironment { user, id }
}

#[tokio::test]
async fn restricted_environment_refuses_other_users_and_writes_to_its_root() {
    let owned = restricted().await;
    let caller = &owned.user.caller;
    let free = content(&owned, "/dev/shm/file");
    for (user, status, error) in [
        ("0", 400, "user_not_allowed"),
        ("1001", 400, "user_not_allowed"),
        ("1000:1000", 201, ""),
    ] {
        let answer = put(caller, &format!("{free}&user={user}"), "x").await;
        expect(&answer, status, error, user);
    }
    assert_eq!(metadata(&owned, "/dev/shm/file").await["uid"], 1000);
    let directory = json!({"path": "/dev/shm/directory", "user": "0"});
    let answer = caller
        .post(&files(&owned, "/directories"), &directory)
        .await;
    answer.expect_error(400, "user_not_allowed");

    let new = json!({"path": "/new"});
    let moved = json!({"from": "/etc", "to": "/new"});
    let copied = json!({"from": "/dev/shm/file", "to": "/new"});
    let mode = json!({"mode": "0777"});
    for (method, rest, body) in [
        (Method::POST, "/directories", &new),
        (Method::POST, "/move", &moved),
        (Method::POST, "/copy", &copied),
        (Method::PATCH, "?path=/etc", &mode),
        (Method::DELETE, "?path=/etc", &Value::Null),
    ] {
        let what = format!("{method} {rest}");
        let mut request = caller.request(method, &files(&owned, rest));
        if !body.is_null() {
            request = request.json(body);
        }
        expect(&send(request).await, 403, "read_only_filesystem", &what);
    }
    for rest in ["", "&atomic=false"] {
        let path = format!("{}{rest}", content(&owned, "/new"));
        let answer = request(caller, Method::PUT, &path, &[], "x").await;
        answer.expect_error(403, "read_only_filesystem");
    }
    caller
        .delete(&format!("/environments/{}", owned.id))
        .await
        .expect_status(204);
}
