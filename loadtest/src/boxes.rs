//! Boxes through the public API, each case beside the runtime alone.
//!
//! A box runs when the event that says so has come, over a stream that is opened at once
//! after the create's answer: no poll blurs it.
//!
//! * I1. What a case made is deleted when it ends, failed or not.

use std::time::{Duration, Instant};

use agentbox_api::environment::{CreateEnvironment, Resources};
use agentbox_api::exec::ExecBody;
use agentbox_client::{Client, Error};
use agentbox_contracts::environment::Status;
use agentbox_contracts::ids::EnvironmentId;
use anyhow::{Context as _, bail, ensure};
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream;

use crate::figures::{Figure, Samples};
use crate::raw::{Raw, RawBox};
use crate::target::{LIMITS, NO_LIMIT, Target};

pub const IMAGE: &str = "busybox";
const CREATES: usize = 20;
const EXECS_ALONE: usize = 300;
const CLIENTS: usize = 32;
const EXECS_TOGETHER: usize = 960;
const START_WITHIN: Duration = Duration::from_secs(60);
/// Of boxes whose deletion failed or never came: the server ends them.
const LIFETIME_S: u64 = 900;

/// # Errors
/// When the first box does not run or does not run a command.
pub async fn all(target: &Target) -> anyhow::Result<Vec<Figure>> {
    let client = &target.client;
    let raw = target.raw().await?;
    let raw = raw.as_deref();
    warm_up(client).await?;
    let mut figures = one_by_one(client, raw).await;
    figures.extend(execs(client, raw).await?);
    figures.push(burst(client, raw).await);
    Ok(figures)
}

/// Whether it works at all; and connections are open, statements prepared, files cached.
async fn warm_up(client: &Client) -> anyhow::Result<()> {
    for number in 0..3 {
        let (id, created) = create(client, &format!("bench-warm-{number}")).await;
        let worked = match (&id, created) {
            (Some(id), Ok(_)) => exec(client, id).await,
            (_, created) => created,
        };
        end(client, id, true).await;
        match worked {
            Ok(_) => {}
            Err(error) if is_rate_limited(&error) => bail!(
                "the rate limits are in the way: start it with {} set to {NO_LIMIT}",
                LIMITS.join(", ")
            ),
            Err(error) => return Err(error.context("a first box")),
        }
    }
    Ok(())
}

fn is_rate_limited(error: &anyhow::Error) -> bool {
    let client = error.downcast_ref::<Error>();
    client.and_then(Error::status) == Some(429)
}

/// A create, its first exec, its deletion, before the next; ours and raw by turns.
async fn one_by_one(client: &Client, raw: Option<&dyn Raw>) -> Vec<Figure> {
    let [mut creates, mut firsts, mut raw_creates, mut raw_firsts] =
        std::array::from_fn(|_| Samples::default());
    for number in 0..CREATES {
        settle(raw).await;
        let (id, created) = create(client, &format!("bench-{number}")).await;
        if let (Some(id), Ok(_)) = (&id, &created) {
            firsts.push(exec(client, id).await);
        }
        creates.push(created);
        end(client, id, true).await;
        let Some(raw) = raw else { continue };
        raw.settle().await;
        match raw.create(&format!("bench-{number}")).await {
            Ok((made, took)) => {
                raw_creates.push(Ok(took));
                raw_firsts.push(raw.exec(&made).await);
                raw.remove(made).await;
            }
            Err(error) => raw_creates.push(Err(error)),
        }
    }
    vec![
        creates
            .figure("create to running, one by one")
            .beside(raw.map(|raw| raw_creates.figure(raw.names().create))),
        firsts
            .figure("first exec of `true` in a new box")
            .beside(raw.map(|raw| raw_firsts.figure(raw.names().exec))),
    ]
}

/// In one box, which is warm.
async fn execs(client: &Client, raw: Option<&dyn Raw>) -> anyhow::Result<Vec<Figure>> {
    let (id, created) = create(client, "bench-exec").await;
    let (Some(id), Ok(_)) = (&id, &created) else {
        end(client, id, false).await;
        return Err(created.err().context("a box for execs")?);
    };
    let raw_box = match raw {
        Some(raw) => Some((raw, raw.create("bench-exec").await?.0)),
        None => None,
    };
    let mut figures = Vec::new();
    for (clients, count) in [(1, EXECS_ALONE), (CLIENTS, EXECS_TOGETHER)] {
        let ours = together(clients, count, || exec(client, id)).await;
        let beside = match &raw_box {
            // Far slower: fewer say as much.
            Some((raw, made)) => {
                let samples = together(clients, count / 5, || raw.exec(made)).await;
                Some(samples.figure(raw.names().exec))
            }
            None => None,
        };
        let name = format!("exec `true`, one box, {clients} at a time");
        figures.push(ours.figure(&name).beside(beside));
    }
    if let Some((raw, made)) = raw_box {
        raw.remove(made).await;
    }
    end(client, Some(id.clone()), true).await;
    Ok(figures)
}

async fn together<F: Future<Output = anyhow::Result<Duration>>>(
    clients: usize,
    count: usize,
    once: impl Fn() -> F,
) -> Samples {
    let began = Instant::now();
    let results = stream::iter((0..count).map(|_| once()))
        .buffer_unordered(clients)
        .collect()
        .await;
    Samples::together(results, began.elapsed())
}

async fn burst(client: &Client, raw: Option<&dyn Raw>) -> Figure {
    settle(raw).await;
    let began = Instant::now();
    let names = (0..CREATES).map(|number| format!("bench-burst-{number}"));
    let creates = names
        .clone()
        .map(|name| async move { create(client, &name).await });
    let made = join_all(creates).await;
    let wall = began.elapsed();
    let (ids, results): (Vec<_>, Vec<_>) = made.into_iter().unzip();
    join_all(ids.into_iter().map(|id| end(client, id, true))).await;
    let ours = Samples::together(results, wall);

    let beside = match raw {
        Some(raw) => Some(raw_burst(raw, names).await),
        None => None,
    };
    ours.figure(&format!("create to running, {CREATES} at once"))
        .beside(beside)
}

/// See [`Raw::settle`].
async fn settle(raw: Option<&dyn Raw>) {
    if let Some(raw) = raw {
        raw.settle().await;
    }
}

async fn raw_burst(raw: &dyn Raw, names: impl Iterator<Item = String>) -> Figure {
    raw.settle().await;
    let began = Instant::now();
    let made = join_all(names.map(|name| async move { raw.create(&name).await })).await;
    let wall = began.elapsed();
    let mut boxes: Vec<RawBox> = Vec::new();
    let results = made
        .into_iter()
        .map(|made| {
            made.map(|(made, took)| {
                boxes.push(made);
                took
            })
        })
        .collect();
    join_all(boxes.into_iter().map(|made| raw.remove(made))).await;
    Samples::together(results, wall).figure(raw.names().create)
}

/// From before the request until its event says that it runs; its id even when that
/// failed, if there is one.
async fn create(client: &Client, name: &str) -> (Option<EnvironmentId>, anyhow::Result<Duration>) {
    let body = CreateEnvironment {
        name: name.to_owned(),
        image: IMAGE.to_owned(),
        resources: Resources {
            cpu: "1".to_owned(),
            memory: "64Mi".to_owned(),
            storage: "64Mi".to_owned(),
        },
        timeout: LIFETIME_S,
        env: Default::default(),
        command: None,
        labels: Default::default(),
        node_selector: Default::default(),
        tolerations: Vec::new(),
        isolation: None,
    };
    let began = Instant::now();
    let id = match client.create(&body).await {
        Ok(made) => made.id,
        Err(error) => return (None, Err(error.into())),
    };
    let running = client.wait_until(&id, Status::Running, START_WITHIN).await;
    let took = began.elapsed();
    (Some(id), running.map(|_| took).map_err(Into::into))
}

async fn exec(client: &Client, id: &EnvironmentId) -> anyhow::Result<Duration> {
    let body = ExecBody {
        command: vec!["true".to_owned()],
        timeout: 30,
        ..ExecBody::default()
    };
    let began = Instant::now();
    let reply = client.exec(id, &body).await?;
    let took = began.elapsed();
    ensure!(reply.exit_code == 0, "exit code {}", reply.exit_code);
    Ok(took)
}

/// Waits, when told, so that its end does not burden the next sample.
async fn end(client: &Client, id: Option<EnvironmentId>, wait: bool) {
    let Some(id) = id else { return };
    let ended = async {
        client.delete(&id, true).await.context("deleting")?;
        if wait {
            client
                .wait_until(&id, Status::Terminated, START_WITHIN)
                .await?;
        }
        anyhow::Ok(())
    };
    if let Err(error) = ended.await {
        println!("{id} may be left: {error:#}");
    }
}
