//! The report of `status`: which processes run, since when, how often each was restarted, and
//! whether it is ready.

use std::fmt::Write as _;

use agentbox_testing::ProcessIdentity;
use agentbox_testing::check_ready;
use agentbox_testing::paths::Layout;
use agentbox_testing::state::{Phase, ProcessState, State};

use crate::containerd::cri::Cri;

/// The report, and whether every process is ready.
pub(crate) async fn report(layout: &Layout) -> (String, bool) {
    let state = match State::read(&layout.state()) {
        Some(state) if state.supervisor_is_alive() => state,
        Some(State {
            phase: Phase::Failed { message },
            ..
        }) => {
            return (
                format!("not running; the last start failed: {message}\n"),
                false,
            );
        }
        _ => return ("not running; start it with `make up`\n".to_owned(), false),
    };
    let mut text = String::new();
    let phase = match &state.phase {
        Phase::Starting => "starting",
        Phase::Ready => "running",
        Phase::Stopping => "stopping",
        Phase::Failed { .. } | Phase::Stopped => "stopped",
    };
    let url = state
        .gateway
        .as_ref()
        .map_or("-", |gateway| gateway.url.as_str());
    let _ = writeln!(text, "AgentBox is {phase} at {url}\n");
    let is_ready = write_processes(&mut text, &state).await;
    text.push('\n');
    write_boxes(&mut text, &state).await;
    let _ = writeln!(text, "logs: {} (`make logs`)", layout.logs().display());
    (text, is_ready && state.phase == Phase::Ready)
}

/// One line for each process. Returns whether all are ready.
async fn write_processes(text: &mut String, state: &State) -> bool {
    let _ = writeln!(
        text,
        "{:<16} {:>8} {:>10} {:>8}  STATE",
        "NAME", "PID", "UP", "RESTARTS"
    );
    let http = reqwest::Client::new();
    let mut all_ready = true;
    for (name, process) in &state.processes {
        let alive = process.identity.filter(ProcessIdentity::is_alive);
        let readiness = readiness(&http, process, alive.is_some()).await;
        all_ready &= readiness.is_ok();
        let readiness = match (readiness, &process.last_end) {
            (Ok(state), Some(end)) => format!("{state}; last exit: {end}"),
            (Ok(state), None) => state.to_owned(),
            (Err(reason), _) => format!("NOT READY: {reason}"),
        };
        let pid = alive.map_or_else(|| "-".to_owned(), |identity| identity.pid.to_string());
        let up = alive.map_or_else(|| "-".to_owned(), |_| uptime(process.started_at));
        let _ = writeln!(
            text,
            "{name:<16} {pid:>8} {up:>10} {:>8}  {readiness}",
            process.restarts
        );
    }
    all_ready
}

async fn readiness(
    http: &reqwest::Client,
    process: &ProcessState,
    is_alive: bool,
) -> Result<&'static str, String> {
    match &process.admin_url {
        _ if !is_alive => Err(match &process.last_end {
            Some(end) => format!("not running; last exit: {end}"),
            None => "not started yet".to_owned(),
        }),
        Some(admin_url) => check_ready(http, admin_url).await.map(|()| "ready"),
        None => Ok("running"),
    }
}

/// The number of boxes on each cluster of this machine.
async fn write_boxes(text: &mut String, state: &State) {
    for cluster in &state.clusters {
        let kind = cluster.kind().as_str();
        let Some(socket) = cluster.socket() else {
            continue;
        };
        let boxes = async { Cri::connect(&socket).await?.count().await };
        let _ = match boxes.await {
            Ok((running, total)) => {
                writeln!(text, "boxes on {kind}: {running} running, {total} total")
            }
            Err(error) => writeln!(text, "boxes on {kind}: unknown: {error}"),
        };
    }
}

fn uptime(started_at: i64) -> String {
    let seconds = (chrono::Utc::now().timestamp() - started_at).max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}
