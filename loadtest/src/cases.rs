//! What is measured through the public API.
//!
//! * I1. What a case made is deleted when it ends, failed or not.

use std::time::{Duration, Instant};

use agentbox_api::environment::{CreateEnvironment, Resources};
use agentbox_api::exec::ExecBody;
use agentbox_client::Client;
use agentbox_contracts::environment::Status;
use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use futures::stream;

use crate::figures::Figure;

const CREATES: usize = 20;
const EXECS_ALONE: usize = 200;
const CLIENTS: usize = 32;
const EXECS_TOGETHER: usize = 640;
const START_WITHIN: Duration = Duration::from_secs(60);
/// Of boxes whose deletion failed or never came: the server ends them.
const LIFETIME_S: u64 = 900;

pub async fn all(client: &Client) -> anyhow::Result<Vec<Figure>> {
    let mut figures = one_by_one(client).await?;
    figures.extend(execs(client).await?);
    figures.push(burst(client).await);
    Ok(figures)
}

/// A create, its first exec, its deletion, before the next.
async fn one_by_one(client: &Client) -> anyhow::Result<Vec<Figure>> {
    let (mut creates, mut firsts) = (Vec::new(), Vec::new());
    let mut busy = (Duration::ZERO, Duration::ZERO);
    for number in 0..CREATES {
        let began = Instant::now();
        let (id, created) = create(client, &format!("bench-{number}")).await;
        busy.0 += began.elapsed();
        if created.is_ok() {
            let began = Instant::now();
            firsts.push(exec(client, &id).await);
            busy.1 += began.elapsed();
        }
        creates.push(created);
        end(client, &id, true).await;
    }
    Ok(vec![
        Figure::new("create to running, one by one", busy.0, creates),
        Figure::new("first exec of `true` in a new box", busy.1, firsts),
    ])
}

/// In one box, which is warm.
async fn execs(client: &Client) -> anyhow::Result<Vec<Figure>> {
    let (id, created) = create(client, "bench-exec").await;
    if let Err(error) = created {
        end(client, &id, false).await;
        return Err(error.context("a box for execs"));
    }
    let mut figures = Vec::new();
    for (clients, count) in [(1, EXECS_ALONE), (CLIENTS, EXECS_TOGETHER)] {
        let began = Instant::now();
        let results = stream::iter((0..count).map(|_| exec(client, &id)))
            .buffer_unordered(clients)
            .collect()
            .await;
        let name = format!("exec `true`, one box, {clients} at a time");
        figures.push(Figure::new(&name, began.elapsed(), results));
    }
    end(client, &id, false).await;
    Ok(figures)
}

async fn burst(client: &Client) -> Figure {
    let began = Instant::now();
    let made: Vec<_> = stream::iter(
        (0..CREATES)
            .map(|number| async move { create(client, &format!("bench-burst-{number}")).await }),
    )
    .buffer_unordered(CREATES)
    .collect()
    .await;
    let wall = began.elapsed();
    let mut results = Vec::new();
    for (id, result) in made {
        end(client, &id, false).await;
        results.push(result);
    }
    let name = format!("create to running, {CREATES} at once");
    Figure::new(&name, wall, results)
}

/// From before the request until it is seen running; its id even when that failed, empty
/// when there is none.
async fn create(client: &Client, name: &str) -> (String, anyhow::Result<Duration>) {
    let body = CreateEnvironment {
        name: name.to_owned(),
        image: "busybox".to_owned(),
        resources: Resources {
            cpu: "50m".to_owned(),
            memory: "32Mi".to_owned(),
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
        Err(error) => return (String::new(), Err(error.into())),
    };
    let running = client.wait_until(&id, Status::Running, START_WITHIN).await;
    let took = began.elapsed();
    (id, running.map(|_| took).map_err(Into::into))
}

async fn exec(client: &Client, id: &str) -> anyhow::Result<Duration> {
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
async fn end(client: &Client, id: &str, wait: bool) {
    if id.is_empty() {
        return;
    }
    let ended = async {
        client.delete(id, true).await.context("deleting")?;
        if wait {
            client
                .wait_until(id, Status::Terminated, START_WITHIN)
                .await?;
        }
        anyhow::Ok(())
    };
    if let Err(error) = ended.await {
        println!("{id} may be left: {error:#}");
    }
}
