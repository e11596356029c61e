//! Notifications of the scheduler about deleted users.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::environment::rpc::DeleteOwned;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::Role;
use agentbox_contracts::identity::rpc::{DeleteUser, DeleteUserRequest};
use agentbox_contracts::ids::UserId;
use agentbox_contracts::rpc::Empty;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{Replica, World, eventually};

/// A stand-in for the scheduler that answers the only request that auth sends, and records the
/// users of the notifications.
struct SchedulerStub {
    notified: Arc<Mutex<Vec<UserId>>>,
    shutdown: CancellationToken,
    _served: JoinHandle<()>,
    _bus: Bus,
}

impl SchedulerStub {
    /// Refuses the first `refusals` requests.
    async fn start(beside: &Replica, refusals: usize) -> Self {
        let bus = beside.bus_of("scheduler").await;
        let notified = Arc::new(Mutex::new(Vec::new()));
        let shutdown = CancellationToken::new();
        let recorded = Arc::clone(&notified);
        let server = bus
            .serve("scheduler")
            .on::<DeleteOwned, _, _>(move |request| {
                let mut users = recorded.lock().unwrap();
                users.push(request.owner);
                let answer = if users.len() > refusals {
                    Ok(Empty {})
                } else {
                    Err(Error::new(
                        ErrorCode::Unavailable,
                        "the database cannot be reached",
                    ))
                };
                std::future::ready(answer)
            })
            .listen()
            .await
            .unwrap();
        let stop = shutdown.clone();
        let served = tokio::spawn(async move { server.run(stop).await.unwrap() });
        Self {
            notified,
            shutdown,
            _served: served,
            _bus: bus,
        }
    }

    fn notified(&self) -> Vec<UserId> {
        self.notified.lock().unwrap().clone()
    }
}

impl Drop for SchedulerStub {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn delete(auth: &Replica) -> UserId {
    let id = auth.create_user(Role::User).await.id;
    let request = DeleteUserRequest {
        actor: None,
        id: id.clone(),
    };
    auth.call::<DeleteUser>(request).await.unwrap();
    id
}

const PENDING: &str = "SELECT count(*) FROM user_deletions";

#[tokio::test]
async fn deletion_is_notified_at_once_and_once_more_later() {
    let world = World::start().await;
    let scheduler = SchedulerStub::start(world.auth(), 0).await;
    let user = delete(world.auth()).await;
    eventually(
        "the scheduler is notified",
        Duration::from_secs(10),
        async || !scheduler.notified().is_empty(),
    )
    .await;
    let settled = "SELECT count(*) FROM user_deletions WHERE acknowledged_at IS NOT NULL
        AND next_attempt_at > now() + interval '30 seconds'";
    eventually(
        "the confirmation is recorded",
        Duration::from_secs(20),
        async || world.count(settled).await == 1,
    )
    .await;

    world
        .execute("UPDATE user_deletions SET next_attempt_at = now()")
        .await;
    eventually(
        "the deletion is done",
        Duration::from_secs(20),
        async || world.count(PENDING).await == 0,
    )
    .await;
    assert_eq!(scheduler.notified(), [user.clone(), user]);
}

#[tokio::test]
async fn deletion_without_a_scheduler_is_notified_by_another_replica_later() {
    let mut world = World::with(2, &[]).await;
    let user = delete(&world.replicas[0]).await;
    world.replicas[0].kill();
    assert_eq!(world.count(PENDING).await, 1);
    let scheduler = SchedulerStub::start(&world.replicas[1], 0).await;
    eventually(
        "the other replica notifies",
        Duration::from_secs(60),
        async || scheduler.notified() == [user.clone()],
    )
    .await;
}

#[tokio::test]
async fn failed_notification_is_repeated() {
    let world = World::start().await;
    let scheduler = SchedulerStub::start(world.auth(), 2).await;
    let user = delete(world.auth()).await;
    let confirmed = "SELECT count(*) FROM user_deletions WHERE acknowledged_at IS NOT NULL";
    eventually(
        "the confirmation is recorded",
        Duration::from_secs(30),
        async || world.count(confirmed).await == 1,
    )
    .await;
    assert_eq!(scheduler.notified(), [user.clone(), user.clone(), user]);
}
