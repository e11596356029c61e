//! Measures boxes through the public API, and compares each case with the runtime alone.
//!
//! A box counts as running when its event arrives on a stream that is opened right after the
//! create's response, so that no polling interval is part of the time.
//!
//! * I1. A case deletes its environments when it ends, also after a failure.

use std::time::{Duration, Instant};

use agentbox_api::environment::{CreateEnvironment, Resources};
use agentbox_api::exec::{DEFAULT_TIMEOUT, ExecBody};
use agentbox_client::{Client, Error};
use agentbox_contracts::environment::Status;
use agentbox_contracts::ids::EnvironmentId;
use anyhow::{Context as _, bail, ensure};
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream;

use crate::figures::{Figure, Samples};
use crate::raw::{IMAGE, Raw, RawBox};
use crate::target::{LIMITS, NO_LIMIT};

const CREATES: usize = 20;
const SEQUENTIAL_EXECS: usize = 300;
const CLIENTS: usize = 32;
const CONCURRENT_EXECS: usize = 960;
const START_DEADLINE: Duration = Duration::from_secs(60);
/// The server deletes a box after this time, if its deletion here failed.
const LIFETIME_S: u64 = 900;

/// # Errors
/// When the first box does not run or does not run a command.
pub async fn measure(client: &Client, raw: Option<&dyn Raw>) -> anyhow::Result<Vec<Figure>> {
    warm_up(client).await?;
    let mut figures = sequential(client, raw).await;
    figures.extend(execs(client, raw).await?);
    figures.push(burst(client, raw).await);
    Ok(figures)
}

/// Checks that a box runs a command. Afterwards connections are open, statements are prepared
/// and files are cached.
async fn warm_up(client: &Client) -> anyhow::Result<()> {
    for number in 0..3 {
        let (id, created) = create(client, &format!("bench-warm-{number}")).await;
        let worked = match (&id, created) {
            (Some(id), Ok(_)) => exec(client, id).await,
            (_, created) => created,
        };
        delete(client, id, true).await;
        match worked {
            Ok(_) => {}
            Err(error) if is_rate_limited(&error) => bail!(
                "the system limits the rate of requests: start it with {} set to {NO_LIMIT}",
                LIMITS.join(", ")
            ),
            Err(error) => return Err(error.context("measuring a first box")),
        }
    }
    Ok(())
}

fn is_rate_limited(error: &anyhow::Error) -> bool {
    let client = error.downcast_ref::<Error>();
    client.and_then(Error::status) == Some(429)
}

/// Creates, uses and deletes one box after the other, alternating with the runtime alone.
async fn sequential(client: &Client, raw: Option<&dyn Raw>) -> Vec<Figure> {
    let [
        mut creates,
        mut first_execs,
        mut raw_creates,
        mut raw_first_execs,
    ] = std::array::from_fn(|_| Samples::default());
    for number in 0..CREATES {
        wait_idle(raw).await;
        let (id, created) = create(client, &format!("bench-{number}")).await;
        if let (Some(id), Ok(_)) = (&id, &created) {
            first_execs.push(exec(client, id).await);
        }
        creates.push(created);
        delete(client, id, true).await;
        let Some(raw) = raw else { continue };
        raw.wait_idle().await;
        match raw.create(&format!("bench-{number}")).await {
            Ok((raw_box, took)) => {
                raw_creates.push(Ok(took));
                raw_first_execs.push(raw.exec(&raw_box).await);
                raw.remove(raw_box).await;
            }
            Err(error) => raw_creates.push(Err(error)),
        }
    }
    vec![
        creates
            .figure("create to running, one by one")
            .compared_with(raw.map(|raw| raw_creates.figure(raw.names().create))),
        first_execs
            .figure("first exec of `true` in a new box")
            .compared_with(raw.map(|raw| raw_first_execs.figure(raw.names().exec))),
    ]
}

/// Runs commands in one box, sequentially and concurrently.
async fn execs(client: &Client, raw: Option<&dyn Raw>) -> anyhow::Result<Vec<Figure>> {
    let (id, created) = create(client, "bench-exec").await;
    let (Some(id), Ok(_)) = (&id, &created) else {
        delete(client, id, false).await;
        return Err(created.err().context("creating a box for execs")?);
    };
    let raw_box = match raw {
        Some(raw) => Some((raw, raw.create("bench-exec").await?.0)),
        None => None,
    };
    let mut figures = Vec::new();
    for (clients, count) in [(1, SEQUENTIAL_EXECS), (CLIENTS, CONCURRENT_EXECS)] {
        let ours = concurrently(clients, count, || exec(client, id)).await;
        let baseline = match &raw_box {
            // Fewer samples, because each takes much longer.
            Some((raw, raw_box)) => {
                let samples = concurrently(clients, count / 5, || raw.exec(raw_box)).await;
                Some(samples.figure(raw.names().exec))
            }
            None => None,
        };
        let name = format!("exec `true`, one box, {clients} at a time");
        figures.push(ours.figure(&name).compared_with(baseline));
    }
    if let Some((raw, raw_box)) = raw_box {
        raw.remove(raw_box).await;
    }
    delete(client, Some(id.clone()), true).await;
    Ok(figures)
}

async fn concurrently<F: Future<Output = anyhow::Result<Duration>>>(
    clients: usize,
    count: usize,
    once: impl Fn() -> F,
) -> Samples {
    let started = Instant::now();
    let results = stream::iter((0..count).map(|_| once()))
        .buffer_unordered(clients)
        .collect()
        .await;
    Samples::concurrent(results, started.elapsed())
}

/// Creates many boxes at the same time, and then the same number with the runtime alone.
async fn burst(client: &Client, raw: Option<&dyn Raw>) -> Figure {
    wait_idle(raw).await;
    let started = Instant::now();
    let names = (0..CREATES).map(|number| format!("bench-burst-{number}"));
    let creates = names
        .clone()
        .map(|name| async move { create(client, &name).await });
    let made = join_all(creates).await;
    let wall = started.elapsed();
    let (ids, results): (Vec<_>, Vec<_>) = made.into_iter().unzip();
    join_all(ids.into_iter().map(|id| delete(client, id, true))).await;
    let ours = Samples::concurrent(results, wall);

    let baseline = match raw {
        Some(raw) => Some(raw_burst(raw, names).await),
        None => None,
    };
    ours.figure(&format!("create to running, {CREATES} at once"))
        .compared_with(baseline)
}

/// Calls [`Raw::wait_idle`] if the runtime alone is measured too.
async fn wait_idle(raw: Option<&dyn Raw>) {
    if let Some(raw) = raw {
        raw.wait_idle().await;
    }
}

/// The part of [`burst`] with the runtime alone.
async fn raw_burst(raw: &dyn Raw, names: impl Iterator<Item = String>) -> Figure {
    raw.wait_idle().await;
    let started = Instant::now();
    let made = join_all(names.map(|name| async move { raw.create(&name).await })).await;
    let wall = started.elapsed();
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
    Samples::concurrent(results, wall).figure(raw.names().create)
}

/// Creates a small box and measures the time until it runs; see [`start`].
async fn create(client: &Client, name: &str) -> (Option<EnvironmentId>, anyhow::Result<Duration>) {
    let resources = Resources {
        cpu: "1".to_owned(),
        memory: "64Mi".to_owned(),
        storage: "64Mi".to_owned(),
    };
    start(client, &request(name, resources)).await
}

/// The request for a box that idles.
pub fn request(name: &str, resources: Resources) -> CreateEnvironment {
    CreateEnvironment {
        name: name.to_owned(),
        image: IMAGE.to_owned(),
        resources,
        timeout: LIFETIME_S,
        idle_timeout: None,
        env: Default::default(),
        secret_env: Default::default(),
        command: None,
        use_entrypoint: false,
        labels: Default::default(),
        node_selector: Default::default(),
        tolerations: Vec::new(),
        isolation: None,
    }
}

/// Creates a box and measures the time from the request until the event that it runs. Also
/// gives the id of a box that did not start, for its deletion.
pub async fn start(
    client: &Client,
    body: &CreateEnvironment,
) -> (Option<EnvironmentId>, anyhow::Result<Duration>) {
    let started = Instant::now();
    let id = match client.create(body).await {
        Ok(made) => made.id,
        Err(error) => return (None, Err(error.into())),
    };
    let running = client
        .wait_until(&id, Status::Running, START_DEADLINE)
        .await;
    let took = started.elapsed();
    (Some(id), running.map(|_| took).map_err(Into::into))
}

/// Runs `true` in a box and measures the time of the request.
async fn exec(client: &Client, id: &EnvironmentId) -> anyhow::Result<Duration> {
    let body = ExecBody {
        command: vec!["true".to_owned()],
        timeout: DEFAULT_TIMEOUT,
        ..ExecBody::default()
    };
    let started = Instant::now();
    let reply = client.exec(id, &body).await?;
    let took = started.elapsed();
    ensure!(reply.exit_code == 0, "exit code {}", reply.exit_code);
    Ok(took)
}

/// Deletes a box. With `wait`, waits for its end, so that it does not slow the next sample.
pub async fn delete(client: &Client, id: Option<EnvironmentId>, wait: bool) {
    let Some(id) = id else { return };
    let deleted = async {
        client.delete(&id, true).await.context("deleting")?;
        if wait {
            client
                .wait_until(&id, Status::Terminated, START_DEADLINE)
                .await?;
        }
        anyhow::Ok(())
    };
    if let Err(error) = deleted.await {
        println!("{id} was not deleted: {error:#}");
    }
}
