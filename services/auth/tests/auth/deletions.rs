//! A deleted user's environments end, however long the scheduler is away.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::environment::rpc::DeleteOwned;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::Role;
use agentbox_contracts::identity::rpc::{DeleteUser, UserRequest};
use agentbox_contracts::ids::UserId;
use agentbox_contracts::rpc::Empty;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{Replica, World, eventually};

/// The scheduler's end of the one request that auth makes: answers it, and notes of whom
/// it was told. What the scheduler then does is for its own tests.
struct Listener {
    told: Arc<Mutex<Vec<UserId>>>,
    shutdown: CancellationToken,
    _served: JoinHandle<()>,
    _bus: Bus,
}

impl Listener {
    /// Refuses the first `refusals` requests.
    async fn start(beside: &Replica, refusals: usize) -> Self {
        let bus = beside.bus_of("scheduler").await;
        let told = Arc::new(Mutex::new(Vec::new()));
        let shutdown = CancellationToken::new();
        let noted = Arc::clone(&told);
        let server = bus
            .serve("scheduler")
            .on::<DeleteOwned, _, _>(move |request| {
                let mut told = noted.lock().unwrap();
                told.push(request.owner);
                let answer = if told.len() > refusals {
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
            told,
            shutdown,
            _served: served,
            _bus: bus,
        }
    }

    fn told(&self) -> Vec<UserId> {
        self.told.lock().unwrap().clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn delete(auth: &Replica) -> UserId {
    let id = auth.create_user(Role::User).await.id;
    auth.call::<DeleteUser>(UserRequest { id: id.clone() })
        .await
        .unwrap();
    id
}

const PENDING: &str = "SELECT count(*) FROM user_deletions";

#[tokio::test]
async fn the_scheduler_is_acknowledged_at_once_and_once_more_when_nothing_is_on_its_way() {
    let world = World::start().await;
    let scheduler = Listener::start(world.auth(), 0).await;
    let user = delete(world.auth()).await;
    eventually("it is told", Duration::from_secs(10), async || {
        !scheduler.told().is_empty()
    })
    .await;
    let settled = "SELECT count(*) FROM user_deletions WHERE acknowledged_at IS NOT NULL
        AND next_attempt_at > now() + interval '30 seconds'";
    eventually("noted", Duration::from_secs(5), async || {
        world.count(settled).await == 1
    })
    .await;

    world
        .execute("UPDATE user_deletions SET next_attempt_at = now()")
        .await;
    eventually("it is done", Duration::from_secs(20), async || {
        world.count(PENDING).await == 0
    })
    .await;
    assert_eq!(scheduler.told(), [user.clone(), user]);
}

#[tokio::test]
async fn deletion_without_a_scheduler_is_notified_by_another_replica_later() {
    let mut world = World::with(2, &[]).await;
    let user = delete(&world.replicas[0]).await;
    world.replicas[0].kill();
    assert_eq!(world.count(PENDING).await, 1);
    let scheduler = Listener::start(&world.replicas[1], 0).await;
    eventually(
        "the other replica tells",
        Duration::from_secs(60),
        async || scheduler.told() == [user.clone()],
    )
    .await;
}

#[tokio::test]
async fn failed_notification_is_repeated() {
    let world = World::start().await;
    let scheduler = Listener::start(world.auth(), 2).await;
    let user = delete(world.auth()).await;
    let told = "SELECT count(*) FROM user_deletions WHERE acknowledged_at IS NOT NULL";
    eventually("it is heard", Duration::from_secs(30), async || {
        world.count(told).await == 1
    })
    .await;
    assert_eq!(scheduler.told(), [user.clone(), user.clone(), user]);
}
