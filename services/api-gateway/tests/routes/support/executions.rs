//! Executions for the tests.

use reqwest::Method;
use serde_json::{Value, json};

use super::answer::Answer;
use super::caller::{Caller, send, send_with_retry};
use super::eventually;
use super::sse::{Event, Events};

/// An execution that a test has started.
pub struct Execution {
    pub caller: Caller,
    pub id: String,
    pub path: String,
    /// The answer to its start.
    pub record: Value,
}

/// Output as a client of events has received it.
#[derive(Debug, Default)]
pub struct Received {
    pub stdout: String,
    pub stderr: String,
    /// The bytes of all gaps.
    pub missing: u64,
    /// The data of the event `end`.
    pub end: Value,
}

/// Whether the execution with this record may still change.
pub fn is_active(record: &Value) -> bool {
    record["status"] == "starting" || record["status"] == "running"
}

impl Caller {
    pub async fn start(&self, environment: &str, body: &Value) -> Execution {
        let path = format!("/environments/{environment}/executions");
        let request = self.request(Method::POST, &path).json(body);
        let record = send_with_retry(request).await.expect_status(201);
        let id = record["id"].as_str().unwrap().to_owned();
        Execution {
            caller: self.clone(),
            path: format!("{path}/{id}"),
            id,
            record,
        }
    }

    /// Starts a shell script.
    pub async fn start_sh(&self, environment: &str, text: &str) -> Execution {
        self.start(environment, &json!({"command": ["sh", "-c", text]}))
            .await
    }
}

impl Execution {
    pub async fn get(&self) -> Value {
        send_with_retry(self.caller.request(Method::GET, &self.path))
            .await
            .expect_status(200)
    }

    /// Waits until it has ended.
    pub async fn ended(&self) -> Value {
        let path = format!("{}?wait=30", self.path);
        eventually("the execution has ended", async || {
            let request = self.caller.request(Method::GET, &path);
            let record = send_with_retry(request).await.expect_status(200);
            (!is_active(&record)).then_some(record)
        })
        .await
    }

    /// The kept bytes of a stream.
    pub async fn bytes(&self, stream: &str) -> Vec<u8> {
        let path = format!("{}/output?stream={stream}", self.path);
        let answer = self.caller.request(Method::GET, &path).send().await;
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 200);
        answer.bytes().await.unwrap().to_vec()
    }

    /// The kept text of stdout.
    pub async fn stdout(&self) -> String {
        String::from_utf8(self.bytes("stdout").await).unwrap()
    }

    pub async fn follow(&self) -> Events {
        Events::open(&self.caller, &self.output("follow=true")).await
    }

    /// Resumes at one gateway, after an event.
    pub async fn resume(&self, gateway: usize, last: &str) -> Events {
        let path = self.output("follow=true");
        let resumed = Events::open_after(&self.caller, gateway, &path, Some(last)).await;
        match resumed.unwrap() {
            Ok(events) => events,
            Err(answer) => panic!("{answer:?}"),
        }
    }

    /// Follows from the beginning until the end.
    pub async fn received(&self) -> Received {
        Received::of(self.follow().await.read_to_end().await)
    }

    /// The path of its output.
    pub fn output(&self, query: &str) -> String {
        format!("{}/output?{query}", self.path)
    }

    /// The name under which [`super::socket::Socket`] attaches to it.
    pub fn socket(&self) -> &str {
        self.path.strip_prefix("/environments/").unwrap()
    }

    pub async fn post(&self, operation: &str, body: &Value) -> Answer {
        let path = format!("{}/{operation}", self.path);
        self.caller.post(&path, body).await
    }

    pub async fn stdin(&self, query: &str, body: impl Into<reqwest::Body>) -> Answer {
        let path = format!("{}/stdin?{query}", self.path);
        send(self.caller.request(Method::POST, &path).body(body)).await
    }
}

impl Received {
    /// Checks that each event begins where the one before has ended, and has an id of both offsets.
    pub fn of(events: Vec<Event>) -> Self {
        let mut received = Self::default();
        let mut at = [0_u64; 2];
        for event in events {
            let data = event.json();
            let stream = usize::from(data["stream"] == "stderr");
            match event.name.as_str() {
                "message" => {
                    assert_eq!(data["offset"], at[stream], "{data}");
                    let text = data["data"].as_str().unwrap();
                    at[stream] += text.len() as u64;
                    match stream {
                        0 => received.stdout.push_str(text),
                        _ => received.stderr.push_str(text),
                    }
                }
                "gap" => {
                    let bytes = data["bytes"].as_u64().unwrap();
                    assert!(bytes > 0, "{data}");
                    at[stream] += bytes;
                    received.missing += bytes;
                }
                "end" => received.end = data,
                other => panic!("{other}: {data}"),
            }
            let id = format!("{}-{}", at[0], at[1]);
            assert_eq!(event.id.as_deref(), Some(id.as_str()), "{}", event.data);
        }
        let total = [&received.end["stdout_bytes"], &received.end["stderr_bytes"]];
        assert_eq!(total, [&json!(at[0]), &json!(at[1])]);
        received
    }
}
