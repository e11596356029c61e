//! `/pools`: the warm pools. The pools here have no boxes, and an image that no other test uses; those of
//! [`claims`] have boxes.

mod claims;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::caller::{Caller, admin, new_user, send};
use crate::support::eventually;

fn definition(image: &str) -> Value {
    json!({
        "image": image,
        "resources": {"cpu": "0.1", "memory": "0.0625Gi", "storage": "64Mi"},
        "min_ready": 0, "max_ready": 0,
    })
}

/// Defines a new pool. Returns its name and the answer. A request that was not served may have defined its
/// pool, so the next one has another name.
async fn define(admin: &Caller, wanted: &Value) -> (String, Value) {
    eventually("a pool is defined", async || {
        let name = format!("route-{:08x}", rand::random::<u32>());
        let request = admin.request(Method::PUT, &format!("/pools/{name}"));
        let answer = send(request.json(wanted)).await;
        let is_served = !matches!(answer.status, 503 | 504);
        is_served.then(|| (name, answer.expect_status(201)))
    })
    .await
}

#[tokio::test]
async fn pool_is_defined_replaced_listed_and_deleted() {
    let admin = admin().await;
    let mut wanted = definition("quay.io/agentbox/pool-route:1");
    let (name, created) = define(admin, &wanted).await;
    let path = format!("/pools/{name}");
    assert_eq!(created["name"], name.as_str());
    assert_eq!(created["source"], "api");
    assert_eq!(
        created["resources"],
        json!({"cpu": "100m", "memory": "64Mi", "storage": "64Mi"})
    );
    let status = &created["status"];
    for counter in ["target", "ready", "starting", "claims", "hits", "failures"] {
        assert_eq!(status[counter], 0, "{counter}: {status}");
    }
    assert_eq!(status["misses_by_reason"], json!({}));
    wanted["node_selector"] = json!({"disk": "ssd"});
    let replaced = admin.put(&path, &wanted).await.expect_status(200);
    assert_eq!(replaced["created_at"], created["created_at"]);
    assert_eq!(replaced["node_selector"], wanted["node_selector"]);
    let got = admin.get(&path).await.expect_status(200);
    assert_eq!(got, replaced);
    let listed = admin.get("/pools").await.expect_status(200);
    let pools = listed["pools"].as_array().unwrap();
    assert!(pools.contains(&got), "{listed}");
    admin.delete(&path).await.expect_status(204);
    admin.delete(&path).await.expect_error(404, "not_found");
    let missing = admin.get(&path).await.expect_error(404, "not_found");
    assert_eq!(missing, "pool not found");
    admin
        .get("/pools/not%00a%20name")
        .await
        .expect_error(404, "not_found");
    eventually("the entries of the changes", async || {
        let trail = admin.get(&format!("/audit?target={name}")).await;
        let trail = trail.expect_status(200);
        let entries = trail["entries"].as_array().unwrap();
        let count = |action: &str| {
            let of_action = entries.iter().filter(|entry| entry["action"] == action);
            of_action.count()
        };
        (count("set-pool") >= 2 && count("delete-pool") >= 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn invalid_definition_returns_400_naming_the_field() {
    let admin = admin().await;
    let with = |field: &str, value: Value| {
        let mut wanted = definition("quay.io/agentbox/pool-invalid:1");
        wanted[field] = value;
        wanted
    };
    for (name, body, field) in [
        ("Python", definition("busybox"), "name"),
        ("invalid-test", with("image", json!("a b")), "image"),
        ("invalid-test", with("image", json!("localhost/a")), "image"),
        ("invalid-test", with("min_ready", json!(1)), "min_ready"),
        ("invalid-test", with("max_ready", json!(1001)), "max_ready"),
        ("invalid-test", with("cluster", json!("nowhere")), "cluster"),
        ("invalid-test", with("size", json!(1)), "size"),
    ] {
        let refused = admin.put(&format!("/pools/{name}"), &body).await;
        let message = refused.expect_error(400, "validation_failed");
        assert!(message.starts_with(field), "{field}: {message}");
    }
}

#[tokio::test]
async fn pools_are_for_administrators_only() {
    let user = new_user().await;
    let caller = &user.caller;
    let body = definition("busybox");
    for refused in [
        caller.get("/pools").await,
        caller.get("/pools/a").await,
        caller.put("/pools/a", &body).await,
        caller.delete("/pools/a").await,
    ] {
        refused.expect_error(403, "forbidden");
    }
}
