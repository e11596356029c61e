//! `/users/{user}/usage`. Metering itself is tested with the scheduler.

use crate::support::caller::{admin, new_user};

#[tokio::test]
async fn user_without_environments_used_nothing() {
    let (admin, user) = (admin().await, new_user().await);
    let path = format!("/users/{}/usage", user.id);
    let report = admin.get(&path).await.expect_status(200);
    assert_eq!(report["user_id"], user.id.as_str());
    assert_eq!(report["total"]["environments"], 0);
    assert_eq!(report["total"]["cpu_seconds"], 0.0);
    assert_eq!(report["total"]["egress_bytes"], 0);
    assert!(report.get("groups").is_none(), "{report}");
    let grouped = admin.get(&format!("{path}?group_by=team")).await;
    assert_eq!(grouped.expect_status(200)["groups"], serde_json::json!([]));
}

#[tokio::test]
async fn invalid_period_and_label_return_400() {
    let (admin, user) = (admin().await, new_user().await);
    let path = format!("/users/{}/usage", user.id);
    let day = "2026-01-02T00:00:00Z";
    for (query, field) in [
        (format!("since={day}&until={day}"), "since"),
        ("since=yesterday".to_owned(), "since"),
        ("group_by=a%20b".to_owned(), "group_by"),
        ("group_by=".to_owned(), "group_by"),
    ] {
        let refused = admin.get(&format!("{path}?{query}")).await;
        let message = refused.expect_error(400, "validation_failed");
        assert!(message.starts_with(field), "{query}: {message}");
    }
}

#[tokio::test]
async fn user_may_not_read_the_report_of_itself_or_others() {
    let user = new_user().await;
    let refused = user.caller.get(&format!("/users/{}/usage", user.id)).await;
    refused.expect_error(403, "forbidden");
}
