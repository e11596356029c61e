//! Sessions that a test serves in place of an exec-proxy.

use std::pin::pin;
use std::time::Duration;

use agentbox_bus::{Acceptor, Bus, Session};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::rpc::BoxSession;
use agentbox_contracts::exec::{Exit, FromBox, OpenKind, ToBox};
use agentbox_testing::System;
use reqwest::Method;
use serde_json::json;
use tokio::time::timeout;

use super::{Killed, expect_recovery, start_system};
use crate::support::boxes::small;
use crate::support::eventually;
use crate::support::sse::Events;
use crate::support::system::bus_as;

/// How long a client must not be answered while the start of its command is not reported.
const UNANSWERED: Duration = Duration::from_secs(2);

/// Accepts the sessions of an exec-proxy that was killed, on a connection of its own.
pub(super) async fn accept_sessions(system: &System) -> (Bus, Acceptor<BoxSession>) {
    let bus = bus_as(system, "exec-proxy").await;
    let clusters = std::fs::read(system.clusters_file()).unwrap();
    let clusters: serde_json::Value = serde_json::from_slice(&clusters).unwrap();
    let cluster = clusters["clusters"][0]["name"].as_str().unwrap();
    let sessions = bus.accept_sessions(cluster, "exec-proxy").await.unwrap();
    (bus, sessions)
}

#[tokio::test]
async fn streamed_exec_is_answered_when_its_start_is_reported_or_refused() {
    let (system, admin) = start_system().await;
    let id = admin.create_running(&small()).await;
    let path = format!("/environments/{id}/exec");
    let body = json!({"command": ["sleep", "617"], "timeout": 600});
    {
        let _killed = Killed::kill(&system, "exec-proxy");
        let (_bus, mut sessions) = accept_sessions(&system).await;
        for is_refused in [true, false] {
            let mut answer = pin!(eventually("it is answered", async || {
                let request = admin.request(Method::POST, &path).json(&body);
                match Events::send(request).await.unwrap() {
                    // NATS may have delivered the first one to the killed exec-proxy.
                    Err(unserved) if matches!(unserved.status, 503 | 504) => None,
                    answer => Some(answer),
                }
            }));
            let mut incoming = tokio::select! {
                incoming = sessions.next() => incoming.unwrap(),
                _ = &mut answer => panic!("it was answered without a session"),
            };
            let open = incoming.open().await.unwrap();
            assert!(
                matches!(&open.kind, OpenKind::Exec(exec) if exec.stream),
                "{open:?}"
            );
            let mut session: Session<FromBox, ToBox> = incoming.accept();
            let early = timeout(UNANSWERED, &mut answer).await;
            assert!(early.is_err(), "it was answered before the report");
            if is_refused {
                let reason = Error::new(ErrorCode::WorkingDirNotFound, "it does not exist");
                session.fail(reason).await;
                let refused = answer.await.err().unwrap();
                refused.expect_error(400, "working_dir_not_found");
            } else {
                session.send(FromBox::CommandStarted).await.unwrap();
                let events = answer.await.ok().unwrap();
                let exit = FromBox::Exit(Exit::default());
                let (sent, events) = tokio::join!(session.finish(exit), events.read_to_end());
                sent.unwrap();
                assert_eq!(events.len(), 1, "{events:?}");
                assert_eq!(events[0].name, "exit");
            }
        }
    }
    expect_recovery(&admin, &id).await;
    system.stop().await;
}
