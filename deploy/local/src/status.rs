//! What an operator asks first: what runs, since when, how often it died, and whether
//! it is ready.

use std::fmt::Write as _;
use std::time::Duration;

use crate::containerd::cri::Cri;
use crate::plan::Layout;
use crate::state::{Phase, State};

/// Whether a service's admin port says ready; the reason when not.
pub(crate) async fn ask(http: &reqwest::Client, admin_url: &str) -> Result<(), String> {
    let answer = http
        .get(format!("{admin_url}/health/ready"))
        .timeout(Duration::from_secs(2))
        .send()
        .await
        .map_err(|_| "its admin port does not answer".to_owned())?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let said = answer.text().await.unwrap_or_default();
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(format!(
        "{} {}",
        status.as_u16(),
        said.chars().take(120).collect::<String>()
    ))
}

/// The whole answer, for a terminal. The flag says whether all is well.
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
    let _ = writeln!(
        text,
        "{:<16} {:>8} {:>10} {:>8}  STATE",
        "NAME", "PID", "UP", "RESTARTS"
    );
    let http = reqwest::Client::new();
    let mut well = state.phase == Phase::Ready;
    for (name, process) in &state.processes {
        let alive = process
            .identity
            .filter(crate::identity::ProcessIdentity::is_alive);
        let how = match (alive, &process.admin_url) {
            (None, _) => Err(format!(
                "not running: {}",
                process.last_end.as_deref().unwrap_or("not started yet")
            )),
            (Some(_), Some(admin)) => ask(&http, admin).await.map(|()| "ready".to_owned()),
            (Some(_), None) => Ok("running".to_owned()),
        };
        well &= how.is_ok();
        let how = how.map(|how| match &process.last_end {
            Some(end) => format!("{how}; it ended before: {end}"),
            None => how,
        });
        let pid = alive.map_or_else(|| "-".to_owned(), |identity| identity.pid.to_string());
        let up = alive.map_or_else(|| "-".to_owned(), |_| uptime(process.started_at));
        let how = how.unwrap_or_else(|why| format!("NOT READY: {why}"));
        let _ = writeln!(
            text,
            "{name:<16} {pid:>8} {up:>10} {:>8}  {how}",
            process.restarts
        );
    }
    text.push('\n');
    for cluster in &state.clusters {
        let kind = cluster.kind().as_str();
        let Some(socket) = cluster.socket() else {
            continue;
        };
        let boxes = async { Cri::connect(&socket).await?.count().await };
        let _ = match boxes.await {
            Ok((running, all)) => {
                writeln!(text, "boxes on {kind}: {running} running, {all} in all")
            }
            Err(error) => writeln!(text, "boxes on {kind}: unknown: {error}"),
        };
    }
    let _ = writeln!(text, "logs: {} (`make logs`)", layout.logs().display());
    (text, well)
}

fn uptime(started_at: i64) -> String {
    let seconds = (chrono::Utc::now().timestamp() - started_at).max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}
