//! Environments for measurements: create, run a command, delete.
//!
//! An environment counts as running when the answer to its create says so, or when its event arrives
//! on a stream that is opened right after that answer, so that no polling interval is part of the time.

use std::time::{Duration, Instant};

use agentbox_contracts::environment::Status;
use agentbox_contracts::ids::EnvironmentId;
use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use futures::stream;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::figures::Samples;
use crate::http::{check_exit_code, is_rate_limited};
use crate::raw::IMAGE;
use crate::target::{Api, LIMITS, NO_LIMIT};

const START_DEADLINE: Duration = Duration::from_secs(60);
/// The server deletes an environment after this time, if its deletion here failed.
const LIFETIME_S: u64 = 900;

/// The size of an environment, as the API's quantities.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub cpu: &'static str,
    pub memory: &'static str,
    pub storage: &'static str,
}

/// The size in which creates are compared with the runtime alone.
pub const fn small() -> Size {
    Size {
        cpu: "1",
        memory: "64Mi",
        storage: "64Mi",
    }
}

#[derive(Deserialize)]
struct Created {
    id: EnvironmentId,
    #[serde(default)]
    status: String,
    #[serde(default)]
    pool: Option<Pool>,
}

#[derive(Deserialize)]
struct Pool {
    #[serde(default)]
    hit: bool,
}

/// A started environment.
#[derive(Debug)]
pub struct Started {
    pub took: Duration,
    /// Whether it came from a warm pool.
    pub from_pool: bool,
}

#[derive(Deserialize)]
struct ExecResult {
    exit_code: i64,
}

/// The body for an environment that idles.
pub fn request(name: &str, size: Size, lifetime_s: u64) -> Value {
    json!({
        "name": name,
        "image": IMAGE,
        "resources": { "cpu": size.cpu, "memory": size.memory, "storage": size.storage },
        "timeout": lifetime_s,
    })
}

/// Creates an environment and measures the time from the request until it runs. Also gives the id of one
/// that did not start, for its deletion.
pub async fn start(api: &Api, body: &Value) -> (Option<EnvironmentId>, anyhow::Result<Started>) {
    let started = Instant::now();
    let created = api.http.post("/api/v1/environments", body).await;
    let created = created.and_then(|body| {
        serde_json::from_slice::<Created>(&body).context("the answer to a create")
    });
    let created = match created {
        Ok(created) => created,
        Err(error) => return (None, Err(error)),
    };
    if created.status != Status::Running.as_str() {
        let running = api
            .client
            .wait_until(&created.id, Status::Running, START_DEADLINE)
            .await;
        if let Err(error) = running {
            return (Some(created.id), Err(error.into()));
        }
    }
    let started = Started {
        took: started.elapsed(),
        from_pool: created.pool.is_some_and(|pool| pool.hit),
    };
    (Some(created.id), Ok(started))
}

/// As [`start`], with a small environment of this name.
pub async fn create(api: &Api, name: &str) -> (Option<EnvironmentId>, anyhow::Result<Started>) {
    start(api, &request(name, small(), LIFETIME_S)).await
}

/// Creates `count` environments one after the other. Deletes them again if one does not start.
///
/// # Errors
/// When one does not start.
pub async fn create_all(
    api: &Api,
    name: &str,
    size: Size,
    lifetime_s: u64,
    count: usize,
) -> anyhow::Result<Vec<EnvironmentId>> {
    let mut ids = Vec::new();
    for number in 0..count {
        let body = request(&format!("{name}-{number}"), size, lifetime_s);
        let (id, started) = start(api, &body).await;
        ids.extend(id);
        if let Err(error) = started {
            delete_all(api, ids).await;
            return Err(error.context(format!("creating an environment for {name}")));
        }
    }
    Ok(ids)
}

/// Runs `true` in an environment and measures the time of the request.
pub async fn exec(api: &Api, id: &EnvironmentId) -> anyhow::Result<Duration> {
    let path = format!("/api/v1/environments/{id}/exec");
    let body = json!({ "command": ["true"], "timeout": 30 });
    let started = Instant::now();
    let reply = api.http.post(&path, &body).await?;
    let took = started.elapsed();
    let reply: ExecResult = serde_json::from_slice(&reply).context("the answer to an exec")?;
    check_exit_code(reply.exit_code)?;
    Ok(took)
}

/// Deletes an environment. With `wait`, waits for its end, so that it does not slow the next sample.
pub async fn delete(api: &Api, id: Option<EnvironmentId>, wait: bool) {
    let Some(id) = id else { return };
    let deleted = async {
        let path = format!("/api/v1/environments/{id}?force=true");
        api.http.delete(&path).await.context("deleting")?;
        if wait {
            let ended = api
                .client
                .wait_until(&id, Status::Terminated, START_DEADLINE);
            ended.await?;
        }
        anyhow::Ok(())
    };
    if let Err(error) = deleted.await {
        println!("{id} was not deleted: {error:#}");
    }
}

/// Deletes environments, some at the same time, and waits for their ends.
pub async fn delete_all(api: &Api, ids: Vec<EnvironmentId>) {
    const AT_ONCE: usize = 8;
    let deletions = ids.into_iter().map(|id| delete(api, Some(id), true));
    stream::iter(deletions)
        .buffer_unordered(AT_ONCE)
        .collect::<()>()
        .await;
}

/// Checks that an environment runs a command. Afterwards connections are open, statements are prepared
/// and files are cached.
///
/// # Errors
/// When it does not, or the system limits the rate of requests.
pub async fn warm_up(api: &Api) -> anyhow::Result<()> {
    for number in 0..3 {
        let (id, created) = create(api, &format!("bench-warm-{number}")).await;
        let worked = match (&id, created) {
            (Some(id), Ok(_)) => exec(api, id).await,
            (_, created) => created.map(|started| started.took),
        };
        delete(api, id, true).await;
        match worked {
            Ok(_) => {}
            Err(error) if is_rate_limited(&error) => bail!(
                "the system limits the requests of one user: start it with {} set to {NO_LIMIT}",
                LIMITS.join(", ")
            ),
            Err(error) => return Err(error.context("measuring a first environment")),
        }
    }
    Ok(())
}

/// Runs `once` `count` times, by `clients` at the same time.
pub async fn concurrently<F: Future<Output = anyhow::Result<Duration>>>(
    clients: usize,
    count: usize,
    once: impl Fn(usize) -> F,
) -> Samples {
    let started = Instant::now();
    let results = stream::iter((0..count).map(once))
        .buffer_unordered(clients)
        .collect()
        .await;
    Samples::concurrent(results, started.elapsed())
}
