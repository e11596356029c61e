//! The audit trail while parts of the system are killed (SIGKILL): each answered action has one
//! entry.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agentbox_testing::{Options, System, eventually};
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Api, small};
use crate::kills::kill;

const WORKERS: usize = 4;
const ACTIONS: usize = 1_000;
const DEADLINE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// The rounds of one worker between two environments, which take longer than other actions.
const ROUNDS_PER_ENVIRONMENT: usize = 8;
/// The headers of a WebSocket's handshake (RFC 6455, section 4.1).
const HANDSHAKE: [(&str, &str); 4] = [
    ("connection", "upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// Sends actions, and remembers those that were answered with success.
struct Actor<'a> {
    api: &'a Api,
    http: reqwest::Client,
    base: String,
    login: Value,
    /// The trace id of each answer, and the action that its entry must have.
    answered: RefCell<Vec<(String, &'static str)>>,
}

impl Actor<'_> {
    /// Sends a request until it is answered. Each attempt is a request of its own.
    async fn act(
        &self,
        action: &'static str,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Value {
        let begun = Instant::now();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let mut request = self
                .http
                .request(method.clone(), format!("{}{path}", self.base))
                .timeout(Duration::from_secs(30))
                .bearer_auth(&self.api.token);
            if let Some(body) = &body {
                request = request.json(body);
            }
            if action == "attach" {
                for (name, value) in HANDSHAKE {
                    request = request.header(name, value);
                }
            }
            let reason = match answer(request).await {
                Ok((101 | 200..300, trace_id, text)) => {
                    // An attempt that was not answered may have deleted it. Then this one changed
                    // nothing, and has no entry.
                    if attempts == 1 || action != "delete-environment" {
                        self.answered.borrow_mut().push((trace_id, action));
                    }
                    return serde_json::from_str(&text).unwrap_or_default();
                }
                // An attempt that was not answered has revoked it.
                Ok((404, _, _)) if action == "revoke-key" => return Value::Null,
                Ok((409 | 502..=504, _, text)) => text,
                Ok((status, _, text)) => panic!("{method} {path}: {status} {text}"),
                Err(error) => format!("{error:?}"),
            };
            assert!(
                begun.elapsed() < DEADLINE,
                "{method} {path} has no answer: {reason}"
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn create_and_delete(&self, name: &str) {
        let body = Some(small(name));
        let created = self
            .act("create-environment", Method::POST, "/environments", body)
            .await;
        let path = format!("/environments/{}", created["id"].as_str().unwrap());
        self.act("delete-environment", Method::DELETE, &path, None)
            .await;
    }

    /// Acts until all workers together have enough answers.
    async fn work(&self, worker: usize) {
        let created = self.api.create(&format!("audited-{worker}")).await;
        let id = created["id"].as_str().unwrap();
        self.api.wait_for_status(id, "running").await;
        let path = format!("/environments/{id}");
        let mut round: usize = 0;
        while self.answered.borrow().len() < ACTIONS {
            if round.is_multiple_of(ROUNDS_PER_ENVIRONMENT) {
                let attach_path = format!("{path}/attach?tty=false&command=true");
                self.act("attach", Method::GET, &attach_path, None).await;
                self.create_and_delete(&format!("brief-{worker}-{round}"))
                    .await;
            }
            round += 1;
            let exec = Some(json!({ "command": ["true"] }));
            let exec_path = format!("{path}/exec");
            self.act("exec", Method::POST, &exec_path, exec).await;
            let logs_path = format!("{path}/logs");
            self.act("read-logs", Method::GET, &logs_path, None).await;
            let labels = Some(json!({ "labels": { "round": round.to_string() } }));
            self.act("patch-environment", Method::PATCH, &path, labels)
                .await;
            let ticket = Some(json!({ "environment_id": id, "action": "logs" }));
            self.act("issue-ticket", Method::POST, "/auth/tickets", ticket)
                .await;
            let key = self
                .act("create-key", Method::POST, "/api-keys", Some(json!({})))
                .await;
            let key_path = format!("/api-keys/{}", key["id"].as_str().unwrap());
            self.act("revoke-key", Method::DELETE, &key_path, None)
                .await;
            let login = Some(self.login.clone());
            self.act("login", Method::POST, "/auth/login", login).await;
        }
    }

    /// How often each trace id and action is in the trail.
    async fn trail(&self) -> BTreeMap<(String, String), usize> {
        let mut found = BTreeMap::new();
        for offset in (0..).step_by(1_000) {
            let path = format!("/audit?limit=1000&offset={offset}");
            let (status, list) = self.api.once(Method::GET, &path, None).await;
            assert_eq!(status, 200, "{list}");
            let entries = list["entries"].as_array().unwrap();
            for entry in entries {
                let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
                // New entries come first, and shift the pages: an entry may be on two of them.
                let sequence = entry["sequence"].as_u64().unwrap();
                found.insert(sequence, (text("trace_id"), text("action")));
            }
            if entries.len() < 1_000 {
                break;
            }
        }
        let mut counts = BTreeMap::new();
        for entry in found.into_values() {
            *counts.entry(entry).or_default() += 1;
        }
        counts
    }
}

/// Status, trace id and body; an error when the connection breaks before the end of the body.
async fn answer(request: reqwest::RequestBuilder) -> Result<(u16, String, String), reqwest::Error> {
    let answer = request.send().await?;
    let status = answer.status().as_u16();
    let trace_id = answer.headers()["x-trace-id"].to_str().unwrap().to_owned();
    Ok((status, trace_id, answer.text().await?))
}

#[tokio::test]
async fn thousand_actions_with_kills_have_one_entry_for_each_answer() {
    let system = System::start(Options::default().replicas(2).without_rate_limits())
        .await
        .unwrap();
    let api = Api::of(&system).await;
    let actor = Actor {
        api: &api,
        http: reqwest::Client::new(),
        base: format!("{}/api/v1", system.url()),
        login: json!({
            "username": system.admin.username,
            "password": system.admin.password,
        }),
        answered: RefCell::default(),
    };
    let working = join_all((0..WORKERS).map(|worker| actor.work(worker)));
    let killing = async {
        let parts = [
            ("auth", 0),
            ("exec-proxy", 0),
            ("nats", 0),
            ("auth", 1),
            ("exec-proxy", 1),
        ];
        for (round, (part, index)) in parts.into_iter().enumerate() {
            // Spread over the run.
            while actor.answered.borrow().len() < (round + 1) * ACTIONS / 7 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let back = kill(&system, part, index).await;
            println!("{part}-{index} killed, all ready after {back:?}");
        }
    };
    tokio::join!(working, killing);

    let answered = actor.answered.take();
    println!("{} answers", answered.len());
    eventually("an entry for each answer", DEADLINE, async || {
        let trail = actor.trail().await;
        let count = |(trace_id, action): &(String, &str)| {
            let key = (trace_id.clone(), (*action).to_owned());
            trail.get(&key).copied().unwrap_or(0)
        };
        let twice = answered.iter().find(|answer| count(answer) > 1);
        assert_eq!(twice, None, "an answer with two entries");
        answered.iter().all(|answer| count(answer) == 1)
    })
    .await;
    system.stop().await;
}
