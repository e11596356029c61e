//! The list of executions, and single ones.

use serde_json::{Value, json};

use super::mark;
use crate::support::boxes::{idle, small};
use crate::support::caller::new_user;
use crate::support::eventually;

fn names(list: &Value) -> Vec<&str> {
    let executions = list["executions"].as_array().unwrap().iter();
    executions
        .map(|one| one["name"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn executions_are_listed_newest_first_by_status_label_and_page() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let mark = mark();
    for n in 0..5 {
        let command = match n % 2 {
            0 => json!(["sleep", "60"]),
            _ => json!(["true"]),
        };
        let step = if n < 3 { "early" } else { "late" };
        let body = json!({
            "command": command,
            "name": format!("n{n}"),
            "labels": {"mark": mark, "step": step}
        });
        let execution = caller.start(&idle.id, &body).await;
        if n % 2 == 1 {
            execution.ended().await;
        }
    }
    let path = format!("/environments/{}/executions?label=mark%3D{mark}", idle.id);
    for (query, expected, total) in [
        ("", &["n4", "n3", "n2", "n1", "n0"][..], 5),
        ("&limit=2", &["n4", "n3"], 5),
        ("&limit=2&offset=3", &["n1", "n0"], 5),
        ("&offset=5", &[], 5),
        ("&status=running", &["n4", "n2", "n0"], 3),
        ("&status=running&offset=1&limit=1", &["n2"], 3),
        ("&status=exited", &["n3", "n1"], 2),
        ("&status=lost", &[], 0),
        ("%2Cstep%3Dearly", &["n2", "n1", "n0"], 3),
        ("%2Cstep%21%3Dearly&status=exited", &["n3"], 1),
    ] {
        let path = format!("{path}{query}");
        for gateway in 0..caller.gateways() {
            let list = caller.get_on(gateway, &path).await.expect_status(200);
            assert_eq!(names(&list), expected, "{query}");
            assert_eq!(list["total"], total, "{query}");
        }
    }
    let list = caller.get(&path).await.expect_status(200);
    assert_eq!((&list["limit"], &list["offset"]), (&json!(100), &json!(0)));
    let one = &list["executions"][1];
    let path = format!("/environments/{}/executions", idle.id);
    let same = format!("{path}/{}", one["id"].as_str().unwrap());
    assert_eq!(caller.get(&same).await.expect_status(200), *one);
    for query in [
        "status=done",
        "limit=0",
        "limit=1001",
        "offset=-1",
        "label=%3D%3D",
        "order=name",
    ] {
        let answer = caller.get(&format!("{path}?{query}")).await;
        let message = answer.expect_error(400, "validation_failed");
        let field = query.split('=').next().unwrap();
        assert!(message.starts_with(field), "{query}: {message}");
    }
    let running = list["executions"].as_array().unwrap().iter();
    for one in running.filter(|one| one["status"] == "running") {
        let path = format!("{path}/{}", one["id"].as_str().unwrap());
        caller.delete(&path).await.expect_status(204);
    }
}

#[tokio::test]
async fn unknown_execution_returns_404_on_every_route() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    for id in ["exec-0000000000000000", "no-id"] {
        let path = format!("/environments/{}/executions/{id}", idle.id);
        let size = json!({"cols": 80, "rows": 24});
        for answer in [
            caller.get(&path).await,
            caller.get(&format!("{path}?wait=5")).await,
            caller.get(&format!("{path}/output")).await,
            caller.get(&format!("{path}/output?follow=true")).await,
            caller.post(&format!("{path}/stdin"), &json!("x")).await,
            caller
                .post(&format!("{path}/signal"), &json!({"signal": "TERM"}))
                .await,
            caller.post(&format!("{path}/resize"), &size).await,
            caller.delete(&path).await,
        ] {
            let message = answer.expect_error(404, "not_found");
            assert_eq!(message, "execution not found", "{id}");
        }
    }
}

#[tokio::test]
async fn request_that_waits_counts_once() {
    let user = new_user().await;
    let caller = &user.caller;
    let id = caller.create_running(&small()).await;
    let sleeping = caller.start_sh(&id, "sleep 600").await;
    let remaining = async |query: &str| {
        let answer = caller.get(&format!("{}{query}", sleeping.path)).await;
        let number = |name: &str| answer.header(name).parse::<u64>().unwrap();
        (number("x-ratelimit-reset"), number("x-ratelimit-remaining"))
    };
    eventually("a count in one minute", async || {
        let first = remaining("").await;
        let waited = remaining("?wait=2").await;
        let last = remaining("").await;
        let is_one_minute = first.0 == last.0;
        is_one_minute.then(|| assert_eq!((waited.1, last.1), (first.1 - 1, first.1 - 2)))
    })
    .await;
}
