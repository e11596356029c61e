//! The paging rules that all lists share.

use serde_json::json;

use crate::support::boxes::small;
use crate::support::caller::{admin, new_user};
use crate::support::eventually;

#[tokio::test]
async fn every_list_applies_limit_and_offset_alike() {
    let user = new_user().await;
    for _ in 0..3 {
        user.key(json!({})).await;
        user.caller.create(&small()).await;
    }
    for registry in ["ghcr.io", "quay.io"] {
        let path = format!("/registries/{registry}");
        let login = json!({"username": "ada", "password": "secret"});
        user.caller.put(&path, &login).await.expect_status(204);
    }
    let id = user.caller.create_running(&small()).await;
    let environment_events = format!("/environments/{id}/events");
    for (caller, path, field) in [
        (&user.caller, "/environments", "environments"),
        (&user.caller, "/api-keys", "api_keys"),
        (&user.caller, "/events", "events"),
        (&user.caller, environment_events.as_str(), "events"),
        (&user.caller, "/audit", "entries"),
        (&user.caller, "/registries", "registries"),
        (admin().await, "/users", "users"),
    ] {
        let all = eventually("at least two entries", async || {
            let list = caller.get(path).await.expect_status(200);
            (list[field].as_array().unwrap().len() >= 2).then_some(list)
        })
        .await;
        assert_eq!(all["limit"], 100, "{path}");
        assert_eq!(all["offset"], 0, "{path}");
        assert!(all["total"].as_u64().unwrap() >= 2, "{path}");
        assert_eq!(all.as_object().unwrap().len(), 4, "{path}");
        let page = format!("{path}?limit=1&offset=1");
        for gateway in 0..caller.gateways() {
            let one = caller.get_on(gateway, &page).await.expect_status(200);
            assert_eq!(one[field].as_array().unwrap().len(), 1, "{path}");
            assert_eq!((&one["limit"], &one["offset"]), (&json!(1), &json!(1)));
            assert!(one["total"].as_u64().unwrap() >= 2, "total ignores paging");
        }
        let beyond = caller
            .get(&format!("{path}?offset=1000000"))
            .await
            .expect_status(200);
        assert_eq!(beyond[field], json!([]), "{path}");
        caller
            .get(&format!("{path}?limit=1000"))
            .await
            .expect_status(200);
        for query in ["limit=0", "limit=1001", "limit=x", "offset=-1", "page=2"] {
            let refused = caller.get(&format!("{path}?{query}")).await;
            let message = refused.expect_error(400, "validation_failed");
            let named = query.split('=').next().unwrap();
            assert!(message.starts_with(named), "{path}?{query}: {message}");
        }
    }
}
