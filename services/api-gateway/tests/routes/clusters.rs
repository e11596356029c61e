//! `/clusters`. The tests share one system, so none of them cordons its cluster.

use crate::support::caller::{admin, new_user};
use crate::support::eventually;

#[tokio::test]
async fn administrator_lists_clusters_with_their_state_and_capacity() {
    let admin = admin().await;
    // On a machine that stalls a cluster may not answer for a moment.
    let listed = eventually("the cluster is connected", async || {
        let listed = admin.get("/clusters?limit=1").await.expect_status(200);
        (listed["clusters"][0]["connected"] == true).then_some(listed)
    })
    .await;
    assert!(listed["total"].as_u64().unwrap() >= 1, "{listed}");
    assert_eq!(listed["limit"], 1, "{listed}");
    let cluster = &listed["clusters"][0];
    assert_eq!(cluster["state"], "active", "{cluster}");
    assert!(
        cluster["capacity"]["nodes"].as_u64().unwrap() >= 1,
        "{cluster}"
    );
    assert!(cluster["environments"]["running"].is_u64(), "{cluster}");
    assert!(cluster.get("drain_deadline").is_none(), "{cluster}");
}

#[tokio::test]
async fn other_callers_may_neither_see_nor_drain_clusters() {
    let user = new_user().await;
    let refused = user.caller.get("/clusters").await;
    refused.expect_error(403, "forbidden");
    for verb in ["cordon", "uncordon", "drain"] {
        let path = format!("/clusters/elsewhere/{verb}");
        let refused = user.caller.post(&path, &serde_json::json!({})).await;
        refused.expect_error(403, "forbidden");
    }
}

#[tokio::test]
async fn unknown_cluster_returns_404_and_invalid_timeout_400() {
    let admin = admin().await;
    let empty = serde_json::json!({});
    for verb in ["cordon", "uncordon", "drain"] {
        let path = format!("/clusters/elsewhere/{verb}");
        let refused = admin.post(&path, &empty).await;
        assert_eq!(refused.expect_error(404, "not_found"), "cluster not found");
    }
    for timeout in ["-1", "soon"] {
        let path = format!("/clusters/elsewhere/drain?timeout={timeout}");
        let message = admin.post(&path, &empty).await;
        let message = message.expect_error(400, "validation_failed");
        assert!(message.starts_with("timeout"), "{message}");
    }
}
