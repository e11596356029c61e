//! Isolation of tenants.

use reqwest::Method;
use serde_json::json;

use crate::support::answer::Answer;
use crate::support::boxes::{idle, small};
use crate::support::caller::{Caller, admin, new_user, send};

/// The answers of every route of an environment.
async fn call_every_route(caller: &Caller, id: &str) -> Vec<Answer> {
    let path = format!("/environments/{id}");
    let mut answers = Vec::new();
    for (method, path, body) in [
        (Method::GET, path.clone(), None),
        (Method::PATCH, path.clone(), Some(json!({"name": "mine"}))),
        (Method::DELETE, path.clone(), None),
        (
            Method::POST,
            format!("{path}/exec"),
            Some(json!({"command": ["true"]})),
        ),
        // Authorization comes before validation.
        (
            Method::POST,
            format!("{path}/exec"),
            Some(json!({"nonsense": 1})),
        ),
        (Method::GET, format!("{path}/logs"), None),
        (Method::GET, format!("{path}/logs?follow=true"), None),
        (Method::GET, format!("{path}/events"), None),
        (Method::GET, format!("{path}/events?follow=true"), None),
        (Method::GET, format!("{path}/attach"), None),
        (Method::GET, format!("{path}/files?path=/"), None),
        (Method::DELETE, format!("{path}/files?path=/a"), None),
        (Method::GET, format!("{path}/files/content?path=/a"), None),
        (Method::PUT, format!("{path}/files/content?path=/a"), None),
        (Method::GET, format!("{path}/files/events?path=/"), None),
        (Method::GET, format!("{path}/ports"), None),
        (Method::GET, format!("{path}/ports/8080"), None),
        (Method::PUT, format!("{path}/ports/8080/a"), None),
        (Method::GET, format!("{path}/previews"), None),
        (
            Method::POST,
            format!("{path}/previews"),
            Some(json!({"port": 8080})),
        ),
        (
            Method::DELETE,
            format!("{path}/previews/preview-0000000000000000"),
            None,
        ),
        (
            Method::POST,
            "/auth/tickets".to_owned(),
            Some(json!({"environment_id": id, "action": "logs"})),
        ),
        (
            Method::POST,
            "/api-keys".to_owned(),
            Some(json!({"permissions": [{"environment_id": id, "permission": "read"}]})),
        ),
    ] {
        let mut request = caller.request(method, &path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        answers.push(send(request).await);
    }
    answers
}

#[tokio::test]
async fn foreign_environment_is_answered_like_a_missing_one() {
    let idle = idle().await;
    let stranger = new_user().await;
    let foreign = call_every_route(&stranger.caller, &idle.id).await;
    let missing = call_every_route(&stranger.caller, "env-0000000000000000").await;
    for (foreign, missing) in foreign.iter().zip(&missing) {
        foreign.expect_error(404, "not_found");
        assert_eq!(foreign.text, missing.text);
        let names = |answer: &Answer| -> Vec<String> {
            answer.headers.keys().map(ToString::to_string).collect()
        };
        assert_eq!(names(foreign), names(missing));
    }
    // The environment is unchanged.
    let body = idle
        .user
        .caller
        .get(&format!("/environments/{}", idle.id))
        .await
        .expect_status(200);
    assert_eq!(
        (&body["name"], &body["status"]),
        (&json!("box"), &json!("running"))
    );
}

#[tokio::test]
async fn list_shows_own_environments_and_all_to_administrators() {
    let (one, two) = (new_user().await, new_user().await);
    let mut body = small();
    let mark = format!("m{:016x}", rand::random::<u64>());
    body["labels"] = json!({"mark": mark});
    let mut made = [
        one.caller.create(&body).await,
        two.caller.create(&body).await,
    ];
    let seen = async |caller: &Caller| {
        let path = format!("/environments?label=mark%3D{mark}");
        let list = caller.get(&path).await.expect_status(200);
        let mut ids: Vec<String> = list["environments"]
            .as_array()
            .unwrap()
            .iter()
            .map(|environment| environment["id"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(list["total"], ids.len());
        ids.sort();
        ids
    };
    assert_eq!(seen(&one.caller).await, [made[0].clone()]);
    assert_eq!(seen(&two.caller).await, [made[1].clone()]);
    made.sort();
    assert_eq!(seen(admin().await).await, made);
}

#[tokio::test]
async fn administrator_may_use_every_environment() {
    let user = new_user().await;
    let id = user.caller.create_running(&small()).await;
    let admin = admin().await;
    assert_eq!(admin.sh(&id, "echo hi").await["stdout"], "hi\n");
    let path = format!("/environments/{id}");
    let patched = admin
        .patch(&path, &json!({"name": "seen"}))
        .await
        .expect_status(200);
    assert_eq!(patched["owner"], user.id, "the owner is unchanged");
    admin.get(&format!("{path}/logs")).await.expect_status(200);
    admin.delete(&path).await.expect_status(204);
    user.caller.wait_until_ended(&id).await;
}
