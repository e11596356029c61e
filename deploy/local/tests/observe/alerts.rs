//! Alerts that fire by their real cause, and end with it. The durations of `for` are those of
//! `promtool test rules`; a test's instance has none.

use std::time::Duration;

use agentbox_testing::{Options, System, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::Client;
use super::prometheus::Prometheus;

const FIRE_DEADLINE: Duration = Duration::from_secs(120);
/// Rates over five minutes end that much later than their cause.
const END_DEADLINE: Duration = Duration::from_secs(480);

struct Observed {
    system: System,
    prometheus: Prometheus,
}

impl Observed {
    async fn start() -> Self {
        let options = Options::default()
            .observed()
            .env("canary", "AGENTBOX_CANARY_INTERVAL", "5")
            .env("api-gateway", "AGENTBOX_RATE_LIMIT_AUTH", "1000000")
            .env("api-gateway", "AGENTBOX_RATE_LIMIT_CREATE", "1000000");
        let system = System::start(options).await.unwrap();
        let prometheus = Prometheus::of(&system);
        Self { system, prometheus }
    }

    async fn fires(&self, alert: &str) {
        eventually(&format!("{alert} fires"), FIRE_DEADLINE, async || {
            self.prometheus.firing().await.contains(alert)
        })
        .await;
    }

    async fn ends(&self, alert: &str) {
        eventually(&format!("{alert} ends"), END_DEADLINE, async || {
            !self.prometheus.firing().await.contains(alert)
        })
        .await;
    }

    /// Sends a signal to the process `name` and to its children: each connection to Postgres has one.
    fn signal(&self, name: &str, signal: Signal) {
        let pid = self.system.pids(name)[&0].cast_signed();
        for pid in children(pid).into_iter().chain([pid]) {
            // A child may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

/// The processes whose parent is `parent`.
fn children(parent: i32) -> Vec<i32> {
    let process = |entry: std::io::Result<std::fs::DirEntry>| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may contain spaces and brackets; the state and the parent follow it.
        let (_, rest) = stat.rsplit_once(')')?;
        let its_parent: i32 = rest.split_whitespace().nth(1)?.parse().ok()?;
        (its_parent == parent).then_some(pid)
    };
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(process)
        .collect()
}

#[tokio::test]
async fn paused_parts_fire_their_alerts_until_they_continue() {
    let observed = Observed::start().await;
    for (part, alert) in [
        ("exec-proxy", "AgentBoxTargetDown"),
        ("nats", "AgentBoxNatsUnreachable"),
        ("postgres", "AgentBoxPostgresSlow"),
        ("otel-collector", "AgentBoxSpansDropped"),
    ] {
        observed.signal(part, Signal::SIGSTOP);
        observed.fires(alert).await;
        observed.signal(part, Signal::SIGCONT);
    }
    for alert in [
        "AgentBoxTargetDown",
        "AgentBoxNatsUnreachable",
        "AgentBoxPostgresSlow",
        "AgentBoxSpansDropped",
    ] {
        observed.ends(alert).await;
    }
    observed.system.stop().await;
}

#[tokio::test]
async fn image_that_cannot_be_pulled_fires_its_alert() {
    let observed = Observed::start().await;
    let client = Client::login(&observed.system).await;
    eventually("the alert fires", FIRE_DEADLINE, async || {
        client.create_with_unknown_image().await;
        let firing = observed.prometheus.firing().await;
        firing.contains("AgentBoxImagePullsFailing")
    })
    .await;
    observed.system.stop().await;
}
