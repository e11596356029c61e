//! Callers of the API: a client machine with its own address, and a user on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agentbox_testing::System;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep};

use super::TIMEOUT;
use super::answer::Answer;
use super::system::shared;

/// The password of every user that a test creates.
pub const PASSWORD: &str = "correct horse battery";
/// Parts of the messages of requests whose work has not begun: no connection to Postgres within 2 s, no entry
/// of the audit trail within 2 s, no answer of auth to the credential within 3 s.
const NOT_BEGUN: [&str; 3] = [
    "the database cannot be reached",
    "the audit trail cannot be written",
    "auth.authenticate did not reply",
];

/// Sends requests to the gateways in turn, so that no test depends on state of one replica.
#[derive(Clone)]
pub struct Caller {
    http: reqwest::Client,
    gateways: Arc<[String]>,
    turn: Arc<AtomicUsize>,
    /// The client address in `X-Forwarded-For`.
    pub address: String,
    pub token: Option<String>,
    /// Whether requests are repeated that had to wait too long before they began; see
    /// [`send_until_served`].
    is_patient: bool,
}

/// A user who has logged in.
#[derive(Clone)]
pub struct User {
    pub id: String,
    pub username: String,
    pub caller: Caller,
}

static ADMIN: OnceCell<Caller> = OnceCell::const_new();

/// The shared system's first administrator.
pub async fn admin() -> &'static Caller {
    ADMIN
        .get_or_init(async || admin_of(shared().await).await.patient())
        .await
}

pub async fn admin_of(system: &System) -> Caller {
    let anonymous = Caller::without_token_on(system);
    let token = anonymous
        .token_of(&system.admin.username, &system.admin.password)
        .await;
    anonymous.with_token(&token)
}

/// A new user of the shared system.
pub async fn new_user() -> User {
    new_user_with_role(admin().await, "user").await
}

/// A new user with this role, at its own address.
pub async fn new_user_with_role(admin: &Caller, role: &str) -> User {
    let username = format!("u{:016x}", rand::random::<u64>());
    let body = json!({
        "username": username,
        "email": format!("{username}@example.com"),
        "password": PASSWORD,
        "role": role,
    });
    let request = admin.request(Method::POST, "/users").json(&body);
    let id = send_with_retry(request).await.expect_status(201)["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let caller = admin.at_new_address();
    let token = caller.token_of(&username, PASSWORD).await;
    caller.into_user(id, username, &token)
}

impl User {
    /// Another login of the same user.
    pub async fn log_in_again(&self) -> Caller {
        let token = self.caller.token_of(&self.username, PASSWORD).await;
        self.caller.with_token(&token)
    }

    /// Creates a key with this request; returns its id and a caller that uses it.
    pub async fn key(&self, body: Value) -> (String, Caller) {
        let request = self.caller.request(Method::POST, "/api-keys").json(&body);
        let created = send_with_retry(request).await.expect_status(201);
        let key = created["key"].as_str().unwrap();
        (
            created["id"].as_str().unwrap().to_owned(),
            self.caller.with_token(key),
        )
    }

    /// A key with one permission on one environment.
    pub async fn key_for(&self, environment: &str, permission: &str) -> Caller {
        let granted = json!([{"environment_id": environment, "permission": permission}]);
        self.key(json!({"permissions": granted})).await.1
    }
}

impl Caller {
    /// A caller without a credential, at a new client address.
    pub fn without_token_on(system: &System) -> Self {
        let gateways = &system.gateway.as_ref().unwrap().replica_urls;
        Self {
            // Each test has its own async runtime: no connection may outlive its test.
            http: reqwest::Client::builder()
                .pool_max_idle_per_host(0)
                .timeout(Duration::from_secs(120))
                .build()
                .unwrap(),
            gateways: gateways.iter().cloned().collect(),
            turn: Arc::default(),
            address: random_address(),
            token: None,
            is_patient: false,
        }
    }

    fn into_user(self, id: String, username: String, token: &str) -> User {
        let caller = self.with_token(token);
        User {
            id,
            username,
            caller,
        }
    }

    /// The same client address with another credential.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            token: Some(token.to_owned()),
            ..self.clone()
        }
    }

    /// The same client address without a credential.
    #[must_use]
    pub fn without_token(&self) -> Self {
        Self {
            token: None,
            ..self.clone()
        }
    }

    /// Another client address, without a credential.
    #[must_use]
    pub fn at_new_address(&self) -> Self {
        Self {
            address: random_address(),
            ..self.without_token()
        }
    }

    pub fn gateways(&self) -> usize {
        self.gateways.len()
    }

    /// The next gateway in turn.
    pub fn next_gateway(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed) % self.gateways.len()
    }

    pub fn url(&self, gateway: usize, path: &str) -> String {
        format!("{}/api/v1{path}", self.gateways[gateway])
    }

    /// `host:port` of a gateway, for raw TCP and for paths without `/api/v1`.
    pub fn host(&self, gateway: usize) -> &str {
        self.gateways[gateway].trim_start_matches("http://")
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.request_on(self.next_gateway(), method, path)
    }

    pub fn request_on(&self, gateway: usize, method: Method, path: &str) -> RequestBuilder {
        let request = self
            .http
            .request(method, self.url(gateway, path))
            .header("x-forwarded-for", &self.address);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// The same caller, whose requests are repeated that had to wait too long before they began.
    #[must_use]
    pub fn patient(self) -> Self {
        Self {
            is_patient: true,
            ..self
        }
    }

    /// Sends a request of this caller.
    pub async fn send(&self, request: RequestBuilder) -> Answer {
        if self.is_patient {
            send_until_served(request).await
        } else {
            send(request).await
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path)).await
    }

    pub async fn get_on(&self, gateway: usize, path: &str) -> Answer {
        self.send(self.request_on(gateway, Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::PUT, path).json(body)).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        self.send(self.request(Method::PATCH, path).json(body))
            .await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// Logs in and returns the token.
    async fn token_of(&self, username: &str, password: &str) -> String {
        let body = json!({"username": username, "password": password});
        let request = self.request(Method::POST, "/auth/login").json(&body);
        let reply = send_with_retry(request).await.expect_status(200);
        reply["token"].as_str().unwrap().to_owned()
    }

    pub async fn login(&self, username: &str, password: &str) -> Answer {
        let body = json!({"username": username, "password": password});
        self.post("/auth/login", &body).await
    }
}

pub async fn send(request: RequestBuilder) -> Answer {
    Answer::read(request.send().await.unwrap()).await
}

/// Sends a request and retries 503 as `Retry-After` asks: for requests that a test needs but does
/// not test. An overloaded machine answers 503.
pub async fn send_with_retry(request: RequestBuilder) -> Answer {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let answer = send(request.try_clone().unwrap()).await;
        if answer.status != 503 || Instant::now() > deadline {
            return answer;
        }
        let wait = answer.header("retry-after").parse().unwrap();
        sleep(Duration::from_secs(wait)).await;
    }
}

/// Sends a request, and repeats one that was not served because Postgres, NATS or auth did not answer in
/// time: on a system whose parts run, that is a machine that stalls. All other answers are returned.
async fn send_until_served(request: RequestBuilder) -> Answer {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let answer = send(request.try_clone().unwrap()).await;
        let is_served = !matches!(answer.status, 503 | 504)
            || !NOT_BEGUN.iter().any(|part| answer.text.contains(part));
        if is_served || Instant::now() > deadline {
            return answer;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// A random address of 10.0.0.0/8, so that tests do not share one.
fn random_address() -> String {
    let [a, b, c] = rand::random::<[u8; 3]>();
    format!("10.{a}.{b}.{c}")
}
