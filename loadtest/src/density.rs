//! Creates idle environments until the first limit, which is named, and measures what each costs.
//!
//! * I1. The environments are deleted at the end, also after a failure.

use std::cell::Cell;
use std::time::{Duration, Instant};

use agentbox_contracts::ids::EnvironmentId;
use agentbox_testing::System;
use futures::StreamExt as _;
use futures::stream;

use crate::environment::{Size, delete_all, request, start};
use crate::report::{Gauge, Measured};
use crate::resources::SERVICES;
use crate::resources::processes::{available_mib, boxds, processor_time, proportional_mib};
use crate::statistics::Better;
use crate::target::{Api, Target};

const SIZE: Size = Size {
    cpu: "50m",
    memory: "32Mi",
    storage: "64Mi",
};
const LIFETIME_S: u64 = 7_200;
/// Creates at the same time.
const AT_ONCE: usize = 4;
/// No more environments are created when the machine has less memory left.
const RESERVE_MIB: f64 = 1_024.0;
/// How long the processor time of idle environments is measured, and the pause before it.
const IDLE: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(10);

/// The environments, and the limit that was reached.
struct Filled {
    ids: Vec<EnvironmentId>,
    running: usize,
    limit: String,
}

/// # Errors
/// When a running system is measured: its processes are not known.
pub async fn measure(target: &Target, most: usize) -> anyhow::Result<Measured> {
    let system = target.require_new_system()?;
    let before_mib = available_mib();
    let filled = fill(&target.api, most).await;
    let used_mib = before_mib - available_mib();
    let running = filled.running.max(1) as f64;
    let mut measured = Measured::default();
    let mut gauge = |name: &str, unit: &str, value, better| {
        measured.gauges.push(Gauge::new(name, unit, value, better));
    };
    gauge(
        "environments",
        "boxes",
        filled.running as f64,
        Better::Higher,
    );
    gauge(
        "memory of the machine for each environment",
        "MiB",
        used_mib / running,
        Better::Lower,
    );
    let boxds = system
        .containerd
        .as_ref()
        .map(|containerd| boxds(&containerd.deployment))
        .unwrap_or_default();
    if !boxds.is_empty() {
        let sum: f64 = boxds.iter().map(|pid| proportional_mib(*pid)).sum();
        let mean = sum / boxds.len() as f64;
        gauge("PSS of boxd, mean", "MiB", mean, Better::Lower);
    }
    tokio::time::sleep(SETTLE).await;
    let (of_services, of_boxds) = idle_processors(system, &boxds).await;
    let name = "processor of the services, idle";
    gauge(name, "% of a core", of_services, Better::Lower);
    let name = "processor of all boxds, idle";
    gauge(name, "% of a core", of_boxds, Better::Lower);
    delete_all(&target.api, filled.ids).await;
    measured
        .findings
        .push(format!("{} environments: {}", filled.running, filled.limit));
    Ok(measured)
}

/// Creates environments until one does not run.
async fn fill(api: &Api, most: usize) -> Filled {
    let mut ids = Vec::new();
    let (mut running, mut limit) = (0, None);
    let is_full = Cell::new(false);
    // Creates that have begun are awaited, so that each environment is known and deleted.
    let wanted = (0..most).take_while(|_| !is_full.get());
    let creates = wanted.map(|number| async move {
        let body = request(&format!("bench-density-{number}"), SIZE, LIFETIME_S);
        start(api, &body).await
    });
    let mut creates = stream::iter(creates).buffer_unordered(AT_ONCE);
    while let Some((id, started)) = creates.next().await {
        ids.extend(id);
        match started {
            Ok(_) => running += 1,
            Err(error) => {
                limit.get_or_insert_with(|| format!("the first limit is {error:#}"));
            }
        }
        let left = available_mib();
        if left < RESERVE_MIB {
            limit.get_or_insert_with(|| format!("the machine has {left:.0} MiB of memory left"));
        }
        is_full.set(limit.is_some());
    }
    Filled {
        ids,
        running,
        limit: limit.unwrap_or_else(|| "no limit was reached".to_owned()),
    }
}

/// The processor time of the services and of these processes, in percent of one core.
async fn idle_processors(system: &System, boxds: &[u32]) -> (f64, f64) {
    let services: Vec<u32> = SERVICES
        .iter()
        .flat_map(|service| system.pids(service).into_values())
        .collect();
    let used = |pids: &[u32]| pids.iter().copied().map(processor_time).sum::<Duration>();
    let (services_before, boxds_before) = (used(&services), used(boxds));
    let started = Instant::now();
    tokio::time::sleep(IDLE).await;
    let wall = started.elapsed();
    let share = |after: Duration, before: Duration| {
        100.0 * after.saturating_sub(before).as_secs_f64() / wall.as_secs_f64()
    };
    (
        share(used(&services), services_before),
        share(used(boxds), boxds_before),
    )
}
