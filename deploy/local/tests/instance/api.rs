//! A client of the API that retries idempotent requests while a part of the system restarts, and
//! accepts only the documented responses.

use std::cell::Cell;
use std::time::{Duration, Instant};

use agentbox_testing::System;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

/// The deadline of one request with its retries.
const DEADLINE: Duration = Duration::from_secs(60);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub struct Api {
    http: reqwest::Client,
    base: String,
    pub token: String,
    /// The number of retries.
    pub retries: Cell<u32>,
}

impl Api {
    pub async fn of(system: &System) -> Self {
        Self::login(system.url(), &system.admin.username, &system.admin.password).await
    }

    pub async fn login(url: &str, username: &str, password: &str) -> Self {
        let mut api = Self {
            http: reqwest::Client::new(),
            base: format!("{url}/api/v1"),
            token: String::new(),
            retries: Cell::new(0),
        };
        let login = json!({ "username": username, "password": password });
        let reply = api
            .ask(Method::POST, "/auth/login", Some(login), None)
            .await;
        reply["token"].as_str().unwrap().clone_into(&mut api.token);
        api
    }

    /// Creates a small busybox environment once, with any number of retries.
    pub async fn create(&self, name: &str) -> Value {
        self.create_as(small(name)).await
    }

    /// As [`Self::create`], from this request.
    pub async fn create_as(&self, body: Value) -> Value {
        let name = body["name"].as_str().unwrap().to_owned();
        self.ask(Method::POST, "/environments", Some(body), Some(&name))
            .await
    }

    pub async fn get(&self, id: &str) -> Value {
        let path = format!("/environments/{id}");
        self.ask(Method::GET, &path, None, None).await
    }

    pub async fn list(&self) -> Value {
        self.ask(Method::GET, "/environments?limit=1000", None, None)
            .await
    }

    pub async fn delete(&self, id: &str) {
        let path = format!("/environments/{id}");
        self.ask(Method::DELETE, &path, None, None).await;
    }

    /// Runs a script. It must be idempotent, because a retry runs it again.
    pub async fn exec(&self, id: &str, script: &str) -> Value {
        let path = format!("/environments/{id}/exec");
        let body = json!({ "command": ["sh", "-c", script] });
        self.ask(Method::POST, &path, Some(body), None).await
    }

    /// Waits for a status; fails early when the environment has ended in another.
    pub async fn wait_for_status(&self, id: &str, status: &str) -> Value {
        let begun = Instant::now();
        loop {
            let environment = self.get(id).await;
            if environment["status"] == status {
                return environment;
            }
            let has_ended =
                environment["status"] == "failed" || environment["status"] == "terminated";
            assert!(
                !has_ended && begun.elapsed() < DEADLINE,
                "{id} is not {status} after {:?}: {environment}",
                begun.elapsed()
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    fn request(&self, method: &Method, path: &str, body: Option<&Value>) -> RequestBuilder {
        let url = format!("{}{path}", self.base);
        let mut request = self
            .http
            .request(method.clone(), url)
            .timeout(REQUEST_TIMEOUT);
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        request
    }

    /// Sends a request without retries; gives status and body of any response.
    pub async fn once(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let (status, text) = answer(self.request(&method, path, body.as_ref()))
            .await
            .unwrap_or_else(|error| panic!("{method} {path}: {error:?}"));
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    /// Sends a request until it is answered with neither 502, 503 nor 504, as a part of the system that
    /// stalls lets the gateway answer. It must be idempotent. Gives status and body.
    pub async fn served(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let begun = Instant::now();
        loop {
            let (status, answer) = self.once(method.clone(), path, body.clone()).await;
            if !matches!(status, 502..=504) {
                return (status, answer);
            }
            assert!(
                begun.elapsed() < DEADLINE,
                "{method} {path} is not served after {:?}: {answer}",
                begun.elapsed()
            );
            self.retries.set(self.retries.get() + 1);
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Sends a POST that takes effect once, with any number of retries: `key` is its idempotency key.
    pub async fn post_once(&self, path: &str, body: Value, key: &str) -> Value {
        self.ask(Method::POST, path, Some(body), Some(key)).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        idempotency_key: Option<&str>,
    ) -> Value {
        let begun = Instant::now();
        loop {
            let mut request = self.request(&method, path, body.as_ref());
            if let Some(key) = idempotency_key {
                request = request.header("Idempotency-Key", key);
            }
            let reason = match answer(request).await {
                Ok((200..300, text)) => return serde_json::from_str(&text).unwrap_or_default(),
                // A part of the system is unavailable, and may have handled the request.
                Ok((502..=504, text)) => text,
                Err(error) => format!("{error:?}"),
                Ok((status, text)) => panic!("{method} {path}: {status} {text}"),
            };
            assert!(
                begun.elapsed() < DEADLINE,
                "{method} {path} has no answer after {:?}: {reason}",
                begun.elapsed()
            );
            self.retries.set(self.retries.get() + 1);
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

/// A small busybox environment.
pub fn small(name: &str) -> Value {
    json!({
        "name": name,
        "image": "busybox",
        "resources": { "cpu": "100m", "memory": "64Mi", "storage": "64Mi" },
        "timeout": 1800,
    })
}

/// Status and body; an error when the connection breaks before the end of the body.
async fn answer(request: RequestBuilder) -> Result<(u16, String), reqwest::Error> {
    let answer = request.send().await?;
    let status = answer.status().as_u16();
    Ok((status, answer.text().await?))
}
