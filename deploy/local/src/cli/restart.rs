//! `restart`: restarts the processes of one service in the running instance.
//!
//! * I1. Replicas are restarted one after the other: the next only when the one before is ready.
//! * I2. No process of another service is signalled.

use std::time::{Duration, Instant};

use agentbox_testing::check_ready;
use agentbox_testing::paths::Layout;
use agentbox_testing::state::{Phase, ProcessState, State};
use anyhow::{Context, bail};
use nix::sys::signal::Signal;

/// The time for a replica to stop and to become ready again.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// The time from SIGTERM to SIGKILL, as in the supervisor.
const STOP_DEADLINE: Duration = Duration::from_secs(25);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// # Errors
/// When AgentBox is not running, or a replica does not become ready.
pub(super) async fn run(layout: &Layout, service: &str) -> anyhow::Result<()> {
    let http = reqwest::Client::new();
    for name in replicas(layout, service)? {
        let started = Instant::now();
        restart(layout, &http, &name).await?;
        println!(
            "{name} is ready after {:.1} s",
            started.elapsed().as_secs_f32()
        );
    }
    Ok(())
}

/// The state of an instance that is ready.
pub(super) fn running_state(layout: &Layout) -> anyhow::Result<State> {
    match State::read(&layout.state()) {
        Some(state) if state.supervisor_is_alive() && state.phase == Phase::Ready => Ok(state),
        _ => bail!("AgentBox is not running; start it with `make up`"),
    }
}

/// The names of a service's processes, by index.
fn replicas(layout: &Layout, service: &str) -> anyhow::Result<Vec<String>> {
    let state = running_state(layout)?;
    let names: Vec<String> = (0..)
        .map(|index| format!("{service}-{index}"))
        .take_while(|name| state.processes.contains_key(name))
        .collect();
    if names.is_empty() {
        bail!("this instance has no process of {service}");
    }
    Ok(names)
}

fn process(layout: &Layout, name: &str) -> anyhow::Result<ProcessState> {
    let mut state = running_state(layout)?;
    let process = state.processes.remove(name);
    process.with_context(|| format!("this instance has no process {name}"))
}

/// Stops one replica and waits until the supervisor has started it again and it is ready.
async fn restart(layout: &Layout, http: &reqwest::Client, name: &str) -> anyhow::Result<()> {
    let before = process(layout, name)?.identity;
    if let Some(identity) = before {
        identity.signal(Signal::SIGTERM);
    }
    let started = Instant::now();
    loop {
        let now = process(layout, name)?;
        let reason = match (now.identity, &now.admin_url) {
            (Some(identity), _) if before == Some(identity) => {
                if started.elapsed() > STOP_DEADLINE {
                    identity.signal(Signal::SIGKILL);
                }
                "it has not stopped yet".to_owned()
            }
            (Some(_), Some(admin_url)) => match check_ready(http, admin_url).await {
                Ok(()) => return Ok(()),
                Err(reason) => reason,
            },
            (Some(_), None) => return Ok(()),
            (None, _) => now
                .last_end
                .unwrap_or_else(|| "it has not started yet".to_owned()),
        };
        if started.elapsed() > READY_DEADLINE {
            bail!("{name} is not ready after {READY_DEADLINE:?}: {reason} (see `make logs`)");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
