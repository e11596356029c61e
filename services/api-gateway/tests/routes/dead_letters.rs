//! `/dead-letters`. The shared system may have letters of other tests: none is replayed here.

use serde_json::json;

use crate::support::caller::{admin, new_user};
use crate::support::eventually;

/// A number that no letter of this system has.
const UNUSED: u64 = 4_711_000;

#[tokio::test]
async fn administrator_lists_dead_letters_and_an_unknown_one_is_not_found() {
    let admin = admin().await;
    let listed = admin.get("/dead-letters?limit=5").await.expect_status(200);
    assert!(listed["total"].is_u64(), "{listed}");
    assert_eq!(listed["limit"], 5, "{listed}");
    assert!(listed["dead_letters"].is_array(), "{listed}");
    for path in [format!("/dead-letters/{UNUSED}"), "/dead-letters/x".into()] {
        let message = admin.get(&path).await.expect_error(404, "not_found");
        assert_eq!(message, "dead letter not found", "{path}");
    }
    let replay = format!("/dead-letters/{UNUSED}/replay");
    let refused = admin.post(&replay, &json!({})).await;
    refused.expect_error(404, "not_found");
}

#[tokio::test]
async fn discard_may_be_repeated_and_is_in_the_audit_trail() {
    let admin = admin().await;
    let number = UNUSED + u64::from(rand::random::<u16>());
    for _ in 0..2 {
        let path = format!("/dead-letters/{number}");
        admin.delete(&path).await.expect_status(204);
    }
    eventually("both entries", async || {
        let path = format!("/audit?target={number}&action=discard-dead-letter");
        let trail = admin.get(&path).await.expect_status(200);
        (trail["total"].as_u64() >= Some(2)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn other_callers_may_not_see_or_change_dead_letters() {
    let user = new_user().await;
    let caller = &user.caller;
    let one = "/dead-letters/1";
    caller
        .get("/dead-letters")
        .await
        .expect_error(403, "forbidden");
    caller.get(one).await.expect_error(403, "forbidden");
    caller.delete(one).await.expect_error(403, "forbidden");
    let replayed = caller.post("/dead-letters/1/replay", &json!({})).await;
    replayed.expect_error(403, "forbidden");
}
