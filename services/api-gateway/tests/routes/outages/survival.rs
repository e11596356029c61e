//! Executions survive the death of each part of the system.
//!
//! In each test fifty commands write a counter at full speed, every second one with `block`, and each
//! has a follower. Then a part is killed. A follower whose connection is lost resumes after its last
//! event.

use std::cell::Cell;
use std::fmt::Write as _;

use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream;
use serde_json::{Value, json};

use super::start_system;
use crate::support::boxes::small;
use crate::support::caller::Caller;
use crate::support::executions::{Execution, is_active};
use crate::support::sse::Events;
use crate::support::{TIMEOUT, eventually};

const COMMANDS: usize = 50;
/// Begins when another process opens the FIFO `go`, and ends when there is the file `stop`.
const COUNTING: &str = ": < /tmp/go; n=0; \
    while [ ! -e /tmp/stop ]; do seq $((n+10000001)) $((n+10010000)); n=$((n+10000)); done; exit 7";
/// The first number of [`COUNTING`].
const FIRST: u64 = 10_000_001;
/// The length of each of its lines, in bytes.
const LINE: usize = 9;
/// How far each follower must come before and after the kill, in bytes.
const STRETCH: u64 = 128 * 1024;

/// The output of [`COUNTING`] from an offset on.
fn counter(offset: u64, length: usize) -> String {
    let line = LINE as u64;
    let skipped = usize::try_from(offset % line).unwrap();
    let first = FIRST + offset / line;
    let count = (skipped + length).div_ceil(LINE) as u64;
    let mut text = String::with_capacity(skipped + length + LINE);
    for number in first..first + count {
        writeln!(text, "{number}").unwrap();
    }
    text.truncate(skipped + length);
    text.split_off(skipped)
}

#[test]
fn counter_is_the_same_from_every_offset() {
    assert_eq!(counter(0, 18), "10000001\n10000002\n");
    assert_eq!(counter(7, 4), "1\n10");
    assert_eq!(counter(18, 0), "");
    let all = counter(0, 900);
    for offset in 0..50 {
        assert_eq!(counter(offset as u64, 850), all[offset..offset + 850]);
    }
}

/// A command and its follower.
struct Followed {
    execution: Execution,
    blocks: bool,
    /// The offset that the follower has reached.
    at: Cell<u64>,
    /// How often its connection was lost.
    lost: Cell<usize>,
}

impl Followed {
    async fn start(caller: &Caller, id: &str, blocks: bool) -> Self {
        let on_full = if blocks { "block" } else { "drop" };
        let body = json!({
            "command": ["sh", "-c", COUNTING],
            "on_full": on_full,
            "keep_bytes": 65536,
        });
        Self {
            execution: caller.start(id, &body).await,
            blocks,
            at: Cell::new(0),
            lost: Cell::new(0),
        }
    }

    async fn connect(&self, last: Option<&str>) -> Events {
        let path = self.execution.output("follow=true");
        eventually("a follower connects", async || {
            match Events::open_after(&self.execution.caller, 0, &path, last).await {
                Ok(Ok(events)) => Some(events),
                Ok(Err(answer)) => {
                    assert!(matches!(answer.status, 502..=504), "{answer:?}");
                    None
                }
                // The gateway is being restarted.
                Err(_) => None,
            }
        })
        .await
    }

    /// Waits until it has ended. The fifty commands and their followers use all processors, so a part may
    /// not answer in time.
    async fn ended(&self) -> Value {
        let path = format!("{}?wait=30", self.execution.path);
        eventually("the command has ended", async || {
            let answer = self.execution.caller.get(&path).await;
            if answer.status != 200 {
                assert!(matches!(answer.status, 502..=504), "{answer:?}");
                return None;
            }
            let record = answer.json();
            (!is_active(&record)).then_some(record)
        })
        .await
    }

    /// Follows until the end, which it returns.
    async fn follow(&self) -> Value {
        let mut last: Option<String> = None;
        loop {
            let mut events = self.connect(last.as_deref()).await;
            while let Some(event) = events.next().await {
                let data = event.json();
                match event.name.as_str() {
                    "message" => self.accept(&data),
                    "gap" if !self.blocks => self.advance(data["bytes"].as_u64().unwrap()),
                    "end" => {
                        assert_eq!(data["stdout_bytes"], self.at.get(), "{data}");
                        return data;
                    }
                    other => panic!("{other}: {data}"),
                }
                assert_eq!(event.id, Some(format!("{}-0", self.at.get())));
                last = event.id;
            }
            self.lost.set(self.lost.get() + 1);
        }
    }

    /// Checks that output is what follows.
    fn accept(&self, data: &Value) {
        let text = data["data"].as_str().unwrap();
        assert_eq!(data["offset"], self.at.get());
        let expected = counter(self.at.get(), text.len());
        assert!(text == expected, "other output at {}", self.at.get());
        self.advance(text.len() as u64);
    }

    fn advance(&self, bytes: u64) {
        self.at.set(self.at.get() + bytes);
    }
}

/// Waits until each follower has come further.
async fn progress(followed: &[Followed]) {
    let before: Vec<u64> = followed.iter().map(|one| one.at.get()).collect();
    eventually("every follower goes on", async || {
        let mut pairs = followed.iter().zip(&before);
        let have_all = pairs.all(|(one, before)| one.at.get() >= before + STRETCH);
        have_all.then_some(())
    })
    .await;
}

/// Kills a part of the system while commands write and are followed.
async fn expect_survival(part: &str) {
    let (system, admin) = start_system().await;
    let mut body = small();
    body["resources"] = json!({"cpu": "500m", "memory": "512Mi", "storage": "64Mi"});
    let id = admin.create_running(&body).await;
    let ended = admin.start_sh(&id, "exit 3").await;
    let outcome = ended.ended().await;
    admin.sh(&id, "mkfifo /tmp/go").await;
    let starts = (0..COMMANDS).map(|n| Followed::start(&admin, &id, n % 2 == 0));
    // A few at once: the box has half a processor.
    let followed: Vec<Followed> = stream::iter(starts).buffered(5).collect().await;
    let killing = async {
        // It stays open for commands that have not come to it yet.
        admin.start_sh(&id, "exec sleep 3600 > /tmp/go").await;
        progress(&followed).await;
        assert!(system.kill(part, 0));
        system.wait_ready(TIMEOUT).await.unwrap();
        progress(&followed).await;
        let path = format!("/environments/{id}/exec");
        let stop = json!({"command": ["touch", "/tmp/stop"]});
        eventually("the commands are stopped", async || {
            (admin.post(&path, &stop).await.status == 200).then_some(())
        })
        .await;
    };
    let is_gateway = part == "api-gateway";
    let waiting = async {
        match is_gateway {
            true => Value::Null,
            false => followed[0].ended().await,
        }
    };
    let following = join_all(followed.iter().map(Followed::follow));
    let (ends, (), waited) = tokio::join!(following, killing, waiting);
    for (one, end) in followed.iter().zip(&ends) {
        assert_eq!(
            (&end["status"], &end["exit_code"]),
            (&json!("exited"), &json!(7))
        );
        assert_eq!(one.execution.get().await, *end);
        let lost = one.lost.get();
        assert_eq!(lost > 0, is_gateway, "connections lost: {lost}");
    }
    assert!(is_gateway || waited == ends[0], "{waited}");
    assert_eq!(ended.get().await, outcome);
    system.stop().await;
}

#[tokio::test]
async fn killed_gateway_loses_no_execution_and_no_output() {
    expect_survival("api-gateway").await;
}

#[tokio::test]
async fn killed_exec_proxy_loses_no_execution_and_no_output() {
    expect_survival("exec-proxy").await;
}

#[tokio::test]
async fn killed_scheduler_loses_no_execution_and_no_output() {
    expect_survival("scheduler").await;
}

#[tokio::test]
async fn killed_bus_loses_no_execution_and_no_output() {
    expect_survival("nats").await;
}

#[tokio::test]
async fn killed_database_loses_no_execution_and_no_output() {
    expect_survival("postgres").await;
}
