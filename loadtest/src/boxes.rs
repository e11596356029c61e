//! Measures creates through the public API, and compares each case with the runtime alone.
//!
//! * I1. A case deletes its environments when it ends, also after a failure.

use std::time::Instant;

use futures::future::join_all;

use crate::environment::{create, delete, exec};
use crate::figures::{Figure, Samples};
use crate::raw::{Raw, RawBox};
use crate::report::Measured;
use crate::target::Api;

const CREATES: usize = 20;
/// The CPUs of a small environment.
const CPUS: u32 = 1;

pub async fn measure(api: &Api, raw: Option<&dyn Raw>) -> Measured {
    let mut figures = sequential(api, raw).await;
    figures.push(burst(api, raw).await);
    Measured {
        figures,
        ..Measured::default()
    }
}

/// Creates, uses and deletes one box after the other, alternating with the runtime alone.
async fn sequential(api: &Api, raw: Option<&dyn Raw>) -> Vec<Figure> {
    let [
        mut creates,
        mut first_execs,
        mut raw_creates,
        mut raw_first_execs,
    ] = std::array::from_fn(|_| Samples::default());
    for number in 0..CREATES {
        wait_idle(raw).await;
        let (id, created) = create(api, &format!("bench-{number}")).await;
        if let (Some(id), Ok(_)) = (&id, &created) {
            first_execs.push(exec(api, id).await);
        }
        creates.push(created.map(|started| started.took));
        delete(api, id, true).await;
        let Some(raw) = raw else { continue };
        raw.wait_idle().await;
        match raw.create(&format!("bench-{number}"), CPUS).await {
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

/// Creates many boxes at the same time, and then the same number with the runtime alone.
async fn burst(api: &Api, raw: Option<&dyn Raw>) -> Figure {
    wait_idle(raw).await;
    let started = Instant::now();
    let names = (0..CREATES).map(|number| format!("bench-burst-{number}"));
    let creates = names
        .clone()
        .map(|name| async move { create(api, &name).await });
    let made = join_all(creates).await;
    let wall = started.elapsed();
    let (ids, results): (Vec<_>, Vec<_>) = made.into_iter().unzip();
    join_all(ids.into_iter().map(|id| delete(api, id, true))).await;
    let results = results
        .into_iter()
        .map(|started| started.map(|started| started.took))
        .collect();
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
    let made = join_all(names.map(|name| async move { raw.create(&name, CPUS).await })).await;
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
