//! Restarts one service of a running system, as `make dev` does.

use std::process::Output;
use std::time::Duration;

use agentbox_testing::{Options, System};
use futures::StreamExt as _;
use serde_json::json;
use tokio::process::Command;

use crate::api::{Api, small};

const DEADLINE: Duration = Duration::from_secs(60);
/// A number every 50 ms.
const COUNTING: &str = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.05; done";

async fn restart(system: &System, service: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_agentbox-local"))
        .arg("--dir")
        .arg(system.directory())
        .args(["restart", service])
        .output()
        .await
        .unwrap()
}

/// The log of a box that counts, followed over one connection.
struct Follow {
    bytes: futures::stream::BoxStream<'static, Vec<u8>>,
    text: String,
    last: u64,
}

impl Follow {
    async fn open(system: &System, api: &Api, id: &str) -> Self {
        let url = format!("{}/api/v1/environments/{id}/logs?follow=true", system.url());
        let request = reqwest::Client::new().get(url).bearer_auth(&api.token);
        let response = request.send().await.unwrap().error_for_status().unwrap();
        let bytes = response.bytes_stream().map(|chunk| chunk.unwrap().to_vec());
        Self {
            bytes: bytes.boxed(),
            text: String::new(),
            last: 0,
        }
    }

    /// Reads the next `count` numbers, which follow the last one without a gap.
    async fn read(&mut self, count: u64) {
        let end = self.last + count;
        while self.last < end {
            let chunk = tokio::time::timeout(DEADLINE, self.bytes.next()).await;
            let chunk = chunk.expect("the log is silent").expect("the stream ended");
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
            while let Some((line, rest)) = self.text.split_once('\n') {
                if let Some(data) = line.strip_prefix("data:")
                    && let Ok(entry) = serde_json::from_str::<serde_json::Value>(data)
                    && let Some(message) = entry["message"].as_str()
                {
                    let number: u64 = message.trim().parse().unwrap();
                    assert!(self.last == 0 || number == self.last + 1, "{line}");
                    self.last = number;
                }
                self.text = rest.to_owned();
            }
        }
    }
}

#[tokio::test]
async fn restart_of_one_service_keeps_sessions_of_the_others() {
    let system = System::start(Options::default().replicas(2)).await.unwrap();
    let api = Api::of(&system).await;
    let mut body = small("counts");
    body["command"] = json!(["sh", "-c", COUNTING]);
    let created = api.create_as(body).await;
    let id = created["id"].as_str().unwrap();
    api.wait_for_status(id, "running").await;
    let mut follow = Follow::open(&system, &api, id).await;
    follow.read(5).await;

    let (schedulers, proxies) = (system.pids("scheduler"), system.pids("exec-proxy"));
    let (gateways, auths) = (system.pids("api-gateway"), system.pids("auth"));
    // A command that runs while both replicas are restarted.
    let command = "until [ -e /restarted ]; do sleep 0.05; done; echo unbroken";
    let (output, exec) = tokio::join!(
        async {
            let output = restart(&system, "scheduler").await;
            follow.read(5).await;
            api.exec(id, "touch /restarted").await;
            output
        },
        api.exec(id, command),
    );
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}");
    for name in ["scheduler-0 is ready", "scheduler-1 is ready"] {
        assert!(stdout.contains(name), "{stdout}");
    }
    assert_eq!(exec["stdout"], "unbroken\n", "{exec}");
    assert_eq!(api.retries.get(), 0, "no request failed");
    follow.read(5).await;
    let restarted = system.pids("scheduler");
    assert!(
        restarted.len() == 2 && restarted.iter().all(|(n, pid)| schedulers[n] != *pid),
        "{schedulers:?} {restarted:?}"
    );
    assert_eq!(system.pids("exec-proxy"), proxies);
    assert_eq!(system.pids("api-gateway"), gateways);
    assert_eq!(system.pids("auth"), auths);
    // The new processes work.
    let another = api.create("another").await;
    api.wait_for_status(another["id"].as_str().unwrap(), "running")
        .await;
    system.stop().await;
}

#[tokio::test]
async fn restart_without_a_running_instance_fails_with_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_agentbox-local"))
        .arg("--dir")
        .arg(directory.path())
        .args(["restart", "scheduler"])
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        stderr,
        "agentbox-local: AgentBox is not running; start it with `make up`\n"
    );
}
