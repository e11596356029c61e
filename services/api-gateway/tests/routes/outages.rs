//! Outages of parts of the system: the errors, their delay, and the recovery. Each test has its
//! own system with one replica of each service.

mod services;

use std::time::{Duration, Instant};

use agentbox_testing::{Options, System};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::boxes::{script, small};
use crate::support::caller::{Caller, admin_of};
use crate::support::eventually;
use crate::support::sse::Events;
use crate::support::system::{options, unlimited};

/// Above the sum of the gateway's deadlines, with some time for a loaded machine.
const SOON: Duration = Duration::from_secs(8);

async fn own() -> (System, Caller) {
    own_with(unlimited(options())).await
}

async fn own_with(options: Options) -> (System, Caller) {
    let system = System::start(options).await.unwrap();
    let admin = admin_of(&system).await;
    (system, admin)
}

/// A part that stays killed until this is dropped: its supervisor, which would restart it, is
/// stopped.
struct Gone {
    supervisor: Pid,
}

impl Gone {
    fn kill(system: &System, part: &str) -> Self {
        let pid = system.pids(part)[&0];
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let parent = status
            .lines()
            .find_map(|line| line.strip_prefix("PPid:"))
            .unwrap();
        let supervisor = Pid::from_raw(parent.trim().parse().unwrap());
        kill(supervisor, Signal::SIGSTOP).unwrap();
        let gone = Self { supervisor };
        assert!(system.kill(part, 0));
        gone
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = kill(self.supervisor, Signal::SIGCONT);
    }
}

/// A part that is stopped until this is dropped.
struct Frozen<'a> {
    system: &'a System,
    part: &'static str,
}

impl<'a> Frozen<'a> {
    fn new(system: &'a System, part: &'static str) -> Self {
        assert!(system.signal(part, 0, Signal::SIGSTOP));
        Self { system, part }
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.system.signal(self.part, 0, Signal::SIGCONT);
    }
}

/// Asserts that all requests are refused with 503. With `may_time_out`, also with 504: the part
/// does not answer at all.
async fn everything_is_refused(admin: &Caller, id: &str, may_time_out: bool) {
    let exec = json!({"command": ["true"]});
    let path = format!("/environments/{id}");
    let (run, logs) = (format!("{path}/exec"), format!("{path}/logs"));
    let asked = Instant::now();
    let (me, get, list, create, exec, logs, login) = tokio::join!(
        admin.get("/auth/me"),
        admin.get(&path),
        admin.get("/environments"),
        async { admin.post("/environments", &small()).await },
        admin.post(&run, &exec),
        admin.get(&logs),
        admin.login("nobody", "nonsense"),
    );
    let took = asked.elapsed();
    assert!(took < SOON, "{took:?}");
    for answer in [me, get, list, create, exec, logs, login] {
        if may_time_out && answer.status == 504 {
            answer.is_error(504, "timeout");
        } else {
            answer.is_error(503, "unavailable");
            assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 1);
        }
    }
}

/// Asserts that the system is unhealthy, and this process is live and perhaps ready.
async fn is_unhealthy(admin: &Caller, ready: u16) -> Value {
    let body = eventually("it is unhealthy", async || {
        let asked = Instant::now();
        let answer = admin.get("/health").await;
        assert!(asked.elapsed() < SOON, "{:?}", asked.elapsed());
        (answer.status == 503).then(|| answer.json())
    })
    .await;
    assert_eq!(body["status"], "unhealthy");
    assert_eq!(
        (&body["error"], &body["code"]),
        (&json!("unavailable"), &json!(503))
    );
    assert!(
        body["capacity"].is_object() && body["kubernetes"].is_object(),
        "{body}"
    );
    admin.get("/health/live").await.is(200);
    eventually("readiness is said", async || {
        (admin.get("/health/ready").await.status == ready).then_some(())
    })
    .await;
    body
}

async fn everything_works_again(admin: &Caller, id: &str) {
    eventually("it is healthy", async || {
        (admin.get("/health").await.status == 200).then_some(())
    })
    .await;
    admin.get("/health/ready").await.is(200);
    eventually("commands run", async || {
        let body = json!({"command": ["echo", "hi"]});
        let answer = admin.post(&format!("/environments/{id}/exec"), &body).await;
        (answer.status == 200).then(|| assert_eq!(answer.json()["stdout"], "hi\n"))
    })
    .await;
    admin.running(&small()).await;
}

#[tokio::test]
async fn bus_outage_returns_503_and_followed_logs_resume() {
    let (system, admin) = own().await;
    let id = admin.running(&small()).await;
    let counting = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo $i; sleep 0.05; done; sleep 20";
    let counting = admin.running(&script(counting)).await;
    let path = format!("/environments/{counting}/logs?follow=true");
    let mut events = Events::open(&admin, &path).await;
    events.take(3).await;
    {
        let _gone = Gone::kill(&system, "nats");
        // A request in flight when the bus was killed runs into its deadline.
        everything_is_refused(&admin, &id, true).await;
        is_unhealthy(&admin, 503).await;
        everything_is_refused(&admin, &id, false).await;
    }
    everything_works_again(&admin, &id).await;
    let rest = events.take(197).await;
    let seen: Vec<String> = rest
        .iter()
        .map(|event| {
            format!(
                "{} {}",
                event.name,
                event.json()["message"].as_str().unwrap_or("")
            )
        })
        .collect();
    let expected: Vec<String> = (4..=200).map(|n| format!("message {n}")).collect();
    assert_eq!(seen, expected);
    system.stop().await;
}

#[tokio::test]
async fn unresponsive_bus_delays_requests_at_most_their_deadline() {
    let (system, admin) = own().await;
    let id = admin.running(&small()).await;
    {
        let _frozen = Frozen::new(&system, "nats");
        everything_is_refused(&admin, &id, true).await;
    }
    everything_works_again(&admin, &id).await;
    system.stop().await;
}

#[tokio::test]
async fn database_outage_returns_503_and_recovers() {
    let (system, admin) = own().await;
    let id = admin.running(&small()).await;
    {
        let _gone = Gone::kill(&system, "postgres");
        everything_is_refused(&admin, &id, false).await;
        let body = is_unhealthy(&admin, 200).await;
        assert!(body["message"].is_string());
    }
    everything_works_again(&admin, &id).await;
    system.stop().await;
}

#[tokio::test]
async fn runtime_outage_is_unhealthy_and_recovers() {
    let (system, admin) = own().await;
    let id = admin.running(&small()).await;
    {
        let _gone = Gone::kill(&system, "containerd");
        let body = is_unhealthy(&admin, 200).await;
        assert_eq!(body["kubernetes"]["connected"], false);
        // Running environments continue.
        assert_eq!(admin.sh(&id, "echo hi").await["stdout"], "hi\n");
    }
    everything_works_again(&admin, &id).await;
    system.stop().await;
}
