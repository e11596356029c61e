//! `GET /environments`, and environments that do not exist.

use reqwest::Method;
use serde_json::json;

use super::ids;
use crate::support::boxes::{script, small};
use crate::support::caller::{new_user, send};

#[tokio::test]
async fn list_pages_newest_first_filters_by_label_and_omits_env() {
    let user = new_user().await;
    let mut made = Vec::new();
    for (name, team) in [("a", "red"), ("b", "blue"), ("c", "red")] {
        let mut body = small();
        body["name"] = json!(name);
        body["labels"] = json!({"team": team, "tier": name});
        body["env"] = json!({"SECRET": "x"});
        made.push(user.caller.create(&body).await);
    }
    made.reverse();
    let list = user.caller.get("/environments").await.expect_status(200);
    assert_eq!(ids(&list), made);
    assert_eq!(
        (&list["total"], &list["limit"], &list["offset"]),
        (&json!(3), &json!(100), &json!(0))
    );
    assert!(list["environments"][0].get("env").is_none());
    assert_eq!(
        list["environments"][0]["labels"],
        json!({"team": "red", "tier": "c"})
    );

    let page = user
        .caller
        .get("/environments?limit=1&offset=1")
        .await
        .expect_status(200);
    assert_eq!(ids(&page), made[1..2]);
    assert_eq!(page["total"], 3, "total ignores paging");
    let beyond = user
        .caller
        .get("/environments?offset=9")
        .await
        .expect_status(200);
    assert!(ids(&beyond).is_empty());
    assert_eq!(beyond["total"], 3);

    for (selector, expected) in [
        ("team=red", vec![&made[0], &made[2]]),
        ("team==blue", vec![&made[1]]),
        ("team!=red", vec![&made[1]]),
        ("team=red,tier=a", vec![&made[2]]),
        ("tier in (a,b)", vec![&made[1], &made[2]]),
        ("tier notin (a,b)", vec![&made[0]]),
        ("team", vec![&made[0], &made[1], &made[2]]),
        ("!team", vec![]),
    ] {
        let request = user
            .caller
            .request(Method::GET, "/environments")
            .query(&[("label", selector)]);
        let list = send(request).await.expect_status(200);
        assert_eq!(
            ids(&list).iter().collect::<Vec<_>>(),
            expected,
            "{selector}"
        );
        assert_eq!(list["total"], expected.len(), "{selector}");
    }
    for query in [
        "limit=0",
        "limit=1001",
        "limit=ten",
        "offset=-1",
        "status=lost",
        "label=%3D%3D",
        "label=a%20in",
        "lable=a",
    ] {
        let answer = user.caller.get(&format!("/environments?{query}")).await;
        answer.expect_error(400, "validation_failed");
    }
    user.caller
        .get("/environments?limit=1000")
        .await
        .expect_status(200);
}

#[tokio::test]
async fn list_is_filtered_by_status() {
    let user = new_user().await;
    let running = user.caller.create_running(&small()).await;
    let done = user.caller.create(&script("exit 0")).await;
    let failed = user.caller.create(&script("exit 3")).await;
    user.caller.wait_for_status(&done, "terminated").await;
    user.caller.wait_for_status(&failed, "failed").await;
    for (status, expected) in [
        ("running", vec![&running]),
        ("terminated", vec![&done]),
        ("failed", vec![&failed]),
        ("pending", vec![]),
        ("terminating", vec![]),
    ] {
        let path = format!("/environments?status={status}");
        let list = user.caller.get(&path).await.expect_status(200);
        assert_eq!(ids(&list).iter().collect::<Vec<_>>(), expected, "{status}");
    }
    // A list shows these fields as a single environment does.
    let list = user.caller.get("/environments?status=running").await;
    let shown = &list.expect_status(200)["environments"][0];
    let alone = user.caller.get(&format!("/environments/{running}")).await;
    let alone = alone.expect_status(200);
    for field in [
        "id",
        "name",
        "status",
        "image",
        "created_at",
        "started_at",
        "resources",
        "endpoint",
        "namespace",
    ] {
        assert!(!shown[field].is_null(), "{field}: {shown}");
        assert_eq!(shown[field], alone[field], "{field}");
    }
}

#[tokio::test]
async fn missing_environment_returns_404_on_every_route() {
    let user = new_user().await;
    for id in [
        "env-0000000000000000",
        "nonsense",
        "user-0000000000000000",
        "a%00b",
    ] {
        let path = format!("/environments/{id}");
        user.caller.get(&path).await.expect_error(404, "not_found");
        user.caller
            .delete(&path)
            .await
            .expect_error(404, "not_found");
        user.caller
            .patch(&path, &json!({"name": "a"}))
            .await
            .expect_error(404, "not_found");
        user.caller
            .get(&format!("{path}/logs"))
            .await
            .expect_error(404, "not_found");
        user.caller
            .get(&format!("{path}/logs?follow=true"))
            .await
            .expect_error(404, "not_found");
        user.caller
            .get(&format!("{path}/events"))
            .await
            .expect_error(404, "not_found");
        user.caller
            .get(&format!("{path}/attach"))
            .await
            .expect_error(404, "not_found");
        let exec = json!({"command": ["true"]});
        user.caller
            .post(&format!("{path}/exec"), &exec)
            .await
            .expect_error(404, "not_found");
    }
}
