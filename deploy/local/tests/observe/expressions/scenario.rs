//! What the client does while Prometheus reads the system, and what it counts.

use std::time::{Duration, Instant};

use agentbox_testing::{System, eventually};
use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::receiver::Receiver;
use crate::client::{Client, FILE_BYTES, Sent, small};
use crate::processes::first_process_of_box;

pub const POOL: &str = "scenario";
/// The execs of a round.
const EXECS: u32 = 10;
/// How long the command of an exec runs, in seconds.
pub const EXEC_S: f64 = 0.05;
/// The output of an execution of a round.
const OUTPUT_BYTES: u32 = 20_000;
/// The creates with an image that no registry has.
const UNKNOWN_IMAGES: u32 = 3;
/// An environment must run within this time of its request.
const OBJECTIVE: Duration = Duration::from_secs(5);
/// A box without a row is removed by the second comparison that finds it.
const ORPHAN_DEADLINE: Duration = Duration::from_secs(120);

/// What the client did and saw in the window.
#[derive(Clone, Debug, Default)]
pub struct Done {
    pub logins: u32,
    pub refused_logins: u32,
    /// Environments that started in a box of their own, because the pool's boxes have another size.
    pub cold: u32,
    /// Environments that claimed a box of the pool.
    pub claims: u32,
    /// Those that found none.
    pub missed: u32,
    pub unknown_images: u32,
    pub deletes: u32,
    pub execs: u32,
    pub refused_execs: u32,
    pub uploads: u32,
    pub downloads: u32,
    pub missing_files: u32,
    pub executions: u32,
    pub deleted_users: u32,
    /// Boxes whose row was deleted, and whose processes are gone.
    pub orphans: u32,
    /// From the request until the client saw that it runs.
    pub cold_starts: Vec<Duration>,
    pub claim_starts: Vec<Duration>,
    /// What else the client waited for: the end of a delete, a box of the pool, a failed pull.
    pub waits: Vec<Duration>,
    /// The answered requests.
    pub sent: Vec<Sent>,
}

impl Done {
    pub fn creates(&self) -> u32 {
        self.cold + self.claims + self.missed + self.unknown_images
    }

    /// The environments that ran.
    pub fn started(&self) -> u32 {
        self.cold + self.claims + self.missed
    }

    pub fn uploaded_bytes(&self) -> u32 {
        self.uploads * FILE_BYTES
    }

    pub fn downloaded_bytes(&self) -> u32 {
        self.downloads * FILE_BYTES
    }

    pub fn output_bytes(&self) -> u32 {
        self.executions * OUTPUT_BYTES
    }

    /// How many environments the client saw running later than the objective.
    pub fn slow_starts(&self) -> usize {
        let all = self.cold_starts.iter().chain(&self.claim_starts);
        all.filter(|took| **took > OBJECTIVE).count()
    }

    /// The longest that the client waited for anything. Each step of a service is a part of such a wait.
    pub fn longest(&self) -> Duration {
        let all = self.cold_starts.iter().chain(&self.claim_starts);
        let requests = self.sent.iter().map(|sent| sent.took);
        let waits = all.chain(&self.waits).copied().chain(requests);
        waits.max().unwrap_or_default()
    }
}

/// The client, and what is there during the whole window: one running environment with a running execution,
/// one box that loses its row, a pool, a webhook, and two followed streams.
pub struct Scenario<'a> {
    pub client: Client,
    pub receiver: Receiver,
    system: &'a System,
    orphan: String,
    /// In the command line of the orphan's command.
    mark: String,
    /// Open as long as these are kept.
    _streams: [Response; 2],
}

impl<'a> Scenario<'a> {
    pub async fn prepare(system: &'a System) -> Self {
        let client = Client::login(system).await;
        let receiver = Receiver::start().await;
        let body = json!({ "url": receiver.url });
        client.ask(Method::POST, "/webhooks", Some(body)).await;

        let kept = client
            .create_as(with_command("kept", "echo kept; sleep 3600"))
            .await
            .1;
        client.begin_execution(&kept, &["sleep", "3600"]).await;
        let streams = [
            client
                .follow(&format!("/environments/{kept}/logs?follow=true"))
                .await,
            client.follow("/events?follow=true").await,
        ];
        let mark = format!("orphan-{}", rand::random::<u64>());
        let command = format!("sleep 3600; echo {mark}");
        let (_, orphan) = client.create_as(with_command("orphan", &command)).await;
        eventually("the orphan's command runs", ORPHAN_DEADLINE, async || {
            first_process_of_box(&mark).is_some()
        })
        .await;
        client.set_pool_of(POOL, "busybox", &claimable()).await;
        let scenario = Self {
            client,
            receiver,
            system,
            orphan,
            mark,
            _streams: streams,
        };
        // The first event of a series whose labels have no closed list is not an increase.
        scenario.round(&mut Done::default()).await;
        scenario.client.create_with_unknown_image().await;
        scenario.client.wait_for_ready_box(POOL).await;
        scenario
    }

    /// Works for at least this time.
    pub async fn work(&self, time: Duration) -> Done {
        self.client.take_sent();
        let mut done = Done::default();
        let begun = Instant::now();
        let statement = format!(
            "DELETE FROM scheduler.environments WHERE id = '{}'",
            self.orphan
        );
        let postgres = self.system.postgres.as_ref().unwrap();
        postgres.execute(&[&statement]).await.unwrap();
        let pulls = async {
            let mut waits = Vec::new();
            for _ in 0..UNKNOWN_IMAGES {
                let begun = Instant::now();
                self.client.create_with_unknown_image().await;
                waits.push(begun.elapsed());
            }
            waits
        };
        let rounds = async {
            while begun.elapsed() < time {
                self.round(&mut done).await;
            }
        };
        let (waits, ()) = tokio::join!(pulls, rounds);
        done.unknown_images += UNKNOWN_IMAGES;
        done.waits.extend(waits);
        eventually("the orphan is gone", ORPHAN_DEADLINE, async || {
            first_process_of_box(&self.mark).is_none()
        })
        .await;
        done.orphans += 1;
        self.user_is_deleted().await;
        done.deleted_users += 1;
        // The pool has replaced each claimed box.
        self.client.wait_for_ready_box(POOL).await;
        done.sent = self.client.take_sent();
        done
    }

    async fn user_is_deleted(&self) {
        let name = format!("user-{}", rand::random::<u32>());
        let body = json!({
            "username": name,
            "email": format!("{name}@example.com"),
            "password": "a long enough password",
            "role": "user",
        });
        let (_, user) = self.client.ask(Method::POST, "/users", Some(body)).await;
        let path = format!("/users/{}", user["id"].as_str().unwrap());
        self.client.ask(Method::DELETE, &path, None).await;
    }

    /// Does everything once, and most things several times.
    async fn round(&self, done: &mut Done) {
        let client = &self.client;
        client.new_token().await;
        done.logins += 1;
        client.refused_login().await;
        done.refused_logins += 1;

        let begun = Instant::now();
        let (_, id) = client.create("cold").await;
        done.cold_starts.push(begun.elapsed());
        done.cold += 1;
        self.use_box(&id, done).await;
        self.delete(&id, done).await;

        let begun = Instant::now();
        client.wait_for_ready_box(POOL).await;
        done.waits.push(begun.elapsed());
        let mut body = small("claimed");
        body["resources"] = claimable();
        let begun = Instant::now();
        let (_, created) = client.begin_create(body).await;
        let id = created["id"].as_str().unwrap();
        client.wait_for_status(id, "running").await;
        done.claim_starts.push(begun.elapsed());
        match created["pool"]["hit"].as_bool() {
            Some(true) => done.claims += 1,
            _ => done.missed += 1,
        }
        self.delete(id, done).await;
    }

    async fn use_box(&self, id: &str, done: &mut Done) {
        let client = &self.client;
        let seconds = EXEC_S.to_string();
        for _ in 0..EXECS {
            client.exec_of(id, &["sleep", &seconds]).await;
            done.execs += 1;
        }
        let body = json!({ "command": ["true"], "working_dir": "/missing" });
        let path = format!("/environments/{id}/exec");
        client.refused(Method::POST, &path, Some(body), 400).await;
        done.refused_execs += 1;
        client.upload(id).await;
        done.uploads += 1;
        client.download(id).await;
        done.downloads += 1;
        let path = format!("/environments/{id}/files/content?path=/missing");
        client.refused(Method::GET, &path, None, 404).await;
        done.missing_files += 1;
        let command = format!("head -c {OUTPUT_BYTES} /dev/zero | tr '\\0' x");
        let output = client.execution(id, &["sh", "-c", &command]).await;
        assert_eq!(output.len(), OUTPUT_BYTES as usize);
        done.executions += 1;
    }

    async fn delete(&self, id: &str, done: &mut Done) {
        let begun = Instant::now();
        self.client.delete(id).await;
        done.waits.push(begun.elapsed());
        done.deletes += 1;
    }
}

/// The size of the boxes of the pool, which is not that of [`small`].
fn claimable() -> Value {
    json!({ "cpu": "100m", "memory": "96Mi", "storage": "64Mi" })
}

fn with_command(name: &str, command: &str) -> Value {
    let mut body = small(name);
    body["command"] = json!(["sh", "-c", command]);
    body
}
