//! Alerts that fire by their real cause, and end with it.
//!
//! Each is quiet before its cause. The durations of `for` and the long ranges are those of
//! `promtool test rules`: the rules of these instances fire at once, and look back for a minute.

use std::time::{Duration, Instant};

use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::subjects;
use agentbox_testing::{Options, System, eventually, eventually_some};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::client::{Client, UNKNOWN_IMAGE, small};
use super::processes::{first_process_of_box, signal_with_children};
use super::prometheus::Prometheus;

/// Longer than a step of the canary, and than the age at which a queue is stuck.
const FIRE_DEADLINE: Duration = Duration::from_secs(240);
const END_DEADLINE: Duration = Duration::from_secs(480);
/// An environment must run within 5 s of its request.
const TOO_SLOW: Duration = Duration::from_secs(6);
/// Longer than an exec may take, 0.5 s, and shorter than the deadline of any part.
const STALL: Duration = Duration::from_millis(1500);
/// The lifetime of the environment whose end NATS does not take.
const SHORT_LIFETIME_S: u64 = 30;

struct Observed {
    system: System,
    prometheus: Prometheus,
    client: Client,
}

impl Observed {
    async fn start() -> Self {
        let options = Options::default()
            .observed()
            .without_rate_limits()
            .env("prometheus", "RANGE", "1m")
            .env("canary", "AGENTBOX_CANARY_INTERVAL", "5");
        let system = System::start(options).await.unwrap();
        Self {
            prometheus: Prometheus::of(&system),
            client: Client::login(&system).await,
            system,
        }
    }

    /// Waits until none of the alerts fires.
    async fn quiet(&self, alerts: &[&str]) {
        let expected = format!("none of {alerts:?} fires");
        eventually(&expected, END_DEADLINE, async || {
            let firing = self.prometheus.firing().await;
            alerts.iter().all(|alert| !firing.contains(*alert))
        })
        .await;
    }

    async fn fires(&self, alert: &str) {
        eventually(&format!("{alert} fires"), FIRE_DEADLINE, async || {
            self.prometheus.firing().await.contains(alert)
        })
        .await;
    }

    /// As [`Self::fires`], while a client sends this request again and again.
    async fn fires_while(&self, alert: &str, path: &str, body: &Value) {
        eventually(&format!("{alert} fires"), FIRE_DEADLINE, async || {
            self.client.attempt(path, body).await;
            self.prometheus.firing().await.contains(alert)
        })
        .await;
    }

    /// Pauses a part until each of the alerts has fired, and waits until they have ended.
    async fn fire_by_pause(&self, part: &str, alerts: &[&str]) {
        self.pause(part);
        for alert in alerts {
            self.fires(alert).await;
        }
        self.resume(part);
        self.quiet(alerts).await;
    }

    fn pause(&self, part: &str) {
        signal_with_children(&self.system, part, Signal::SIGSTOP);
    }

    fn resume(&self, part: &str) {
        signal_with_children(&self.system, part, Signal::SIGCONT);
    }
}

#[tokio::test]
async fn paused_services_fire_their_alerts_until_they_continue() {
    let observed = Observed::start().await;
    let (_, id) = observed.client.create("kept").await;
    let exec = format!("/environments/{id}/exec");
    for (part, alert, path, body) in [
        (
            "exec-proxy",
            "AgentBoxExecErrors",
            exec.as_str(),
            json!({ "command": ["true"] }),
        ),
        (
            "scheduler",
            "AgentBoxCreateErrors",
            "/environments",
            small("refused"),
        ),
    ] {
        let alerts = ["AgentBoxTargetDown", alert];
        observed.quiet(&alerts).await;
        observed.pause(part);
        observed.fires("AgentBoxTargetDown").await;
        observed.fires_while(alert, path, &body).await;
        observed.resume(part);
        observed.quiet(&alerts).await;
    }
    observed.system.stop().await;
}

#[tokio::test]
async fn paused_stores_and_collector_fire_their_alerts_until_they_continue() {
    let observed = Observed::start().await;
    let of_nats = ["AgentBoxNatsUnreachable", "AgentBoxQueueStuck"];
    observed.quiet(&of_nats).await;
    // It ends while NATS is paused, so that the event of its end stays in the outbox.
    let mut body = small("short");
    body["timeout"] = SHORT_LIFETIME_S.into();
    observed.client.begin_create(body).await;
    observed.fire_by_pause("nats", &of_nats).await;

    let of_postgres = ["AgentBoxPostgresSlow", "AgentBoxCanaryFailing"];
    observed.quiet(&of_postgres).await;
    observed.fire_by_pause("postgres", &of_postgres).await;

    let of_collector = ["AgentBoxSpansDropped"];
    observed.quiet(&of_collector).await;
    observed
        .fire_by_pause("otel-collector", &of_collector)
        .await;
    observed.system.stop().await;
}

#[tokio::test]
async fn broken_environments_and_pools_fire_their_alerts_until_they_are_mended() {
    let observed = Observed::start().await;
    let client = &observed.client;

    let pulls = "AgentBoxImagePullsFailing";
    observed.quiet(&[pulls]).await;
    eventually("an alert of failed pulls", FIRE_DEADLINE, async || {
        client.create_with_unknown_image().await;
        observed.prometheus.firing().await.contains(pulls)
    })
    .await;
    observed.quiet(&[pulls]).await;

    let empty = "AgentBoxPoolEmpty";
    observed.quiet(&[empty]).await;
    client.set_pool("broken", UNKNOWN_IMAGE).await;
    observed.fires(empty).await;
    client.set_pool("broken", "busybox").await;
    observed.quiet(&[empty]).await;
    client.delete_pool("broken").await;

    let lost = "AgentBoxBoxesLost";
    observed.quiet(&[lost]).await;
    let text = format!("lost-box-{}", rand::random::<u64>());
    let mut body = small("lost");
    body["command"] = json!(["sh", "-c", format!("sleep 600; echo {text}")]);
    let (_, id) = client.create_as(body).await;
    let first = eventually_some("the command runs", FIRE_DEADLINE, async || {
        first_process_of_box(&text)
    })
    .await;
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    client.wait_for_status(&id, "failed").await;
    observed.fires(lost).await;
    observed.quiet(&[lost]).await;
    observed.system.stop().await;
}

#[tokio::test]
async fn stalls_fire_the_alerts_of_slow_creates_and_execs_until_they_end() {
    let observed = Observed::start().await;
    let client = &observed.client;
    let creates = "AgentBoxCreateSlow";
    observed.quiet(&[creates]).await;
    observed.pause("containerd");
    let (_, created) = client.begin_create(small("slow")).await;
    passes(TOO_SLOW).await;
    observed.resume("containerd");
    client
        .wait_for_status(created["id"].as_str().unwrap(), "running")
        .await;
    observed.fires(creates).await;
    observed.quiet(&[creates]).await;

    let execs = "AgentBoxExecSlow";
    observed.quiet(&[execs]).await;
    // A stall delays the canary's exec, or comes between two of them.
    eventually("an alert of slow execs", FIRE_DEADLINE, async || {
        observed.pause("exec-proxy");
        passes(STALL).await;
        observed.resume("exec-proxy");
        observed.prometheus.firing().await.contains(execs)
    })
    .await;
    observed.quiet(&[execs]).await;
    observed.system.stop().await;
}

/// Waits until this time has passed while a part is paused.
async fn passes(time: Duration) {
    let begun = Instant::now();
    eventually("the time passes", FIRE_DEADLINE, async || {
        begun.elapsed() > time
    })
    .await;
}

#[tokio::test]
async fn malformed_audit_entry_fires_the_alert_of_dead_letters() {
    let observed = Observed::start().await;
    let dead = "AgentBoxDeadLetters";
    observed.quiet(&[dead]).await;
    // The first value of a counter is no increase.
    observed.prometheus.wait_for_scrape().await;
    let nats = observed.system.nats.as_ref().unwrap();
    let (user, password) = nats.all_access();
    let connected =
        async_nats::ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
            .connect(&nats.url)
            .await
            .unwrap();
    async_nats::jetstream::new(connected)
        .publish(subjects::audit(AuditAction::Exec), "not an entry".into())
        .await
        .unwrap()
        .await
        .unwrap();
    observed.fires(dead).await;
    observed.quiet(&[dead]).await;
    observed.system.stop().await;
}
