//! Outages of the gateway and of exec-proxies.

use std::time::{Duration, Instant};

use agentbox_bus::Session;
use agentbox_contracts::exec::{FromBox, OpenKind, ToBox};
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{Attached, Execution, ExecutionOutput, Offsets};
use agentbox_testing::System;
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::time::timeout;

use super::replaced::accept_sessions;
use super::{Killed, expect_recovery, start_system, start_system_with};
use crate::support::boxes::{script, small};
use crate::support::caller::{Caller, admin_of};
use crate::support::socket::Socket;
use crate::support::sse::Events;
use crate::support::system::{options, unlimited};
use crate::support::{TIMEOUT, eventually};

/// Counts to 200 within some seconds, and sleeps.
const COUNTING: &str =
    "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo $i; sleep 0.05; done; sleep 60";

/// Resumes a terminal whose connection was lost, and closes it.
async fn close_resumed(admin: &Caller, id: &str, session: &str) {
    let mut socket = Socket::open(admin, id, &format!("session_id={session}")).await;
    assert_eq!(socket.ready().await, session);
    socket.socket.close(None).await.unwrap();
}

#[tokio::test]
async fn stopping_gateway_finishes_requests_and_closes_streams() {
    let (system, admin) = start_system().await;
    let id = admin.create_running(&script(COUNTING)).await;
    let path = format!("/environments/{id}/logs?follow=true");
    let mut events = Events::open(&admin, &path).await;
    let first = events.take(3).await;
    let mut socket = Socket::open(&admin, &id, "tty=false&command=sleep&command=611").await;
    let session = socket.ready().await;
    let exec = json!({"command": ["sh", "-c", "touch /tmp/begun; sleep 1; echo done"]});
    let run = format!("/environments/{id}/exec");
    let running = admin.post(&run, &exec);
    let stopping = async {
        eventually("it runs", async || {
            let begun = admin.sh(&id, "test -e /tmp/begun").await;
            (begun["exit_code"] == 0).then_some(())
        })
        .await;
        assert!(system.signal("api-gateway", 0, Signal::SIGTERM));
    };
    let begun = Instant::now();
    let (answer, ()) = tokio::join!(running, stopping);
    assert_eq!(answer.expect_status(200)["stdout"], "done\n");
    let output = socket.read_to_end().await;
    assert_eq!(output.close.0, 1001, "{output:?}");
    let rest = events.read_to_end().await;
    assert!(rest.iter().all(|event| event.name == "message"), "{rest:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );

    // The restarted gateway continues.
    system.wait_ready(TIMEOUT).await.unwrap();
    expect_recovery(&admin, &id).await;
    let last = rest.last().or(first.last()).unwrap().number();
    let seen = first.len() + rest.len();
    let mut again = Events::resume(&admin, 0, &path, Some(last)).await;
    let next = again.take(200 - seen).await;
    assert_eq!(next[0].json()["message"], (seen + 1).to_string());
    assert_eq!(next.last().unwrap().json()["message"], "200");
    close_resumed(&admin, &id, &session).await;
    eventually("the command ended with its terminal", async || {
        (!admin.has_process(&id, "sleep 611").await).then_some(())
    })
    .await;
    system.stop().await;
}

#[tokio::test]
async fn draining_gateway_is_not_ready_and_keeps_serving() {
    let options = unlimited(options()).env("api-gateway", "AGENTBOX_SHUTDOWN_DELAY", "8");
    let system = System::start(options).await.unwrap();
    let gateway = system.gateway.as_ref().unwrap().replica_urls[0].clone();
    let unready = format!(
        "{}/health/ready",
        system.admin_url("api-gateway", 0).unwrap()
    );
    let client = reqwest::Client::new();
    let closes = |answer: &reqwest::Response| answer.headers().get("connection").cloned();
    let live = format!("{gateway}/api/v1/health/live");
    let before = client.get(&live).send().await.unwrap();
    assert_eq!(
        (before.status(), closes(&before)),
        (reqwest::StatusCode::OK, None)
    );
    drop(before.bytes().await.unwrap());

    let signalled = Instant::now();
    assert!(system.signal("api-gateway", 0, Signal::SIGTERM));
    eventually("it is not ready", async || {
        let answer = client.get(&unready).send().await.unwrap();
        (answer.status() == 503).then_some(())
    })
    .await;
    let ready = format!("{gateway}/api/v1/health/ready");
    assert_eq!(client.get(&ready).send().await.unwrap().status(), 503);
    // Existing and new connections are served; each answer closes its connection.
    while signalled.elapsed() < Duration::from_secs(3) {
        let answer = client.get(&live).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(closes(&answer).unwrap(), "close");
    }
    eventually("the restarted gateway serves", async || {
        let answer = client.get(&live).send().await.ok()?;
        closes(&answer).is_none().then_some(())
    })
    .await;
    assert!(
        signalled.elapsed() > Duration::from_secs(8),
        "{:?}",
        signalled.elapsed()
    );
    system.stop().await;
}

/// A client may reconnect on the connection of its stream, which must still be served.
#[tokio::test]
async fn draining_gateway_ends_old_streams_first() {
    let options = unlimited(options()).env("api-gateway", "AGENTBOX_SHUTDOWN_DELAY", "8");
    let system = System::start(options).await.unwrap();
    let admin = admin_of(&system).await;
    let id = admin.create_running(&script(COUNTING)).await;
    let path = format!("/environments/{id}/logs?follow=true");
    let mut old = Events::open(&admin, &path).await;
    let first = old.take(1).await;

    let signalled = Instant::now();
    assert!(system.signal("api-gateway", 0, Signal::SIGTERM));
    let rest = old.read_to_end().await;
    assert!(
        signalled.elapsed() < Duration::from_secs(6),
        "{:?}",
        signalled.elapsed()
    );
    let last = rest.last().or(first.last()).unwrap().number();
    let new = Events::resume(&admin, 0, &path, Some(last)).await;
    let rest = new.read_to_end().await;
    assert_eq!(rest[0].number(), last + 1);
    assert!(
        signalled.elapsed() > Duration::from_secs(8),
        "{:?}",
        signalled.elapsed()
    );
    system.stop().await;
}

#[tokio::test]
async fn killed_exec_proxy_fails_commands_and_followed_logs_resume() {
    let (system, admin) = start_system().await;
    let id = admin.create_running(&script(COUNTING)).await;
    let mut events = Events::open(&admin, &format!("/environments/{id}/logs?follow=true")).await;
    events.take(3).await;
    let mut socket = Socket::open(&admin, &id, "tty=false&command=sleep&command=612").await;
    let session = socket.ready().await;
    let exec = json!({"command": ["sleep", "613"], "timeout": 600});
    let run = format!("/environments/{id}/exec");
    let running = admin.post(&run, &exec);
    let killing = async {
        eventually("it runs", async || {
            admin.has_process(&id, "sleep 613").await.then_some(())
        })
        .await;
        // An exec-proxy acknowledges a command after 50 ms. A command whose exec-proxy is killed
        // before that times out with 504.
        let meanwhile = json!({"command": ["sleep", "0.5"]});
        admin.post(&run, &meanwhile).await.expect_status(200);
        assert!(system.kill("exec-proxy", 0));
    };
    let (answer, ()) = tokio::join!(running, killing);
    assert!(
        matches!(answer.status, 502 | 503),
        "an exec-proxy that was killed returns no exit: {answer:?}"
    );
    let output = socket.read_to_end().await;
    assert_eq!(output.close.0, 4503, "the box still runs: {output:?}");
    assert!(output.exit.is_none(), "{output:?}");
    let rest = events.take(197).await;
    let seen: Vec<String> = rest
        .iter()
        .map(|event| event.json()["message"].as_str().unwrap().to_owned())
        .collect();
    let expected: Vec<String> = (4..=200).map(|n| n.to_string()).collect();
    assert_eq!(seen, expected);
    expect_recovery(&admin, &id).await;
    close_resumed(&admin, &id, &session).await;
    eventually("the commands are killed", async || {
        (!admin.has_process(&id, "sleep 61").await).then_some(())
    })
    .await;
    admin.create_running(&small()).await;
    system.stop().await;
}

/// Serves the next terminal in place of an exec-proxy: reports that its command has started, and sends an
/// invalid message.
async fn serve_invalid_session(system: &System) {
    let (_bus, mut sessions) = accept_sessions(system).await;
    let mut execution = Execution::default();
    loop {
        let mut incoming = sessions.next().await.unwrap();
        let open = incoming.open().await.unwrap();
        let OpenKind::Execution(request) = open.kind else {
            panic!("{open:?}");
        };
        let mut session: Session<FromBox, ToBox> = incoming.accept();
        let message = |output| {
            FromBox::Execution(ExecutionOutput {
                output: Some(output),
            })
        };
        match request.operation.unwrap() {
            Operation::Start(start) => {
                execution.id = start.id;
                let started = message(Output::Execution(execution.clone()));
                session.finish(started).await.unwrap();
            }
            Operation::Attach(_) => {
                let attached = message(Output::Attached(Attached {
                    execution,
                    offsets: Offsets::default(),
                    has_input: true,
                }));
                session.send(attached).await.unwrap();
                session.send(FromBox::LogsLost(1)).await.unwrap();
                return session.closed().await;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn stopping_exec_proxy_closes_with_4503_and_failing_one_with_1011() {
    let impatient = unlimited(options()).env("exec-proxy", "AGENTBOX_SESSION_GRACE", "0");
    let (system, admin) = start_system_with(impatient).await;
    let id = admin.create_running(&small()).await;
    let sleep = "tty=false&command=sleep&command=616";
    let mut socket = Socket::open(&admin, &id, sleep).await;
    socket.ready().await;
    assert!(system.signal("exec-proxy", 0, Signal::SIGTERM));
    let output = socket.read_to_end().await;
    assert_eq!(output.close.0, 4503, "{output:?}");
    assert!(
        output.exit.is_none() && output.error.is_some(),
        "{output:?}"
    );
    system.wait_ready(TIMEOUT).await.unwrap();
    {
        let _killed = Killed::kill(&system, "exec-proxy");
        let terminal = async {
            let mut socket = eventually("it opens", async || {
                Socket::open_on(&admin, 0, &id, sleep).await.ok()
            })
            .await;
            socket.read_to_end().await
        };
        let ((), output) = tokio::join!(serve_invalid_session(&system), terminal);
        assert_eq!(output.close.0, 1011, "{output:?}");
        assert!(
            output.exit.is_none() && output.error.is_some(),
            "{output:?}"
        );
    }
    expect_recovery(&admin, &id).await;
    system.stop().await;
}

/// How long nothing must arrive on a stream that is paused.
const SILENCE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn auth_outage_pauses_streams_until_the_caller_is_confirmed() {
    let (system, admin) = start_system().await;
    let ticking = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done";
    let id = admin.create_running(&script(ticking)).await;
    let path = format!("/environments/{id}/logs?follow=true");
    let mut events = Events::open(&admin, &path).await;
    let mut last = events.take(3).await[2].number();
    let mut socket = Socket::open(&admin, &id, "tty=false&command=cat").await;
    socket.ready().await;
    {
        let _killed = Killed::kill(&system, "auth");
        let begun = Instant::now();
        while let Ok(event) = timeout(SILENCE, events.next()).await {
            last = event.unwrap().number();
            assert!(
                begun.elapsed() < Duration::from_secs(15),
                "the stream continues without auth"
            );
        }
        socket.stdin("typed\n").await;
        let echoed = timeout(SILENCE, socket.next()).await;
        assert!(echoed.is_err(), "the terminal continues: {echoed:?}");
    }
    assert_eq!(events.next().await.unwrap().number(), last + 1);
    let echoed = socket.message().await;
    assert_eq!(echoed, json!({"type": "stdout", "data": "typed\n"}));
    system.stop().await;
}
