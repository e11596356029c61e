//! A steady load of requests without retries: every error is a failure.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::follow;

const ONE_REQUEST: Duration = Duration::from_secs(30);
/// The pause between two requests of one worker.
const PAUSE: Duration = Duration::from_millis(100);

/// A client without retries, with or without keep-alive connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    /// The kind of its connections, for failures.
    kind: &'static str,
    base: String,
    token: String,
}

impl Client {
    pub async fn login(url: &str, password: &str, keeps_connections: bool) -> Self {
        let idle = if keeps_connections { usize::MAX } else { 0 };
        let http = reqwest::Client::builder()
            .retry(reqwest::retry::never())
            .pool_max_idle_per_host(idle)
            .connect_timeout(Duration::from_secs(10))
            .build()
            .unwrap();
        let mut client = Self {
            http,
            kind: if keeps_connections { "kept" } else { "fresh" },
            base: format!("{url}/api/v1"),
            token: String::new(),
        };
        let login = json!({ "username": "admin", "password": password });
        let (_, reply) = client
            .ask(Method::POST, "/auth/login", Some(login), 200)
            .await
            .unwrap();
        reply["token"]
            .as_str()
            .unwrap()
            .clone_into(&mut client.token);
        client
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match self.token.as_str() {
            "" => request,
            token => request.bearer_auth(token),
        }
    }

    /// The response, which must have this status.
    pub async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        expected: u16,
    ) -> Result<(StatusCode, Value), String> {
        let mut request = self.request(method.clone(), path).timeout(ONE_REQUEST);
        if let Some(body) = &body {
            request = request.json(body);
        }
        let kind = self.kind;
        let failed = |error: reqwest::Error| format!("{kind} {method} {path}: {error:?}");
        let answer = request.send().await.map_err(failed)?;
        let status = answer.status();
        let text = answer.text().await.map_err(failed)?;
        if status.as_u16() != expected {
            return Err(format!("{method} {path}: {status} {text}"));
        }
        Ok((status, serde_json::from_str(&text).unwrap_or_default()))
    }

    pub async fn create(&self, name: &str, more: Value) -> Result<String, String> {
        let mut body = json!({
            "name": name, "image": "busybox", "timeout": 1800,
            "resources": { "cpu": "100m", "memory": "64Mi", "storage": "64Mi" },
        });
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        let (_, made) = self
            .ask(Method::POST, "/environments", Some(body), 201)
            .await?;
        Ok(made["id"].as_str().unwrap().to_owned())
    }

    pub async fn wait_for_status(&self, id: &str, statuses: &[&str]) -> Result<Value, String> {
        let begun = Instant::now();
        loop {
            let path = format!("/environments/{id}");
            let (_, environment) = self.ask(Method::GET, &path, None, 200).await?;
            let status = environment["status"].as_str().unwrap_or_default();
            if statuses.contains(&status) {
                return Ok(environment);
            }
            if matches!(status, "failed" | "terminated") || begun.elapsed().as_secs() > 120 {
                return Err(format!("{id} is not {statuses:?}: {environment}"));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub async fn exec(&self, id: &str, word: &str) -> Result<(), String> {
        let path = format!("/environments/{id}/exec");
        let body = json!({ "command": ["echo", word] });
        let (_, reply) = self.ask(Method::POST, &path, Some(body), 200).await?;
        match reply["stdout"] == format!("{word}\n") && reply["exit_code"] == 0 {
            true => Ok(()),
            false => Err(format!("{path}: {reply}")),
        }
    }

    pub async fn delete(&self, id: &str) -> Result<(), String> {
        let path = format!("/environments/{id}");
        self.ask(Method::DELETE, &path, None, 204).await.map(drop)
    }
}

/// The results of the workers.
#[derive(Debug, Default)]
pub struct Tally {
    pub creates: usize,
    pub execs: usize,
    pub follows: usize,
    pub lists: usize,
    pub failures: Vec<String>,
}

fn record<D: FnOnce(&mut Tally)>(tally: &Mutex<Tally>, outcome: Result<D, String>, at: Duration) {
    let mut tally = tally.lock().unwrap();
    match outcome {
        Ok(done) => done(&mut tally),
        Err(why) => tally.failures.push(format!("{at:.1?} {why}")),
    }
}

/// Workers that run until they are stopped.
pub struct Load {
    stop: CancellationToken,
    workers: JoinSet<()>,
    tally: Arc<Mutex<Tally>>,
    begun: Instant,
}

impl Load {
    /// Starts the workers on two boxes that write a line every 100 ms.
    pub fn start(keep_alive: &Client, fresh: &Client, boxes: &[String; 2]) -> Self {
        let mut load = Self {
            stop: CancellationToken::new(),
            workers: JoinSet::new(),
            tally: Arc::default(),
            begun: Instant::now(),
        };
        for (index, client) in [keep_alive, fresh].into_iter().enumerate() {
            let id = boxes[index].clone();
            load.work(client, move |client, round| {
                let id = id.clone();
                async move {
                    client.exec(&id, &format!("round-{round}")).await?;
                    Ok(|tally: &mut Tally| tally.execs += 1)
                }
            });
            let id = boxes[index].clone();
            load.work(client, move |client, _| {
                let id = id.clone();
                async move {
                    follow::follow_ten_lines(&client, &id).await?;
                    Ok(|tally: &mut Tally| tally.follows += 1)
                }
            });
            load.work(client, |client, _| async move {
                client.ask(Method::GET, "/environments", None, 200).await?;
                Ok(|tally: &mut Tally| tally.lists += 1)
            });
            load.work(client, move |client, round| async move {
                let id = client
                    .create(&format!("load-{index}-{round}"), json!({}))
                    .await?;
                client.wait_for_status(&id, &["running"]).await?;
                client.exec(&id, "hello").await?;
                client.delete(&id).await?;
                Ok(|tally: &mut Tally| tally.creates += 1)
            });
        }
        load
    }

    fn work<W, R, D>(&mut self, client: &Client, run_round: W)
    where
        W: Fn(Client, usize) -> R + Send + 'static,
        R: Future<Output = Result<D, String>> + Send,
        D: FnOnce(&mut Tally) + Send,
    {
        let (client, stop, tally) = (client.clone(), self.stop.clone(), self.tally.clone());
        let begun = self.begun;
        self.workers.spawn(async move {
            let mut round = 0;
            while !stop.is_cancelled() {
                round += 1;
                let outcome = run_round(client.clone(), round).await;
                record(&tally, outcome, begun.elapsed());
                tokio::time::sleep(PAUSE).await;
            }
        });
    }

    /// The time since the start of the load.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Waits until the results satisfy a condition.
    pub async fn wait_until(&self, what: &str, condition: impl Fn(&Tally) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while !condition(&self.tally.lock().unwrap()) {
            assert!(Instant::now() < deadline, "not reached: {what}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    pub async fn stop(mut self) -> Tally {
        self.stop.cancel();
        while let Some(ended) = self.workers.join_next().await {
            ended.unwrap();
        }
        std::mem::take(&mut *self.tally.lock().unwrap())
    }
}
