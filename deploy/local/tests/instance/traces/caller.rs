//! A client that starts a trace with each request.

use std::time::{Duration, Instant};

use agentbox_testing::System;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);

/// A client of the API with one trace per request.
pub struct Caller {
    pub http: reqwest::Client,
    pub url: String,
    pub token: String,
}

/// The trace that a caller starts: the parent of the request's spans.
#[derive(Clone)]
pub struct TraceContext {
    pub trace: String,
    pub span: String,
}

impl TraceContext {
    pub fn new() -> Self {
        Self {
            trace: hex::encode(rand::random::<[u8; 16]>()),
            span: hex::encode(rand::random::<[u8; 8]>()),
        }
    }
}

impl Caller {
    pub async fn login(system: &System) -> Self {
        let mut caller = Self {
            http: reqwest::Client::new(),
            url: system.url().to_owned(),
            token: String::new(),
        };
        let login = json!({
            "username": system.admin.username,
            "password": system.admin.password,
        });
        let (status, reply) = caller
            .ask(
                &TraceContext::new(),
                "01",
                Method::POST,
                "/auth/login",
                &login,
            )
            .await;
        assert_eq!(status, StatusCode::OK, "{reply}");
        caller.token = reply["token"].as_str().unwrap().to_owned();
        caller
    }

    /// Sends a request in the trace `context`, and checks that the response names the trace.
    pub async fn ask(
        &self,
        context: &TraceContext,
        flags: &str,
        method: Method,
        path: &str,
        body: &Value,
    ) -> (StatusCode, Value) {
        let mut request = self
            .http
            .request(method, format!("{}/api/v1{path}", self.url))
            .header(
                "traceparent",
                format!("00-{}-{}-{flags}", context.trace, context.span),
            );
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        if !body.is_null() {
            request = request.json(body);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["x-trace-id"], context.trace.as_str());
        let status = response.status();
        (status, response.json().await.unwrap_or(Value::Null))
    }

    pub async fn sampled(&self, method: Method, path: &str, body: &Value) -> (TraceContext, Value) {
        let context = TraceContext::new();
        let (status, reply) = self.ask(&context, "01", method, path, body).await;
        assert!(status.is_success(), "{path}: {status} {reply}");
        (context, reply)
    }

    pub async fn wait_for_status(&self, id: &str, wanted: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let path = format!("/environments/{id}");
            let (_, reply) = self
                .ask(&TraceContext::new(), "00", Method::GET, &path, &Value::Null)
                .await;
            if reply["status"] == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "not {wanted}: {reply}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
