//! Commands: processing, retries, dead letters, and the stop of a worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use agentbox_bus::{Bus, Command, Retry, WorkQueue};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::subjects::{self, COMMANDS_STREAM, DEAD_LETTERS_STREAM, HEADER_REASON};
use agentbox_testing::TestNats;
use futures::{FutureExt, StreamExt};
use tokio::sync::{Barrier, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::process::Process;
use crate::support::{DEADLINE, cluster, connect, eventually, eventually_async, within};

/// When a command of a killed worker is delivered again.
const ACK_WAIT: Duration = Duration::from_secs(1);
/// The same for workers that are not killed: longer than a machine stalls, so that each command is
/// delivered once.
const LONG_ACK_WAIT: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(60);

/// The commands of a cluster that no other test uses.
struct Commands {
    bus: Bus,
    cluster: String,
    ack_wait: Duration,
    sent: AtomicUsize,
}

impl Commands {
    async fn new() -> Self {
        Self::with_ack_wait(LONG_ACK_WAIT).await
    }

    async fn with_ack_wait(ack_wait: Duration) -> Self {
        let bus = connect(&TestNats::shared().await.unwrap(), "scheduler").await;
        Self {
            bus,
            cluster: cluster(),
            ack_wait,
            sent: AtomicUsize::new(0),
        }
    }

    async fn send(&self, body: u32, expires_in: Duration) -> String {
        let n = self.sent.fetch_add(1, Ordering::Relaxed);
        let subject = subjects::command(&self.cluster, "reconcile", &EnvironmentId::random());
        let message_id = format!("{}-{n}", self.cluster);
        self.bus
            .send_command(subject.clone(), &body, &message_id, expires_in)
            .await
            .unwrap();
        subject
    }

    async fn queue(&self, bus: &Bus, max_deliver: i64, max_in_flight: usize) -> WorkQueue {
        let consumer = format!("test-{}", self.cluster);
        let filter = subjects::cluster_commands(&self.cluster);
        bus.work_queue(&consumer, filter, self.ack_wait, max_deliver, max_in_flight)
            .await
            .unwrap()
    }

    async fn worker<F, Fut>(&self, max_deliver: i64, max_in_flight: usize, handler: F) -> Worker
    where
        F: Fn(Command) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Retry>> + Send + 'static,
    {
        let queue = self.queue(&self.bus, max_deliver, max_in_flight).await;
        let shutdown = CancellationToken::new();
        let until = shutdown.clone();
        Worker {
            shutdown,
            task: tokio::spawn(async move { queue.run(handler, until).await }),
        }
    }

    /// The number of commands in the queue, started or not.
    async fn queue_length(&self) -> usize {
        stored(
            &self.bus,
            COMMANDS_STREAM,
            &subjects::cluster_commands(&self.cluster),
        )
        .await
    }

    async fn dead(&self) -> usize {
        let filter = subjects::dead_letter(&subjects::cluster_commands(&self.cluster));
        stored(&self.bus, DEAD_LETTERS_STREAM, &filter).await
    }

    async fn all_done(&self) {
        eventually_async("the queue is empty", async || {
            self.queue_length().await == 0
        })
        .await;
    }

    /// The reason in the dead letter of the command on `subject`.
    async fn reason(&self, subject: &str) -> String {
        let subject = subjects::dead_letter(subject);
        let stream = self.bus.jetstream().get_stream(DEAD_LETTERS_STREAM).await;
        let letter = stream
            .unwrap()
            .get_last_raw_message_by_subject(&subject)
            .await
            .unwrap();
        let reason = letter.headers.get(HEADER_REASON).unwrap();
        reason.as_str().to_owned()
    }
}

async fn stored(bus: &Bus, stream: &str, filter: &str) -> usize {
    let stream = bus.jetstream().get_stream(stream).await.unwrap();
    let subjects = stream.info_with_subjects(filter).await.unwrap();
    subjects
        .fold(0, |sum, subject| async move { sum + subject.unwrap().1 })
        .await
}

struct Worker {
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Worker {
    async fn stop(self) {
        self.shutdown.cancel();
        within(2 * DEADLINE, self.task).await.unwrap();
    }
}

fn number(command: &Command) -> u32 {
    serde_json::from_slice(&command.body).unwrap()
}

fn soon(reason: &str) -> Retry {
    Retry {
        after: Duration::from_millis(10),
        reason: reason.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn command_is_processed_once_and_removed() {
    let commands = Commands::new().await;
    let (ran, mut runs) = mpsc::unbounded_channel();
    let worker = commands
        .worker(3, 4, move |command| {
            ran.send((number(&command), command.attempt)).unwrap();
            async { Ok(()) }
        })
        .await;
    for n in 0..20 {
        commands.send(n, LONG).await;
    }
    commands.all_done().await;
    worker.stop().await;
    let mut all = Vec::new();
    while let Some(run) = runs.recv().await {
        all.push(run);
    }
    all.sort_unstable();
    assert_eq!(all, (0..20).map(|n| (n, 1)).collect::<Vec<_>>());
    assert_eq!(commands.dead().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn command_of_killed_worker_is_processed_by_another() {
    let commands = Arc::new(Commands::with_ack_wait(ACK_WAIT).await);
    begin_and_be_killed(&commands, 5).await;
    let (ran, mut runs) = mpsc::unbounded_channel();
    let worker = commands
        .worker(5, 1, move |command| {
            ran.send(command.attempt).unwrap();
            async { Ok(()) }
        })
        .await;
    assert_eq!(within(DEADLINE, runs.recv()).await, Some(2));
    commands.all_done().await;
    worker.stop().await;
}

/// Sends a command if there is none. A worker begins it and is killed.
async fn begin_and_be_killed(commands: &Arc<Commands>, max_deliver: i64) {
    let nats = TestNats::shared().await.unwrap();
    let process = Process::start();
    let (started, mut begins) = mpsc::unbounded_channel();
    let of = commands.clone();
    process.run(async move {
        let bus = connect(&nats, "scheduler").await;
        let queue = of.queue(&bus, max_deliver, 1).await;
        let handler = move |_| {
            started.send(()).unwrap();
            std::future::pending()
        };
        queue.run(handler, CancellationToken::new()).await;
    });
    if commands.queue_length().await == 0 {
        commands.send(1, LONG).await;
    }
    within(DEADLINE, begins.recv()).await.unwrap();
    process.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn command_that_kills_every_worker_becomes_dead_letter() {
    let commands = Arc::new(Commands::with_ack_wait(ACK_WAIT).await);
    let subject = commands.send(1, LONG).await;
    for _ in 0..2 {
        begin_and_be_killed(&commands, 2).await;
    }
    let worker = commands
        .worker(2, 1, |command| async move {
            panic!("started a third time: {command:?}")
        })
        .await;
    commands.all_done().await;
    worker.stop().await;
    assert_eq!(commands.dead().await, 1);
    let reason = commands.reason(&subject).await;
    assert_eq!(reason, "no attempt completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn command_that_fails_too_often_becomes_dead_letter_with_reason() {
    let commands = Commands::new().await;
    let (ran, mut runs) = mpsc::unbounded_channel();
    let worker = commands
        .worker(3, 4, move |command| {
            ran.send(command.attempt).unwrap();
            async { Err(soon("the cluster\nrefused it")) }
        })
        .await;
    let subject = commands.send(1, LONG).await;
    commands.all_done().await;
    worker.stop().await;
    for attempt in 1..=3 {
        assert_eq!(runs.recv().await, Some(attempt));
    }
    assert_eq!(runs.recv().await, None);
    assert_eq!(commands.dead().await, 1);
    assert_eq!(commands.reason(&subject).await, "the cluster refused it");
}

#[tokio::test(flavor = "multi_thread")]
async fn panicking_handler_makes_dead_letter() {
    let commands = Commands::new().await;
    let worker = commands
        .worker(2, 4, |command| async move {
            assert!(number(&command) == 0, "it panics");
            Ok(())
        })
        .await;
    let subject = commands.send(1, LONG).await;
    commands.send(0, LONG).await;
    commands.all_done().await;
    worker.stop().await;
    assert_eq!(commands.dead().await, 1);
    assert_eq!(commands.reason(&subject).await, "the handler panicked");
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_command_is_removed_unprocessed() {
    let commands = Commands::new().await;
    commands.send(1, Duration::ZERO).await;
    commands.send(2, LONG).await;
    let (ran, mut runs) = mpsc::unbounded_channel();
    let worker = commands
        .worker(3, 1, move |command| {
            ran.send(number(&command)).unwrap();
            async { Ok(()) }
        })
        .await;
    commands.all_done().await;
    worker.stop().await;
    assert_eq!(runs.recv().await, Some(2));
    assert_eq!(runs.recv().await, None);
    assert_eq!(commands.dead().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_handler_keeps_its_command() {
    // Progress is acknowledged three times in it, so a stall of half of it is too short to lose the command.
    const ACK_WAIT: Duration = Duration::from_secs(5);
    let commands = Commands::with_ack_wait(ACK_WAIT).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let mut workers = Vec::new();
    for _ in 0..2 {
        let runs = runs.clone();
        let handler = move |_| {
            runs.fetch_add(1, Ordering::Relaxed);
            async {
                // Twice as long as a command without acknowledged progress is waited for.
                tokio::time::sleep(2 * ACK_WAIT).await;
                Ok(())
            }
        };
        workers.push(commands.worker(5, 4, handler).await);
    }
    commands.send(1, LONG).await;
    commands.all_done().await;
    for worker in workers {
        worker.stop().await;
    }
    assert_eq!(runs.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_queue() {
    let commands = Commands::new().await;
    let mut workers = Vec::new();
    // The barrier opens only for both workers together.
    let both = Arc::new(Barrier::new(2));
    for _ in 0..2 {
        let both = both.clone();
        let handler = move |_| {
            let both = both.clone();
            async move {
                both.wait().await;
                Ok(())
            }
        };
        workers.push(commands.worker(50, 1, handler).await);
    }
    for n in 0..20 {
        commands.send(n, LONG).await;
    }
    commands.all_done().await;
    for worker in workers {
        worker.stop().await;
    }
    assert_eq!(commands.dead().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_worker_completes_started_commands_and_starts_none() {
    let commands = Commands::new().await;
    let started = Arc::new(AtomicUsize::new(0));
    let go = CancellationToken::new();
    let (count, wait) = (started.clone(), go.clone());
    let worker = commands
        .worker(3, 2, move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            wait.clone().cancelled_owned().map(Ok)
        })
        .await;
    for n in 0..5 {
        commands.send(n, LONG).await;
    }
    eventually("two commands are started", || {
        started.load(Ordering::Relaxed) == 2
    })
    .await;
    worker.shutdown.cancel();
    go.cancel();
    worker.stop().await;
    eventually_async("two commands are processed", async || {
        commands.queue_length().await == 3
    })
    .await;
    assert_eq!(started.load(Ordering::Relaxed), 2);
}
