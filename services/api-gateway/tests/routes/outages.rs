//! Outages of parts of the system: the errors, their delay, and the recovery. Each test has its
//! own system, with one replica of each service unless it says otherwise.

mod replaced;
mod services;
mod stopped_gateway;
mod survival;

use std::time::{Duration, Instant};

use agentbox_testing::{Options, System};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::boxes::{script, small};
use crate::support::caller::{Caller, admin_of};
use crate::support::sse::Events;
use crate::support::system::{options, unlimited};
use crate::support::{eventually, repeat_until_below};

/// The longest time to an answer: the sum of the gateway's deadlines, with a margin for a loaded
/// machine.
const MAX_DELAY: Duration = Duration::from_secs(8);

async fn start_system() -> (System, Caller) {
    start_system_with(unlimited(options())).await
}

async fn start_system_with(options: Options) -> (System, Caller) {
    let system = System::start(options).await.unwrap();
    let admin = admin_of(&system).await;
    (system, admin)
}

/// A part that stays killed until this is dropped. Its supervisor is stopped meanwhile, because it
/// would restart the part.
struct Killed {
    supervisor: Pid,
}

impl Killed {
    fn kill(system: &System, part: &str) -> Self {
        let pid = system.pids(part)[&0];
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let parent = status
            .lines()
            .find_map(|line| line.strip_prefix("PPid:"))
            .unwrap();
        let supervisor = Pid::from_raw(parent.trim().parse().unwrap());
        kill(supervisor, Signal::SIGSTOP).unwrap();
        let killed = Self { supervisor };
        assert!(system.kill(part, 0));
        killed
    }
}

impl Drop for Killed {
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
async fn expect_all_refused(admin: &Caller, id: &str, may_time_out: bool) {
    let exec = json!({"command": ["true"]});
    let path = format!("/environments/{id}");
    let (run, logs) = (format!("{path}/exec"), format!("{path}/logs"));
    eventually("the lease of the gateway has run out", async || {
        (admin.get("/auth/me").await.status != 200).then_some(())
    })
    .await;
    repeat_until_below(MAX_DELAY, async || {
        let begun = Instant::now();
        let (me, get, list, create, exec, logs, login) = tokio::join!(
            admin.get("/auth/me"),
            admin.get(&path),
            admin.get("/environments"),
            async { admin.post("/environments", &small()).await },
            admin.post(&run, &exec),
            admin.get(&logs),
            admin.login("nobody", "nonsense"),
        );
        let took = begun.elapsed();
        for answer in [me, get, list, create, exec, logs, login] {
            if may_time_out && answer.status == 504 {
                answer.expect_error(504, "timeout");
            } else {
                answer.expect_error(503, "unavailable");
                assert!(answer.header("retry-after").parse::<u32>().unwrap() >= 1);
            }
        }
        took
    })
    .await;
}

/// Asserts that the system becomes unhealthy, that the gateway is live, and that its readiness
/// probe answers with the status `ready`.
async fn expect_unhealthy(admin: &Caller, ready: u16) -> Value {
    let body = eventually("it is unhealthy", async || {
        let begun = Instant::now();
        let answer = admin.get("/health").await;
        assert!(begun.elapsed() < MAX_DELAY, "{:?}", begun.elapsed());
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
    admin.get("/health/live").await.expect_status(200);
    eventually("the readiness probe changes", async || {
        (admin.get("/health/ready").await.status == ready).then_some(())
    })
    .await;
    body
}

async fn expect_recovery(admin: &Caller, id: &str) {
    eventually("it is healthy", async || {
        (admin.get("/health").await.status == 200).then_some(())
    })
    .await;
    admin.get("/health/ready").await.expect_status(200);
    eventually("commands run", async || {
        let body = json!({"command": ["echo", "hi"]});
        let answer = admin.post(&format!("/environments/{id}/exec"), &body).await;
        (answer.status == 200).then(|| assert_eq!(answer.json()["stdout"], "hi\n"))
    })
    .await;
    admin.create_running(&small()).await;
}

#[tokio::test]
async fn bus_outage_returns_503_and_followed_logs_resume() {
    let (system, admin) = start_system().await;
    let id = admin.create_running(&small()).await;
    let counting = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo $i; sleep 0.05; done; sleep 20";
    let counting = admin.create_running(&script(counting)).await;
    let path = format!("/environments/{counting}/logs?follow=true");
    let mut events = Events::open(&admin, &path).await;
    events.take(3).await;
    {
        let _killed = Killed::kill(&system, "nats");
        // A request in flight when the bus was killed runs into its deadline.
        expect_all_refused(&admin, &id, true).await;
        expect_unhealthy(&admin, 503).await;
        expect_all_refused(&admin, &id, false).await;
    }
    expect_recovery(&admin, &id).await;
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
    let (system, admin) = start_system().await;
    let id = admin.create_running(&small()).await;
    {
        let _frozen = Frozen::new(&system, "nats");
        expect_all_refused(&admin, &id, true).await;
    }
    expect_recovery(&admin, &id).await;
    system.stop().await;
}

#[tokio::test]
async fn database_outage_returns_503_and_recovers() {
    let (system, admin) = start_system().await;
    let id = admin.create_running(&small()).await;
    {
        let _killed = Killed::kill(&system, "postgres");
        expect_all_refused(&admin, &id, false).await;
        let body = expect_unhealthy(&admin, 200).await;
        assert!(body["message"].is_string());
    }
    expect_recovery(&admin, &id).await;
    system.stop().await;
}

#[tokio::test]
async fn runtime_outage_is_unhealthy_and_recovers() {
    let (system, admin) = start_system().await;
    let id = admin.create_running(&small()).await;
    {
        let _killed = Killed::kill(&system, "containerd");
        let body = expect_unhealthy(&admin, 200).await;
        assert_eq!(body["kubernetes"]["connected"], false);
        // Running environments continue.
        assert_eq!(admin.sh(&id, "echo hi").await["stdout"], "hi\n");
    }
    expect_recovery(&admin, &id).await;
    system.stop().await;
}
