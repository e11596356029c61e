//! Audit entries on the bus, and the published heads of the trail.

use std::time::Duration;

use agentbox_bus::{AuditQueue, QueuedEntry};
use agentbox_contracts::audit::{AuditAction, AuditEntry, AuditHead, AuditOutcome, Origin};
use agentbox_contracts::subjects::{self, AUDIT_STREAM, DEAD_LETTERS_STREAM, HEADER_REASON};
use agentbox_testing::TestNats;
use chrono::Utc;
use serde_json::json;

use crate::support::{DEADLINE, connect, eventually_async};

const WAIT: Duration = Duration::from_millis(500);

fn entry(action: AuditAction) -> AuditEntry {
    AuditEntry::new(Origin::default(), action, None, AuditOutcome::Accepted)
}

/// Pulls until `count` entries have arrived.
async fn pull(queue: &mut AuditQueue, count: usize) -> Vec<QueuedEntry> {
    let pulling = async {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(queue.pull(count - all.len(), WAIT).await.unwrap());
        }
        all
    };
    tokio::time::timeout(3 * DEADLINE, pulling).await.unwrap()
}

#[tokio::test]
async fn audit_entries_arrive_once_and_forged_ones_become_dead_letters() {
    let (_system, nats) = TestNats::own().await.unwrap();
    let auth = connect(&nats, "auth").await;
    let gateway = connect(&nats, "api-gateway").await;
    let exec = entry(AuditAction::Exec);
    for _ in 0..2 {
        gateway.record_audit(&exec, DEADLINE).await.unwrap();
    }
    // An entry of auth's own action on a subject that the gateway may publish, and one that is too
    // large.
    let mut large = entry(AuditAction::Exec);
    large.arguments = Some(vec!["x".repeat(64 * 1024)]);
    for forged in [entry(AuditAction::DeleteUser), large] {
        let forged = serde_json::to_vec(&forged).unwrap();
        gateway
            .jetstream()
            .publish(subjects::audit(AuditAction::Exec), forged.into())
            .await
            .unwrap()
            .await
            .unwrap();
    }
    let logs = entry(AuditAction::ReadLogs);
    gateway.record_audit(&logs, DEADLINE).await.unwrap();

    let mut queue = auth.audit_queue();
    let queued = pull(&mut queue, 2).await;
    let ids: Vec<_> = queued.iter().map(|queued| &queued.entry.id).collect();
    assert_eq!(ids, [&exec.id, &logs.id]);
    for queued in &queued {
        queued.acknowledge().await;
    }
    assert!(queue.pull(1, WAIT).await.unwrap().is_empty());

    let scheduler = connect(&nats, "scheduler").await;
    let stream = scheduler.jetstream().get_stream(DEAD_LETTERS_STREAM).await;
    let stream = stream.unwrap();
    assert_eq!(stream.cached_info().state.messages, 2);
    let subject = subjects::dead_letter(&subjects::audit(AuditAction::Exec));
    let letter = stream.get_last_raw_message_by_subject(&subject).await;
    let letter = letter.unwrap();
    let reason = letter.headers.get(HEADER_REASON).unwrap();
    assert_eq!(reason.as_str(), "it is too large");
    assert_eq!(letter.payload.len(), 64 * 1024);
}

#[tokio::test]
async fn entry_of_a_newer_version_stays_in_the_stream_and_delays_no_other() {
    let (_system, nats) = TestNats::own().await.unwrap();
    let auth = connect(&nats, "auth").await;
    let gateway = connect(&nats, "api-gateway").await;
    let mut newer = serde_json::to_value(entry(AuditAction::Exec)).unwrap();
    newer["action"] = json!("upload");
    let subject = "abx.v1.audit.api-gateway.upload";
    let stored = gateway
        .jetstream()
        .publish(subject, newer.to_string().into());
    stored.await.unwrap().await.unwrap();
    let exec = entry(AuditAction::Exec);
    gateway.record_audit(&exec, DEADLINE).await.unwrap();

    let queued = pull(&mut auth.audit_queue(), 1).await;
    assert_eq!(queued[0].entry.id, exec.id);
    queued[0].acknowledge().await;
    eventually_async("only the newer entry is left", async || {
        let stream = gateway.jetstream().get_stream(AUDIT_STREAM).await.unwrap();
        stream.cached_info().state.messages == 1
    })
    .await;
    assert!(auth.audit_queue().pull(1, WAIT).await.unwrap().is_empty());
}

#[tokio::test]
async fn audit_heads_are_read_in_order() {
    let (_system, nats) = TestNats::own().await.unwrap();
    let auth = connect(&nats, "auth").await;
    assert!(auth.audit_heads().await.unwrap().is_empty());
    let heads: Vec<AuditHead> = (1..=3)
        .map(|sequence| AuditHead {
            sequence,
            hash: "00".to_owned(),
            signature: "00".to_owned(),
            at: Utc::now(),
        })
        .collect();
    for head in &heads {
        auth.publish_audit_head(head, DEADLINE).await.unwrap();
    }
    assert_eq!(auth.audit_heads().await.unwrap(), heads);
}
