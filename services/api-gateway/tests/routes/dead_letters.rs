//! `/dead-letters`. The shared system may have letters of other tests: a test changes its own only.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentbox_bus::{Command, Retry};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::subjects;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::caller::{Caller, admin, new_user};
use crate::support::system::{bus_as, shared};
use crate::support::{TIMEOUT, eventually};

/// A number that no letter of this system has.
const UNUSED: u64 = 4_711_000;
/// Long, because a command that is delivered a second time becomes a dead letter at once.
const ACK_WAIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn administrator_lists_dead_letters_and_an_unknown_one_is_not_found() {
    let admin = admin().await;
    let listed = admin.get("/dead-letters?limit=5").await.expect_status(200);
    assert!(listed["total"].is_u64(), "{listed}");
    assert_eq!(listed["limit"], 5, "{listed}");
    assert!(listed["dead_letters"].is_array(), "{listed}");
    for path in [format!("/dead-letters/{UNUSED}"), "/dead-letters/x".into()] {
        let message = admin.get(&path).await.expect_error(404, "not_found");
        assert_eq!(message, "dead letter not found", "{path}");
    }
    let replay = format!("/dead-letters/{UNUSED}/replay");
    let refused = admin.post(&replay, &json!({})).await;
    refused.expect_error(404, "not_found");
}

#[tokio::test]
async fn discard_may_be_repeated_and_is_in_the_audit_trail() {
    let admin = admin().await;
    let number = UNUSED + u64::from(rand::random::<u16>());
    for _ in 0..2 {
        let path = format!("/dead-letters/{number}");
        admin.delete(&path).await.expect_status(204);
    }
    eventually("both entries", async || {
        let path = format!("/audit?target={number}&action=discard-dead-letter");
        let trail = admin.get(&path).await.expect_status(200);
        (trail["total"].as_u64() >= Some(2)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn other_callers_may_not_see_or_change_dead_letters() {
    let user = new_user().await;
    let caller = &user.caller;
    let one = "/dead-letters/1";
    caller
        .get("/dead-letters")
        .await
        .expect_error(403, "forbidden");
    caller.get(one).await.expect_error(403, "forbidden");
    caller.delete(one).await.expect_error(403, "forbidden");
    let replayed = caller.post("/dead-letters/1/replay", &json!({})).await;
    replayed.expect_error(403, "forbidden");
}

/// Waits for the dead letter of a command for an environment.
async fn letter_of(admin: &Caller, environment: &EnvironmentId) -> Value {
    eventually("the command is a dead letter", async || {
        let listed = admin.get("/dead-letters?limit=1000").await;
        let listed = listed.expect_status(200);
        let mut letters = listed["dead_letters"].as_array().unwrap().iter();
        let letter = letters.find(|letter| letter["environment_id"] == environment.as_str());
        letter.cloned()
    })
    .await
}

#[tokio::test]
async fn dead_letter_is_listed_shown_and_replayed_or_discarded() {
    let admin = admin().await;
    let bus = bus_as(shared().await, "scheduler").await;
    // A cluster that only this test serves.
    let cluster = format!("elsewhere-{:08x}", rand::random::<u32>());
    let works = Arc::new(AtomicBool::new(false));
    let processed: Arc<Mutex<Vec<String>>> = Arc::default();
    let (state, record) = (works.clone(), processed.clone());
    let handler = move |command: Command| {
        let outcome = if state.load(Ordering::SeqCst) {
            record.lock().unwrap().push(command.subject);
            Ok(())
        } else {
            Err(Retry {
                after: Duration::ZERO,
                reason: "the handler is broken".to_owned(),
            })
        };
        std::future::ready(outcome)
    };
    let filter = subjects::cluster_commands(&cluster);
    let queue = bus.work_queue(&cluster, filter, ACK_WAIT, 1, 1).await;
    let shutdown = CancellationToken::new();
    let worker = tokio::spawn(queue.unwrap().run(handler, shutdown.clone()));
    let [replayed, discarded] = [EnvironmentId::random(), EnvironmentId::random()];
    let subject = |id: &EnvironmentId| subjects::command(&cluster, "reconcile", id);
    for id in [&replayed, &discarded] {
        let sent = bus.send_command(subject(id), &(), id.as_str(), 2 * ACK_WAIT);
        sent.await.unwrap();
    }

    let letter = letter_of(admin, &replayed).await;
    let path = format!("/dead-letters/{}", letter["number"]);
    let shown = admin.get(&path).await.expect_status(200);
    for (field, value) in [
        ("number", letter["number"].clone()),
        ("kind", json!("command")),
        ("subject", json!(subject(&replayed))),
        ("environment_id", json!(replayed.as_str())),
        ("reason", json!("the handler is broken")),
        ("body", json!("null")),
    ] {
        assert_eq!(shown[field], value, "{field}: {shown}");
    }
    let reason = &shown["headers"][subjects::HEADER_REASON];
    assert_eq!(*reason, json!(["the handler is broken"]), "{shown}");

    let unwanted = letter_of(admin, &discarded).await;
    let unwanted = format!("/dead-letters/{}", unwanted["number"]);
    admin.delete(&unwanted).await.expect_status(204);
    works.store(true, Ordering::SeqCst);
    let replay = format!("{path}/replay");
    let status = eventually("the replay is answered", async || {
        let status = admin.post(&replay, &json!({})).await.status;
        (!matches!(status, 503 | 504)).then_some(status)
    })
    .await;
    // A request whose answer was lost may have replayed it before.
    assert!(matches!(status, 204 | 404), "{status}");
    eventually("the command is processed", async || {
        let processed = processed.lock().unwrap();
        (!processed.is_empty()).then_some(())
    })
    .await;
    for gone in [&path, &unwanted] {
        admin.get(gone).await.expect_error(404, "not_found");
        let again = admin.post(&format!("{gone}/replay"), &json!({})).await;
        again.expect_error(404, "not_found");
    }
    assert_eq!(*processed.lock().unwrap(), [subject(&replayed)]);
    for (action, path) in [
        ("replay-dead-letter", &path),
        ("discard-dead-letter", &unwanted),
    ] {
        let number = path.trim_start_matches("/dead-letters/");
        eventually("the entry of the change", async || {
            let path = format!("/audit?target={number}&action={action}");
            let trail = admin.get(&path).await.expect_status(200);
            (trail["total"].as_u64() >= Some(1)).then_some(())
        })
        .await;
    }
    shutdown.cancel();
    tokio::time::timeout(TIMEOUT, worker)
        .await
        .unwrap()
        .unwrap();
}
