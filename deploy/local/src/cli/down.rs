//! `down` and `clean`, also after the supervisor was killed.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use crate::containerd::leftovers;
use crate::plan::{Layout, Plan};
use crate::state::State;

/// The supervisor's own bounds add up to less.
const DEADLINE: Duration = Duration::from_secs(110);

pub(super) async fn run(layout: &Layout) -> anyhow::Result<()> {
    let state = State::read(&layout.state());
    let Some(supervisor) = state
        .as_ref()
        .filter(|state| state.supervisor_is_alive())
        .and_then(|state| state.supervisor)
    else {
        sweep(layout).await;
        println!("AgentBox is not running.");
        return Ok(());
    };
    println!("stopping services, boxes, their cluster, NATS and Postgres");
    supervisor.signal(Signal::SIGTERM);
    let deadline = Instant::now() + DEADLINE;
    while supervisor.is_alive() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    if supervisor.is_alive() {
        supervisor.signal(Signal::SIGKILL);
        println!("the supervisor did not end within {DEADLINE:?} and was killed");
    }
    sweep(layout).await;
    println!(
        "AgentBox is down; its data stay in {}",
        layout.directory().display()
    );
    Ok(())
}

fn plan_of(layout: &Layout) -> Option<Plan> {
    let text = std::fs::read(layout.plan()).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Ends and removes what a killed supervisor left. Nothing is killed by its pid alone,
/// and the names of everything else follow from the plan.
pub(super) async fn sweep(layout: &Layout) {
    if let Some(state) = State::read(&layout.state()) {
        if state.supervisor_is_alive() {
            return;
        }
        let left: Vec<_> = state
            .processes
            .values()
            .filter_map(|process| process.identity)
            .collect();
        // Postgres takes SIGQUIT to leave nothing of its own.
        for identity in &left {
            identity.signal(Signal::SIGQUIT);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while left.iter().any(|identity| identity.is_alive()) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for identity in &left {
            identity.signal(Signal::SIGKILL);
        }
    }
    if let Some(plan) = plan_of(layout)
        && let Some(deployment) = plan.deployment
    {
        for kind in plan.parts.clusters() {
            leftovers::remove(&layout.cluster(&deployment, kind)).await;
        }
        leftovers::release_postgres(&deployment);
    }
    let _ = std::fs::remove_file(layout.state());
}

pub(super) async fn clean(layout: &Layout) -> anyhow::Result<()> {
    run(layout).await?;
    // Nobody else's directory is removed because of a mistyped option.
    if layout.directory().exists() && !layout.plan().exists() {
        bail!(
            "{} is not a directory of ours",
            layout.directory().display()
        );
    }
    if let Some(plan) = plan_of(layout)
        && let (Some(deployment), Some(existing)) = (&plan.deployment, &plan.existing)
    {
        let removed = existing.remove_boxes(deployment).await;
        let removed = removed.context("the boxes on your Kubernetes are still there")?;
        println!("removed {removed} boxes from your Kubernetes");
    }
    if layout.directory().exists() {
        std::fs::remove_dir_all(layout.directory())?;
        println!("removed {}", layout.directory().display());
    }
    Ok(())
}
