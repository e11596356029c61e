//! Environments for the tests.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::caller::{Caller, User, send_patiently, someone};
use super::{PATIENCE, eventually, within};

/// A small one that idles.
pub fn small() -> Value {
    json!({
        "name": "box",
        "image": "busybox",
        "resources": {"cpu": "250m", "memory": "64Mi", "storage": "64Mi"},
    })
}

/// A small one whose main command is a shell script.
pub fn script(text: &str) -> Value {
    let mut body = small();
    body["command"] = json!(["sh", "-c", text]);
    body
}

/// Somebody's running environment.
pub struct Idle {
    pub user: User,
    pub id: String,
}

static IDLE: OnceCell<Idle> = OnceCell::const_new();

/// One that all tests share which do nothing to it but run commands.
pub async fn idle() -> &'static Idle {
    IDLE.get_or_init(async || {
        let user = someone().await;
        let mut body = small();
        body["resources"] = json!({"cpu": "2", "memory": "512Mi", "storage": "512Mi"});
        let id = user.caller.running(&body).await;
        Idle { user, id }
    })
    .await
}

impl Caller {
    /// Creates one and returns its id.
    pub async fn create(&self, body: &Value) -> String {
        let request = self.request(Method::POST, "/environments").json(body);
        let created = send_patiently(request).await.is(201);
        created["id"].as_str().unwrap().to_owned()
    }

    /// Creates one and waits until it runs.
    pub async fn running(&self, body: &Value) -> String {
        let id = self.create(body).await;
        self.until(&id, "running").await;
        id
    }

    /// Waits until it has this status; fails when it has ended with another.
    pub async fn until(&self, id: &str, status: &str) -> Value {
        let path = format!("/environments/{id}");
        let what = format!("{id} {status}");
        within(PATIENCE, &what, async || {
            let body = send_patiently(self.request(Method::GET, &path))
                .await
                .is(200);
            let seen = body["status"].as_str().unwrap().to_owned();
            if seen == status {
                return Some(body);
            }
            assert!(!matches!(seen.as_str(), "terminated" | "failed"), "{body}");
            None
        })
        .await
    }

    /// Waits until it has ended, however.
    pub async fn until_ended(&self, id: &str) -> Value {
        let path = format!("/environments/{id}");
        eventually(&format!("{id} has ended"), async || {
            let body = send_patiently(self.request(Method::GET, &path))
                .await
                .is(200);
            matches!(body["status"].as_str(), Some("terminated" | "failed")).then_some(body)
        })
        .await
    }

    /// Runs a shell script and returns the answer.
    pub async fn sh(&self, id: &str, text: &str) -> Value {
        self.exec(id, &json!({"command": ["sh", "-c", text]})).await
    }

    pub async fn exec(&self, id: &str, body: &Value) -> Value {
        let path = format!("/environments/{id}/exec");
        send_patiently(self.request(Method::POST, &path).json(body))
            .await
            .is(200)
    }

    /// Whether a process of the box has this text in its command line.
    pub async fn runs(&self, id: &str, mark: &str) -> bool {
        // Written so that the searching shell does not find itself.
        let (first, rest) = mark.split_at(1);
        let text = format!(
            "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -q '[{first}]{rest}'"
        );
        self.sh(id, &text).await["exit_code"] == 0
    }
}
