//! The bound of commands that run at the same time. On Kubernetes a box reaches its limit of processes
//! before it, so this test runs on containerd only.

use futures::future::join_all;
use serde_json::json;

use crate::support::boxes::small;
use crate::support::caller::new_user;

/// The most commands that run in a box at the same time.
const MAX_RUNNING: usize = 256;

#[tokio::test]
async fn command_above_the_bound_of_a_box_returns_429_until_another_ends() {
    let user = new_user().await;
    let caller = &user.caller;
    let mut body = small();
    body["resources"]["memory"] = json!("512Mi");
    let id = caller.create_running(&body).await;
    let sleep = json!({"command": ["sleep", "600"]});
    let first = caller.start(&id, &sleep).await;
    let mut started = 1;
    while started < MAX_RUNNING {
        let more = (MAX_RUNNING - started).min(16);
        let starts = (0..more).map(|_| caller.start(&id, &sleep));
        started += join_all(starts).await.len();
    }
    let path = format!("/environments/{id}/executions");
    let refused = caller.post(&path, &sleep).await;
    let message = refused.expect_error(429, "rate_limited");
    assert!(message.contains("256"), "{message}");
    caller.delete(&first.path).await.expect_status(204);
    caller.start(&id, &sleep).await;
}
