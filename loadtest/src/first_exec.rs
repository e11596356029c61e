//! Measures the time from a create's request to the answer of the first command, in the three modes of
//! ComputeSDK's public benchmark: one by one, staggered by 200 ms, and all at once.
//!
//! If the system has warm pools, the modes run a second time with a pool that has a ready box for each
//! create at the start of each mode.
//!
//! * I1. The environments and the pool are deleted at the end, also after a failure.

use std::time::{Duration, Instant};

use agentbox_contracts::ids::EnvironmentId;
use futures::future::join_all;
use serde_json::Value;

use crate::environment::{Size, delete, delete_all, exec, request, start};
use crate::figures::Samples;
use crate::pool::Pool;
use crate::report::{Gauge, Measured};
use crate::statistics::Better;
use crate::target::Api;

/// The pause between two creates of the staggered mode.
const STAGGER: Duration = Duration::from_millis(200);
/// Of 2 processors, which are reserved 20 times, 200 environments fit: 100 that were claimed, and as many
/// that replace them in the pool.
const SIZE: Size = Size {
    cpu: "200m",
    memory: "64Mi",
    storage: "64Mi",
};
const LIFETIME_S: u64 = 1_800;
/// The names of the two kinds of creates.
const COLD: &str = "cold";
const WITH_POOL: &str = "from a pool";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    OneByOne,
    Staggered,
    Burst,
}

impl Mode {
    const ALL: [Self; 3] = [Self::OneByOne, Self::Staggered, Self::Burst];

    fn name(self, count: usize) -> String {
        match self {
            Self::OneByOne => "one by one".to_owned(),
            Self::Staggered => format!("{count} staggered by {} ms", STAGGER.as_millis()),
            Self::Burst => format!("{count} at once"),
        }
    }
}

/// One create with its first command.
struct First {
    id: Option<EnvironmentId>,
    /// The time until it ran; `None` if it did not.
    running: Option<Duration>,
    took: anyhow::Result<Duration>,
    from_pool: bool,
}

/// # Errors
/// When the pool cannot be created, or does not fill.
pub async fn measure(api: &Api, count: usize) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    for mode in Mode::ALL {
        measure_mode(api, mode, count, COLD, &mut measured).await;
    }
    let body = body("pool");
    match Pool::create(api, &body, count).await? {
        None => measured
            .findings
            .push("warm pools are not measured: the system has none".to_owned()),
        Some(pool) => {
            let outcome = with_pool(api, &pool, count, &mut measured).await;
            pool.delete(api).await;
            outcome?;
        }
    }
    Ok(measured)
}

async fn with_pool(
    api: &Api,
    pool: &Pool,
    count: usize,
    measured: &mut Measured,
) -> anyhow::Result<()> {
    for mode in Mode::ALL {
        pool.wait_full(api).await?;
        measure_mode(api, mode, count, WITH_POOL, measured).await;
    }
    Ok(())
}

async fn measure_mode(api: &Api, mode: Mode, count: usize, kind: &str, measured: &mut Measured) {
    println!("  {kind}, {}", mode.name(count));
    let started = Instant::now();
    let firsts = match mode {
        Mode::OneByOne => one_by_one(api, count).await,
        Mode::Staggered => together(api, count, STAGGER).await,
        Mode::Burst => together(api, count, Duration::ZERO).await,
    };
    let wall = match mode {
        // Without the deletions between the creates.
        Mode::OneByOne => firsts
            .iter()
            .filter_map(|first| first.took.as_ref().ok())
            .sum::<Duration>(),
        Mode::Staggered | Mode::Burst => started.elapsed(),
    };
    let hits = firsts.iter().filter(|first| first.from_pool).count();
    let (mut ids, mut running, mut results) = (Vec::new(), Vec::new(), Vec::new());
    for first in firsts {
        ids.extend(first.id);
        running.extend(first.running.map(Ok));
        results.push(first.took);
    }
    delete_all(api, ids).await;
    let case = format!("{kind}, {}", mode.name(count));
    if kind == WITH_POOL {
        measured.gauges.push(Gauge::new(
            format!("{case}: hits of the pool"),
            "boxes",
            hits as f64,
            Better::Higher,
        ));
    }
    measured.figures.extend([
        Samples::concurrent(running, wall).figure(&format!("create to running, {case}")),
        Samples::concurrent(results, wall).figure(&format!("create with first exec, {case}")),
    ]);
}

/// Each environment is deleted before the next one is created.
async fn one_by_one(api: &Api, count: usize) -> Vec<First> {
    let mut firsts = Vec::new();
    for number in 0..count {
        let mut first = first(api, number, Duration::ZERO).await;
        delete(api, first.id.take(), true).await;
        firsts.push(first);
    }
    firsts
}

/// Each create is sent `pause` after the one before it, whether that one is answered or not.
async fn together(api: &Api, count: usize, pause: Duration) -> Vec<First> {
    let delays = std::iter::successors(Some(Duration::ZERO), |delay| Some(*delay + pause));
    let all = delays
        .take(count)
        .enumerate()
        .map(|(number, delay)| first(api, number, delay));
    join_all(all).await
}

/// Creates an environment after `delay`, and runs its first command.
async fn first(api: &Api, number: usize, delay: Duration) -> First {
    tokio::time::sleep(delay).await;
    let started = Instant::now();
    let (id, running) = start(api, &body(&number.to_string())).await;
    let from_pool = running.as_ref().is_ok_and(|running| running.from_pool);
    let until_running = running.as_ref().ok().map(|running| running.took);
    let took = match (&id, running) {
        (Some(id), Ok(_)) => exec(api, id).await.map(|_| started.elapsed()),
        (_, Err(error)) => Err(error),
        (None, Ok(_)) => Err(anyhow::anyhow!("an environment without an id")),
    };
    First {
        id,
        running: until_running,
        took,
        from_pool,
    }
}

fn body(name: &str) -> Value {
    request(&format!("bench-first-{name}"), SIZE, LIFETIME_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_named_by_their_numbers() {
        let names = Mode::ALL.map(|mode| mode.name(100));
        assert_eq!(
            names,
            ["one by one", "100 staggered by 200 ms", "100 at once"]
        );
    }
}
