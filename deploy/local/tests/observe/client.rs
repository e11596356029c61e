//! A client of the API that starts a trace with each request, and records what it sent.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use agentbox_testing::System;
use agentbox_testing::eventually_some;
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// An image that no registry has.
pub const UNKNOWN_IMAGE: &str = "no-such-image-of-ours:1";
/// The bytes of the file of a round.
pub const FILE_BYTES: u32 = 100_000;

pub struct Client {
    http: reqwest::Client,
    base: String,
    credentials: Value,
    pub token: String,
    /// The answered requests.
    sent: Mutex<Vec<Sent>>,
}

/// A request that was answered.
#[derive(Clone, Debug)]
pub struct Sent {
    pub method: String,
    /// The template of its route.
    pub route: String,
    pub status: u16,
    /// Until the whole answer was read.
    pub took: Duration,
    /// Whether it had a token that is checked: a login ignores it.
    pub is_authenticated: bool,
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
            sent: Mutex::default(),
        };
        client.token = client.new_token().await;
        client
    }

    /// The requests that were answered since the last call.
    pub fn take_sent(&self) -> Vec<Sent> {
        std::mem::take(&mut *self.sent.lock().unwrap())
    }

    /// Logs in once more.
    pub async fn new_token(&self) -> String {
        let login = Some(self.credentials.clone());
        let (_, reply) = self.ask(Method::POST, "/auth/login", login).await;
        reply["token"].as_str().unwrap().to_owned()
    }

    /// Tries to log in with a wrong password.
    pub async fn refused_login(&self) {
        let mut body = self.credentials.clone();
        body["password"] = "not-the-password".into();
        self.refused(Method::POST, "/auth/login", Some(body), 401)
            .await;
    }

    fn request(&self, method: Method, path: &str, trace: &Trace) -> RequestBuilder {
        let request = self
            .http
            .request(method, format!("{}{path}", self.base))
            .header("traceparent", trace.header());
        match self.token.as_str() {
            "" => request,
            token => request.bearer_auth(token),
        }
    }

    /// Sends a request, reads the whole answer and records it.
    async fn answer(&self, request: RequestBuilder) -> (StatusCode, Vec<u8>) {
        let request = request.timeout(REQUEST_TIMEOUT).build().unwrap();
        let (method, url) = (request.method().to_string(), request.url().clone());
        let has_token = request.headers().contains_key("authorization");
        let begun = Instant::now();
        let response = self.http.execute(request).await.unwrap();
        let status = response.status();
        let body = response.bytes().await.unwrap();
        self.sent.lock().unwrap().push(Sent {
            method,
            route: route_of(url.path()),
            status: status.as_u16(),
            took: begun.elapsed(),
            is_authenticated: has_token && !url.path().ends_with("/auth/login"),
        });
        (status, body.to_vec())
    }

    async fn succeeded(&self, request: RequestBuilder, path: &str) -> Vec<u8> {
        let (status, body) = self.answer(request).await;
        let text = String::from_utf8_lossy(&body);
        assert!(status.is_success(), "{path}: {status} {text}");
        body
    }

    /// Sends a request that must be answered with this status.
    pub async fn refused(&self, method: Method, path: &str, body: Option<Value>, wanted: u16) {
        let mut request = self.request(method, path, &Trace::new());
        if let Some(body) = body {
            request = request.json(&body);
        }
        let (status, body) = self.answer(request).await;
        let text = String::from_utf8_lossy(&body);
        assert_eq!(status.as_u16(), wanted, "{path}: {text}");
    }

    /// Follows a stream of events, which is open as long as the response is kept. It is not recorded.
    pub async fn follow(&self, path: &str) -> Response {
        let request = self.request(Method::GET, path, &Trace::new());
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response
    }

    /// Sends a request that must succeed; gives its trace and the answer, null if it is not JSON.
    pub async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (Trace, Value) {
        let trace = Trace::new();
        let mut request = self.request(method, path, &trace);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let text = self.succeeded(request, path).await;
        (trace, serde_json::from_slice(&text).unwrap_or_default())
    }

    /// Sends a request while a part of the system is missing: any answer is right, also none.
    pub async fn attempt(&self, path: &str, body: &Value) {
        let request = self.request(Method::POST, path, &Trace::new());
        let _ = request.timeout(REQUEST_TIMEOUT).json(body).send().await;
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
        self.set_pool_of(name, image, &small(name)["resources"])
            .await;
    }

    /// Defines a pool with one box of this size.
    pub async fn set_pool_of(&self, name: &str, image: &str, resources: &Value) {
        let body = json!({
            "image": image,
            "resources": resources,
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
        self.exec_of(id, &["true"]).await
    }

    /// Runs this command, which must succeed.
    pub async fn exec_of(&self, id: &str, command: &[&str]) -> Trace {
        let path = format!("/environments/{id}/exec");
        let body = json!({ "command": command });
        let (trace, reply) = self.ask(Method::POST, &path, Some(body)).await;
        assert_eq!(reply["exit_code"], 0, "{reply}");
        trace
    }

    pub async fn upload(&self, id: &str) -> Trace {
        let trace = Trace::new();
        let path = format!("/environments/{id}/files/content?path=/tmp/file");
        let content = vec![b'x'; FILE_BYTES as usize];
        let request = self.request(Method::PUT, &path, &trace);
        self.succeeded(request.body(Body::from(content)), &path)
            .await;
        trace
    }

    pub async fn download(&self, id: &str) -> Trace {
        let trace = Trace::new();
        let path = format!("/environments/{id}/files/content?path=/tmp/file");
        let request = self.request(Method::GET, &path, &trace);
        let content = self.succeeded(request, &path).await;
        assert_eq!(content.len(), FILE_BYTES as usize);
        trace
    }

    /// Starts an execution; gives the path of it.
    pub async fn begin_execution(&self, id: &str, command: &[&str]) -> String {
        let path = format!("/environments/{id}/executions");
        let body = json!({ "command": command });
        let (_, started) = self.ask(Method::POST, &path, Some(body)).await;
        format!("{path}/{}", started["id"].as_str().unwrap())
    }

    /// Starts an execution, waits until it has exited, and gives its standard output.
    pub async fn execution(&self, id: &str, command: &[&str]) -> Vec<u8> {
        let path = self.begin_execution(id, command).await;
        eventually_some("the execution has exited", DEADLINE, async || {
            let (_, reply) = self.ask(Method::GET, &path, None).await;
            (reply["status"] == "exited").then_some(())
        })
        .await;
        let path = format!("{path}/output?stream=stdout");
        let request = self.request(Method::GET, &path, &Trace::new());
        self.succeeded(request, &path).await
    }
}

/// The template of the route with this path.
fn route_of(path: &str) -> String {
    let mut before = "";
    let template = |part| {
        // The name of a collection precedes an id.
        let shown = match before {
            "environments" => "{id}",
            "executions" => "{execution}",
            "pools" => "{pool}",
            "users" => "{user}",
            _ => part,
        };
        before = part;
        shown
    };
    let parts: Vec<&str> = path.split('/').map(template).collect();
    parts.join("/")
}

/// The request for a small environment without a command.
pub fn small(name: &str) -> Value {
    json!({
        "name": name,
        "image": "busybox",
        "resources": { "cpu": "100m", "memory": "64Mi", "storage": "64Mi" },
    })
}
