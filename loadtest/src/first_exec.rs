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

use crate::environment::{delete, delete_all, exec, request, small, start};
use crate::figures::Samples;
use crate::pool::Pool;
use crate::report::{Gauge, Measured};
use crate::statistics::Better;
use crate::target::Api;

/// The pause between two creates of the staggered mode.
const STAGGER: Duration = Duration::from_millis(200);
const LIFETIME_S: u64 = 1_800;

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
    took: anyhow::Result<Duration>,
    from_pool: bool,
}

/// # Errors
/// When the pool cannot be created, or does not fill.
pub async fn measure(api: &Api, count: usize) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    for mode in Mode::ALL {
        measure_mode(api, mode, count, "cold", &mut measured).await;
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
        measure_mode(api, mode, count, "pool", measured).await;
    }
    Ok(())
}

async fn measure_mode(api: &Api, mode: Mode, count: usize, kind: &str, measured: &mut Measured) {
    println!("  {kind}, {}", mode.name(count));
    let started = Instant::now();
    let mut firsts = Vec::new();
    match mode {
        Mode::OneByOne => {
            for number in 0..count {
                let mut first = first(api, number, Duration::ZERO).await;
                delete(api, first.id.take(), true).await;
                firsts.push(first);
            }
        }
        Mode::Staggered | Mode::Burst => {
            let pause = match mode {
                Mode::Staggered => STAGGER,
                Mode::OneByOne | Mode::Burst => Duration::ZERO,
            };
            let all = (0u32..).take(count).map(|number| {
                let delay = pause * number;
                first(api, number as usize, delay)
            });
            firsts = join_all(all).await;
        }
    }
    let wall = started.elapsed();
    let hits = firsts.iter().filter(|first| first.from_pool).count();
    let mut ids = Vec::new();
    let mut results = Vec::new();
    for first in firsts {
        ids.extend(first.id);
        results.push(first.took);
    }
    delete_all(api, ids).await;
    let name = format!("create with first exec, {kind}, {}", mode.name(count));
    let figure = Samples::concurrent(results, wall).figure(&name);
    if kind == "pool" {
        measured.gauges.push(Gauge::new(
            format!("{name}: hits of the pool"),
            "boxes",
            hits as f64,
            Better::Higher,
        ));
    }
    measured.figures.push(figure);
}

/// Creates an environment after `delay`, and runs its first command.
async fn first(api: &Api, number: usize, delay: Duration) -> First {
    tokio::time::sleep(delay).await;
    let started = Instant::now();
    let (id, running) = start(api, &body(&number.to_string())).await;
    let from_pool = running.as_ref().is_ok_and(|running| running.from_pool);
    let took = match (&id, running) {
        (Some(id), Ok(_)) => exec(api, id).await.map(|_| started.elapsed()),
        (_, Err(error)) => Err(error),
        (None, Ok(_)) => Err(anyhow::anyhow!("an environment without an id")),
    };
    First {
        id,
        took,
        from_pool,
    }
}

fn body(name: &str) -> Value {
    request(&format!("bench-first-{name}"), small(), LIFETIME_S)
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
