//! A client of the API that starts a trace with each request, and counts what it did.

use std::time::{Duration, Instant};

use agentbox_testing::System;
use agentbox_testing::eventually_some;
use reqwest::{Body, Method, RequestBuilder};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The execs of a round.
const EXECS: u32 = 10;
/// An image that no registry has.
pub const UNKNOWN_IMAGE: &str = "no-such-image-of-ours:1";
/// The bytes of the file of a round.
pub const FILE_BYTES: u32 = 100_000;

pub struct Client {
    http: reqwest::Client,
    base: String,
    credentials: Value,
    pub token: String,
}

/// The ids of the trace that a request starts, and of the caller's span in it.
#[derive(Clone, Debug)]
pub struct Trace {
    pub id: String,
    pub span: String,
}

impl Trace {
    pub fn new() -> Self {
        Self {
            id: hex::encode(rand::random::<[u8; 16]>()),
            span: hex::encode(rand::random::<[u8; 8]>()),
        }
    }

    /// The header of a sampled trace.
    pub fn header(&self) -> String {
        format!("00-{}-{}-01", self.id, self.span)
    }
}

/// What a client did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub logins: u32,
    pub creates: u32,
    pub execs: u32,
    pub uploads: u32,
    pub downloads: u32,
    pub executions: u32,
    /// The longest exec, as the client saw it.
    pub longest_exec: Duration,
}

impl Client {
    pub async fn login(system: &System) -> Self {
        let mut client = Self {
            http: reqwest::Client::new(),
            base: format!("{}/api/v1", system.url()),
            credentials: json!({
                "username": system.admin.username,
                "password": system.admin.password,
            }),
            token: String::new(),
        };
        client.token = client.new_token().await;
        client
    }

    async fn new_token(&self) -> String {
        let login = Some(self.credentials.clone());
        let (_, reply) = self.ask(Method::POST, "/auth/login", login).await;
        reply["token"].as_str().unwrap().to_owned()
    }

    fn request(&self, method: Method, path: &str, trace: &Trace) -> RequestBuilder {
        let request = self
            .http
            .request(method, format!("{}{path}", self.base))
            .timeout(REQUEST_TIMEOUT)
            .header("traceparent", trace.header());
        match self.token.as_str() {
            "" => request,
            token => request.bearer_auth(token),
        }
    }

    /// Sends a request that must succeed; gives its trace and the answer, null if it is not JSON.
    pub async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (Trace, Value) {
        let trace = Trace::new();
        let mut request = self.request(method, path, &trace);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let text = succeeded(request, path).await;
        (trace, serde_json::from_slice(&text).unwrap_or_default())
    }

    /// Sends a request while a part of the system is missing: any answer is right, also none.
    pub async fn attempt(&self, path: &str, body: &Value) {
        let request = self.request(Method::POST, path, &Trace::new());
        let _ = request.json(body).send().await;
    }

    /// Creates an environment and waits until it runs; gives the trace of the create and the id.
    pub async fn create(&self, name: &str) -> (Trace, String) {
        self.create_as(small(name)).await
    }

    /// As [`Self::create`], from this request.
    pub async fn create_as(&self, body: Value) -> (Trace, String) {
        let (trace, reply) = self.begin_create(body).await;
        let id = reply["id"].as_str().unwrap().to_owned();
        self.wait_for_status(&id, "running").await;
        (trace, id)
    }

    /// Creates an environment; gives the trace and the answer.
    pub async fn begin_create(&self, body: Value) -> (Trace, Value) {
        self.ask(Method::POST, "/environments", Some(body)).await
    }

    /// Creates an environment of an image that no registry has, and waits until it has failed.
    pub async fn create_with_unknown_image(&self) {
        let mut body = small("unknown");
        body["image"] = UNKNOWN_IMAGE.into();
        let (_, reply) = self.begin_create(body).await;
        self.wait_for_status(reply["id"].as_str().unwrap(), "failed")
            .await;
    }

    /// Defines a pool with one box of the size of [`small`].
    pub async fn set_pool(&self, name: &str, image: &str) {
        let body = json!({
            "image": image,
            "resources": small(name)["resources"],
            "min_ready": 1,
            "max_ready": 1,
        });
        self.ask(Method::PUT, &format!("/pools/{name}"), Some(body))
            .await;
    }

    /// Waits until the pool has a box that can be claimed.
    pub async fn wait_for_ready_box(&self, pool: &str) {
        let path = format!("/pools/{pool}");
        eventually_some("a box of the pool is ready", DEADLINE, async || {
            let (_, reply) = self.ask(Method::GET, &path, None).await;
            (reply["status"]["ready"] == 1).then_some(())
        })
        .await;
    }

    pub async fn delete_pool(&self, name: &str) {
        self.ask(Method::DELETE, &format!("/pools/{name}"), None)
            .await;
    }

    pub async fn wait_for_status(&self, id: &str, wanted: &str) {
        let path = format!("/environments/{id}");
        eventually_some(&format!("{id} is {wanted}"), DEADLINE, async || {
            let (_, reply) = self.ask(Method::GET, &path, None).await;
            (reply["status"] == wanted).then_some(())
        })
        .await;
    }

    pub async fn delete(&self, id: &str) {
        let path = format!("/environments/{id}?force=true");
        self.ask(Method::DELETE, &path, None).await;
        self.wait_for_status(id, "terminated").await;
    }

    pub async fn exec(&self, id: &str) -> Trace {
        let path = format!("/environments/{id}/exec");
        let body = json!({ "command": ["true"] });
        let (trace, reply) = self.ask(Method::POST, &path, Some(body)).await;
        assert_eq!(reply["exit_code"], 0, "{reply}");
        trace
    }

    pub async fn upload(&self, id: &str) -> Trace {
        let trace = Trace::new();
        let path = format!("/environments/{id}/files/content?path=/tmp/file");
        let content = vec![b'x'; FILE_BYTES as usize];
        let request = self.request(Method::PUT, &path, &trace);
        succeeded(request.body(Body::from(content)), &path).await;
        trace
    }

    pub async fn download(&self, id: &str) -> Trace {
        let trace = Trace::new();
        let path = format!("/environments/{id}/files/content?path=/tmp/file");
        let request = self.request(Method::GET, &path, &trace);
        let content = succeeded(request, &path).await;
        assert_eq!(content.len(), FILE_BYTES as usize);
        trace
    }

    /// Starts an execution and waits until it has exited.
    async fn execution(&self, id: &str) {
        let path = format!("/environments/{id}/executions");
        let body = json!({ "command": ["true"] });
        let (_, started) = self.ask(Method::POST, &path, Some(body)).await;
        let path = format!("{path}/{}", started["id"].as_str().unwrap());
        eventually_some("the execution has exited", DEADLINE, async || {
            let (_, reply) = self.ask(Method::GET, &path, None).await;
            (reply["status"] == "exited").then_some(())
        })
        .await;
    }

    /// Does everything once, and most things several times.
    pub async fn round(&self, done: &mut Done) {
        self.new_token().await;
        done.logins += 1;
        let (_, id) = self.create("round").await;
        done.creates += 1;
        for _ in 0..EXECS {
            let begun = Instant::now();
            self.exec(&id).await;
            done.longest_exec = done.longest_exec.max(begun.elapsed());
            done.execs += 1;
        }
        self.upload(&id).await;
        done.uploads += 1;
        self.download(&id).await;
        done.downloads += 1;
        self.execution(&id).await;
        done.executions += 1;
        self.delete(&id).await;
    }
}

/// The request for a small environment without a command.
pub fn small(name: &str) -> Value {
    json!({
        "name": name,
        "image": "busybox",
        "resources": { "cpu": "100m", "memory": "64Mi", "storage": "64Mi" },
    })
}

async fn succeeded(request: RequestBuilder, path: &str) -> Vec<u8> {
    let response = request.send().await.unwrap();
    let status = response.status();
    let body = response.bytes().await.unwrap();
    let text = String::from_utf8_lossy(&body);
    assert!(status.is_success(), "{path}: {status} {text}");
    body.to_vec()
}
