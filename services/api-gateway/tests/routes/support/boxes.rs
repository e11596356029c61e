//! Environments for the tests.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::caller::{Caller, User, new_user, send_with_retry};
use super::{TIMEOUT, eventually, eventually_some};

/// A small environment without a command.
pub fn small() -> Value {
    json!({
        "name": "box",
        "image": "busybox",
        "resources": {"cpu": "250m", "memory": "64Mi", "storage": "64Mi"},
    })
}

/// A small environment that runs a shell script.
pub fn script(text: &str) -> Value {
    let mut body = small();
    body["command"] = json!(["sh", "-c", text]);
    body
}

/// A running environment and its owner.
pub struct OwnedEnvironment {
    pub user: User,
    pub id: String,
}

static IDLE: OnceCell<OwnedEnvironment> = OnceCell::const_new();

/// An environment shared by tests that only run commands in it.
pub async fn idle() -> &'static OwnedEnvironment {
    IDLE.get_or_init(async || {
        let user = new_user().await;
        let mut body = small();
        body["resources"] = json!({"cpu": "2", "memory": "512Mi", "storage": "512Mi"});
        let id = user.caller.create_running(&body).await;
        OwnedEnvironment { user, id }
    })
    .await
}

/// Kills PID 1 of the box that runs a process with this text in its command line.
pub fn kill_box_running(text: &str) {
    let status = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/status"));
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let pids = || {
        let entries = std::fs::read_dir("/proc").unwrap();
        entries.filter_map(|entry| entry.unwrap().file_name().into_string().ok())
    };
    let runs = |pid: &String| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line)
            .replace('\0', " ")
            .contains(text)
    };
    let inside = pids().find(runs).expect("a process of the box");
    let wanted = namespace(&inside);
    let first = pids()
        .filter(|pid| pid.parse::<u32>().is_ok() && namespace(pid) == wanted)
        .find(|pid| {
            // The last number is the process id inside the box.
            let status = status(pid).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            numbers.is_some_and(|numbers| numbers.split_whitespace().last() == Some("1"))
        })
        .expect("the first process of the box");
    let pid = Pid::from_raw(first.parse().unwrap());
    assert_ne!(wanted, namespace("self"), "no box");
    kill(pid, Signal::SIGKILL).unwrap();
}

impl Caller {
    /// Creates an environment and returns its id.
    pub async fn create(&self, body: &Value) -> String {
        let request = self.request(Method::POST, "/environments").json(body);
        let created = send_with_retry(request).await.expect_status(201);
        created["id"].as_str().unwrap().to_owned()
    }

    /// Creates an environment, waits until it runs, and returns its id.
    pub async fn create_running(&self, body: &Value) -> String {
        let id = self.create(body).await;
        self.wait_for_status(&id, "running").await;
        id
    }

    /// Waits for a status and returns the environment; panics if it ends with another status.
    pub async fn wait_for_status(&self, id: &str, status: &str) -> Value {
        let path = format!("/environments/{id}");
        let what = format!("{id} {status}");
        eventually_some(&what, TIMEOUT, async || {
            let body = send_with_retry(self.request(Method::GET, &path))
                .await
                .expect_status(200);
            let seen = body["status"].as_str().unwrap().to_owned();
            if seen == status {
                return Some(body);
            }
            assert!(!matches!(seen.as_str(), "terminated" | "failed"), "{body}");
            None
        })
        .await
    }

    /// Waits until the environment has ended, with any status.
    pub async fn wait_until_ended(&self, id: &str) -> Value {
        let path = format!("/environments/{id}");
        eventually(&format!("{id} has ended"), async || {
            let body = send_with_retry(self.request(Method::GET, &path))
                .await
                .expect_status(200);
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
        send_with_retry(self.request(Method::POST, &path).json(body))
            .await
            .expect_status(200)
    }

    /// Whether a process of the box has this text in its command line.
    pub async fn has_process(&self, id: &str, mark: &str) -> bool {
        // The brackets keep the searching shell from finding itself.
        let (first, rest) = mark.split_at(1);
        let text = format!(
            "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -q '[{first}]{rest}'"
        );
        self.sh(id, &text).await["exit_code"] == 0
    }
}
