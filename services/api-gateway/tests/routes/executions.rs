//! `/environments/{id}/executions`: commands that outlive the requests of their clients.

mod access;
mod attach;
mod ended;
mod input;
mod lists;
mod outcome;
mod output;
mod start;

use serde_json::Value;

use crate::support::answer::Answer;
use crate::support::boxes::idle;

/// Requests to start an execution in the shared environment.
async fn request(body: &Value) -> Answer {
    let idle = idle().await;
    let path = format!("/environments/{}/executions", idle.id);
    idle.user.caller.post(&path, body).await
}

/// A label value that no other test uses.
fn mark() -> String {
    format!("m{:016x}", rand::random::<u64>())
}
