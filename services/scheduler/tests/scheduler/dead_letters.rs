//! What an operator does with dead letters, over the bus.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use agentbox_bus::{Command, Retry};
use agentbox_contracts::dead_letter::rpc::{
    DeadLetterRequest, DiscardDeadLetter, GetDeadLetter, ListDeadLetters, ListDeadLettersRequest,
    ReplayDeadLetter,
};
use agentbox_contracts::dead_letter::{DeadLetter, DeadLetterKind};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::subjects;
use tokio_util::sync::CancellationToken;

use crate::support::cluster::World;
use crate::support::eventually;
use crate::support::scheduler::bus;

const SOON: Duration = Duration::from_secs(20);
/// A cluster that no scheduler of the test serves.
const ELSEWHERE: &str = "elsewhere";
/// Long, because a command that is delivered a second time becomes a dead letter at once.
const ACK_WAIT: Duration = Duration::from_secs(60);

async fn letters(world: &World, limit: u32) -> Result<Vec<DeadLetter>, Error> {
    let request = ListDeadLettersRequest { limit, offset: 0 };
    let reply = world.ask::<ListDeadLetters>(&request).await?;
    assert_eq!(reply.total, reply.letters.len() as u64);
    Ok(reply.letters)
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_dead_letter_is_processed_and_gone() {
    let world = World::new().await;
    let replica = world.replica().await;
    let bus = bus(&world.nats, "scheduler").await;
    let works = Arc::new(AtomicBool::new(false));
    let processed = Arc::new(AtomicUsize::new(0));
    let (state, count) = (works.clone(), processed.clone());
    let handler = move |_: Command| {
        let (state, count) = (state.clone(), count.clone());
        async move {
            if !state.load(Ordering::SeqCst) {
                return Err(Retry {
                    after: Duration::ZERO,
                    reason: "the handler is broken".to_owned(),
                });
            }
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    };
    let filter = subjects::cluster_commands(ELSEWHERE);
    let queue = bus.work_queue("elsewhere", filter, ACK_WAIT, 1, 1).await;
    let shutdown = CancellationToken::new();
    let worker = tokio::spawn(queue.unwrap().run(handler, shutdown.clone()));
    let id = EnvironmentId::random();
    let subject = subjects::command(ELSEWHERE, "reconcile", &id);
    let sent = bus.send_command(subject, &(), "the only one", 2 * ACK_WAIT);
    sent.await.unwrap();
    eventually("the command is a dead letter", SOON, async || {
        letters(&world, 10).await.unwrap().len() == 1
    })
    .await;

    let letter = letters(&world, 10).await.unwrap().remove(0);
    assert_eq!(letter.kind, DeadLetterKind::Command);
    assert_eq!(letter.environment, Some(id));
    assert_eq!(letter.reason, "the handler is broken");
    let request = DeadLetterRequest {
        number: letter.number,
    };
    let content = world.ask::<GetDeadLetter>(&request).await.unwrap();
    assert_eq!((content.letter, content.body), (letter, b"null".to_vec()));
    let refused = letters(&world, 0).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Validation);
    assert!(refused.message.starts_with("limit: "), "{refused}");

    works.store(true, Ordering::SeqCst);
    if let Err(error) = world.ask::<ReplayDeadLetter>(&request).await {
        // An earlier request, whose answer was lost, has replayed it.
        assert_eq!(error.code, ErrorCode::NotFound, "{error}");
    }
    eventually("the command is processed", SOON, async || {
        processed.load(Ordering::SeqCst) == 1
    })
    .await;
    assert!(letters(&world, 10).await.unwrap().is_empty());
    let gone = world.ask::<GetDeadLetter>(&request).await.unwrap_err();
    assert_eq!(gone.code, ErrorCode::NotFound);
    let gone = world.ask::<ReplayDeadLetter>(&request).await.unwrap_err();
    assert_eq!(gone.code, ErrorCode::NotFound);
    // Discarding may be repeated.
    world.ask::<DiscardDeadLetter>(&request).await.unwrap();
    shutdown.cancel();
    let ended = tokio::time::timeout(SOON, worker).await;
    ended.unwrap().unwrap();
    replica.stop().await;
}
