//! `down` and `clean`. They also work after the supervisor was killed.

use std::time::{Duration, Instant};

use agentbox_testing::paths::Layout;
use agentbox_testing::plan::Plan;
use agentbox_testing::state::State;
use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use crate::cleanup;
use crate::cluster_paths::ClusterPaths;
use crate::kubernetes::existing;

/// The sum of the supervisor's own deadlines is shorter.
const DEADLINE: Duration = Duration::from_secs(110);

pub(super) async fn run(layout: &Layout) -> anyhow::Result<()> {
    let state = State::read(&layout.state());
    let Some(supervisor) = state
        .as_ref()
        .filter(|state| state.supervisor_is_alive())
        .and_then(|state| state.supervisor)
    else {
        remove_stale(layout).await;
        println!("AgentBox is not running");
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
        println!("the supervisor did not stop within {DEADLINE:?} and was killed");
    }
    remove_stale(layout).await;
    println!(
        "AgentBox is stopped; its data are kept in {}",
        layout.directory().display()
    );
    Ok(())
}

fn read_plan(layout: &Layout) -> Option<Plan> {
    let text = std::fs::read(layout.plan()).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Kills and removes what a killed supervisor left. Processes are found in the state file by
/// their identities, and everything else by names that follow from the plan.
pub(super) async fn remove_stale(layout: &Layout) {
    if let Some(state) = State::read(&layout.state()) {
        if state.supervisor_is_alive() {
            return;
        }
        let left: Vec<_> = state
            .processes
            .values()
            .filter_map(|process| process.identity)
            .collect();
        // On SIGQUIT Postgres also ends its own children.
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
    if let Some(plan) = read_plan(layout)
        && let Some(deployment) = plan.deployment
    {
        for kind in plan.components.clusters() {
            cleanup::remove(&ClusterPaths::of_instance(layout, &deployment, kind)).await;
        }
        cleanup::unmount_postgres(&deployment);
    }
    let _ = std::fs::remove_file(layout.state());
}

pub(super) async fn clean(layout: &Layout) -> anyhow::Result<()> {
    run(layout).await?;
    // A mistyped option must not remove another program's directory.
    if layout.directory().exists() && !layout.plan().exists() {
        bail!(
            "{} contains no plan.json: it is not a directory of AgentBox",
            layout.directory().display()
        );
    }
    if let Some(plan) = read_plan(layout)
        && let (Some(deployment), Some(existing)) = (&plan.deployment, &plan.existing)
    {
        let removed = existing::remove_boxes(existing, deployment).await;
        let removed = removed.context("cannot remove the boxes from your Kubernetes")?;
        println!("removed {removed} boxes from your Kubernetes");
    }
    if layout.directory().exists() {
        std::fs::remove_dir_all(layout.directory())?;
        println!("removed {}", layout.directory().display());
    }
    Ok(())
}
