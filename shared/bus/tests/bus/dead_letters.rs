//! Dead letters: listed, shown, replayed and discarded by the scheduler.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agentbox_bus::{Bus, Command, Retry};
use agentbox_contracts::dead_letter::DeadLetterKind;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::subjects;
use agentbox_testing::TestNats;
use tokio_util::sync::CancellationToken;

use crate::support::{DEADLINE, cluster, connect, eventually_async, within};

/// Long, because a command that is delivered a second time becomes a dead letter at once.
const ACK_WAIT: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(60);

/// How many letters there are; `None` when NATS did not answer in time.
async fn total(bus: &Bus) -> Option<u64> {
    bus.dead_letters(1, 0).await.ok().map(|(_, all)| all)
}

#[tokio::test]
async fn dead_letter_is_listed_shown_replayed_once_and_gone() {
    let (_system, nats) = TestNats::own().await.unwrap();
    let bus = connect(&nats, "scheduler").await;
    assert_eq!(bus.dead_letters(10, 0).await.unwrap(), (vec![], 0));
    let cluster = cluster();
    let ids: Vec<EnvironmentId> = (0..3).map(|_| EnvironmentId::random()).collect();
    for id in &ids {
        let subject = subjects::command(&cluster, "reconcile", id);
        let message_id = id.to_string();
        let sent = bus.send_command(subject, &7_u32, &message_id, LONG);
        sent.await.unwrap();
    }
    let filter = subjects::cluster_commands(&cluster);
    let queue = bus.work_queue("test", filter, ACK_WAIT, 1, 1).await;
    let (broken, shutdown) = (Arc::new(AtomicUsize::new(1)), CancellationToken::new());
    let (done, state) = (Arc::new(AtomicUsize::new(0)), broken.clone());
    let processed = done.clone();
    let handler = move |_: Command| {
        let (broken, processed) = (state.clone(), processed.clone());
        async move {
            if broken.load(Ordering::SeqCst) == 1 {
                return Err(Retry {
                    after: Duration::ZERO,
                    reason: "the handler is broken".to_owned(),
                });
            }
            processed.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    };
    let worker = tokio::spawn(queue.unwrap().run(handler, shutdown.clone()));
    eventually_async("every command is dead", async || {
        total(&bus).await == Some(3)
    })
    .await;

    let (letters, all) = bus.dead_letters(2, 1).await.unwrap();
    assert_eq!((letters.len(), all), (2, 3));
    assert!(letters[0].number > letters[1].number, "newest first");
    let letter = &letters[0];
    assert_eq!(letter.kind, DeadLetterKind::Command);
    assert_eq!(letter.environment.as_ref(), Some(&ids[1]));
    assert_eq!(letter.reason, "the handler is broken");
    let content = bus.dead_letter(letter.number).await.unwrap().unwrap();
    assert_eq!(&content.letter, letter);
    assert_eq!(content.body, b"7");
    assert!(content.headers.contains_key(subjects::HEADER_REASON));
    for unused in [0, 4_711, u64::MAX] {
        assert_eq!(bus.dead_letter(unused).await.unwrap(), None, "{unused}");
    }

    broken.store(0, Ordering::SeqCst);
    for _ in 0..2 {
        bus.replay_dead_letter(&content, LONG).await.unwrap();
    }
    eventually_async("the command is processed", async || {
        done.load(Ordering::SeqCst) == 1
    })
    .await;
    for _ in 0..2 {
        bus.discard_dead_letter(letter.number).await.unwrap();
    }
    // A gap in the numbers hides no letter.
    let (left, all) = bus.dead_letters(10, 0).await.unwrap();
    let left: Vec<_> = left.into_iter().map(|letter| letter.environment).collect();
    assert_eq!(left, [Some(ids[2].clone()), Some(ids[0].clone())]);
    assert_eq!(all, 2);
    assert_eq!(done.load(Ordering::SeqCst), 1, "replayed once");
    shutdown.cancel();
    within(2 * DEADLINE, worker).await.unwrap();
}
