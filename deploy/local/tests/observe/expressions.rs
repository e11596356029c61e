//! Every expression of every panel and rule, on a Prometheus that read a system in a scenario where a client
//! counted what it did.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agentbox_testing::{Options, System, eventually};

use super::client::{Client, Done, FILE_BYTES};
use super::dashboards::panels;
use super::prometheus::{Prometheus, Series, now};

/// The client works for at least this time. A rate is exact to an interval between two scrapes (one second)
/// at each end of its window.
const SCENARIO: Duration = Duration::from_secs(60);
/// How much a rate may differ from the client's count.
const TOLERANCE: f64 = 0.05;
const CANARY_DEADLINE: Duration = Duration::from_secs(120);
const COUNT_DEADLINE: Duration = Duration::from_secs(60);
const RULES_DEADLINE: Duration = Duration::from_secs(60);

/// The panels about what does not happen in the scenario. The others must have data.
const SILENT: [&str; 13] = [
    "Answers with 5xx by route",
    "Boxes of pools",
    "Components that are not ready",
    "Creates that match a pool",
    "Failed starts of boxes for a pool",
    "Failed steps",
    "Failures",
    "Failures by reason",
    "File system of images",
    "Limits reached",
    "Pulls refused",
    "Requests that failed",
    "Rows removed after their retention",
];

/// What is known about the series of one expression of a panel.
enum Known {
    /// The number of events in the window, of which the expression is the rate.
    Events(u32),
    Value(f64),
    /// More than zero, and at most this.
    AtMost(f64),
}

struct Check {
    panel: &'static str,
    /// The index of the expression.
    expression: usize,
    labels: &'static [(&'static str, &'static str)],
    known: Known,
}

const fn check(
    panel: &'static str,
    expression: usize,
    labels: &'static [(&'static str, &'static str)],
    known: Known,
) -> Check {
    Check {
        panel,
        expression,
        labels,
        known,
    }
}

/// What follows from what the client did, while one more environment was running.
fn checks(done: &Done) -> Vec<Check> {
    use Known::{AtMost, Events, Value};
    const FILES_IN: &[(&str, &str)] = &[("kind", "files"), ("direction", "in")];
    const FILES_OUT: &[(&str, &str)] = &[("kind", "files"), ("direction", "out")];
    const CREATE: &[(&str, &str)] = &[
        ("http_request_method", "POST"),
        ("http_route", "/api/v1/environments"),
    ];
    const EXEC: &[(&str, &str)] = &[
        ("http_request_method", "POST"),
        ("http_route", "/api/v1/environments/{id}/exec"),
    ];
    const WRITE: &[(&str, &str)] = &[("operation", "write"), ("error_type", "")];
    const READ: &[(&str, &str)] = &[("operation", "read"), ("error_type", "")];
    const INSERT: &[(&str, &str)] = &[
        ("db_operation_name", "INSERT"),
        ("db_collection_name", "environments"),
    ];
    // The histogram's bucket that contains the longest exec ends at most at 2.5 times it, or at 1 ms.
    let slowest_exec = (done.longest_exec.as_secs_f64() * 2.5).max(0.001);
    vec![
        check("Requests by route", 0, CREATE, Events(done.creates)),
        check("Requests by route", 0, EXEC, Events(done.execs)),
        check("Logins", 0, &[("outcome", "ok")], Events(done.logins)),
        check("Logins", 0, &[("outcome", "failed")], Value(0.0)),
        check(
            "Status changes",
            0,
            &[("status", "running")],
            Events(done.creates),
        ),
        check(
            "Status changes",
            0,
            &[("status", "terminated")],
            Events(done.creates),
        ),
        check("Environments", 0, &[("status", "running")], Value(1.0)),
        check("Environments of users", 0, &[], Value(1.0)),
        check("Cores reserved by users", 0, &[], Value(0.1)),
        check(
            "Memory reserved by users",
            0,
            &[],
            Value(64.0 * 1024.0 * 1024.0),
        ),
        check("Sessions begun", 0, &[("kind", "exec")], Events(done.execs)),
        check("Executions", 0, &[], Events(done.executions)),
        check("Operations on files", 0, WRITE, Events(done.uploads)),
        check("Operations on files", 0, READ, Events(done.downloads)),
        check(
            "Bytes of users",
            0,
            FILES_IN,
            Events(done.uploads * FILE_BYTES),
        ),
        check(
            "Bytes of users",
            0,
            FILES_OUT,
            Events(done.downloads * FILE_BYTES),
        ),
        check(
            "Requests served",
            0,
            &[("rpc_method", "scheduler.create")],
            Events(done.creates),
        ),
        check("Statements", 0, INSERT, Events(done.creates)),
        check("Requests refused with 429", 0, &[], Value(0.0)),
        check("Dead letters", 0, &[], Value(0.0)),
        check("Orphans removed", 0, &[], Value(0.0)),
        check("Reachable clusters", 0, &[], Value(1.0)),
        check(
            "Replicas that answer",
            0,
            &[("job", "agentbox-auth")],
            Value(1.0),
        ),
        check("Versions", 0, &[("service", "scheduler")], Value(1.0)),
        check("Failed creates, last hour", 0, &[], Value(0.0)),
        check("Failed execs, last hour", 0, &[], Value(0.0)),
        check("Duration of an exec", 2, &[], AtMost(slowest_exec)),
        check("p95 of creates and execs", 1, &[], AtMost(slowest_exec)),
    ]
}

impl Check {
    /// How the series differ from what is known; `None` if they do not.
    fn problem(&self, series: &[Series], window: f64) -> Option<String> {
        let found: f64 = series
            .iter()
            .filter(|series| series.has(self.labels))
            .map(|series| series.value)
            .sum();
        let (is_right, expected) = match self.known {
            Known::Events(count) => {
                let (count, found) = (f64::from(count), found * window);
                let is_close = (found - count).abs() <= TOLERANCE * count;
                (is_close, format!("{count} events, found {found:.1}"))
            }
            Known::Value(value) => {
                let is_close = (found - value).abs() <= TOLERANCE * value;
                (is_close, format!("{value}, found {found}"))
            }
            Known::AtMost(most) => (
                found > 0.0 && found <= most,
                format!("more than 0 and at most {most}, found {found}"),
            ),
        };
        let Self { panel, labels, .. } = self;
        (!is_right).then(|| format!("{panel} {labels:?}: expected {expected}"))
    }
}

async fn start() -> System {
    let mut options = Options::default()
        .observed()
        // It works once, before the scenario.
        .env("canary", "AGENTBOX_CANARY_INTERVAL", "3600");
    for limit in ["AUTH", "CREATE", "EXEC", "OTHER", "FILES"] {
        let variable = format!("AGENTBOX_RATE_LIMIT_{limit}");
        options = options.env("api-gateway", &variable, "1000000");
    }
    for variable in ["AGENTBOX_FLOOD_PER_SECOND", "AGENTBOX_FLOOD_BURST"] {
        options = options.env("api-gateway", variable, "1000000");
    }
    System::start(options).await.unwrap()
}

#[tokio::test]
async fn expressions_of_panels_and_rules_agree_with_what_a_client_did() {
    let system = start().await;
    let prometheus = Prometheus::of(&system);
    let client = Client::login(&system).await;
    let canary_ended = r#"sum(agentbox_canary_steps_total{step="delete"})"#;
    eventually("the canary has run once", CANARY_DEADLINE, async || {
        prometheus.value(canary_ended).await == Some(1.0)
    })
    .await;
    client.create("kept").await;
    // The first event of a series whose labels have no closed list is not an increase.
    client.round(&mut Done::default()).await;
    prometheus.wait_for_scrape().await;

    let begun = now();
    prometheus.wait_for_scrape().await;
    prometheus.wait_for_scrape().await;
    let started = Instant::now();
    let mut done = Done::default();
    while started.elapsed() < SCENARIO {
        client.round(&mut done).await;
    }
    // The scheduler counts environments from time to time.
    let counted = "sum(max by (owner) (agentbox_owner_environments))";
    eventually("one environment is counted", COUNT_DEADLINE, async || {
        prometheus.value(counted).await == Some(1.0)
    })
    .await;
    prometheus.wait_for_scrape().await;
    prometheus.wait_for_scrape().await;
    let ended = now();
    let window = (ended - begun).floor();

    let mut problems = Vec::new();
    let mut results: BTreeMap<(String, usize), Vec<Series>> = BTreeMap::new();
    for panel in panels(&format!("{window}s")) {
        let mut has_data = false;
        for (index, expression) in panel.expressions.iter().enumerate() {
            let series = prometheus.query_at(expression, ended).await;
            has_data |= !series.is_empty();
            results.insert((panel.title.clone(), index), series);
        }
        if !has_data && !SILENT.contains(&panel.title.as_str()) {
            problems.push(format!("{}: no data: {:?}", panel.title, panel.expressions));
        }
    }
    for check in checks(&done) {
        match results.get(&(check.panel.to_owned(), check.expression)) {
            Some(series) => problems.extend(check.problem(series, window)),
            None => problems.push(format!("there is no panel {}", check.panel)),
        }
    }
    println!("{done:?} in {window} s, {} expressions", results.len());
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    rules_are_healthy_and_quiet(&prometheus).await;
    system.stop().await;
}

/// Evaluates each rule. In the scenario nothing is wrong with availability, so no such alert fires.
async fn rules_are_healthy_and_quiet(prometheus: &Prometheus) {
    let rules = prometheus.rules().await;
    let alerts: Vec<&str> = rules
        .iter()
        .filter(|rule| rule.is_alert)
        .map(|rule| rule.name.as_str())
        .collect();
    assert!(alerts.len() > 15, "{alerts:?}");
    for rule in &rules {
        let series = prometheus.query_at(&rule.query, now()).await;
        assert!(
            rule.is_alert || !series.is_empty(),
            "{}: {}",
            rule.name,
            rule.query
        );
    }
    let quiet = [
        "AgentBoxTargetDown",
        "AgentBoxNatsUnreachable",
        "AgentBoxCreateErrors",
        "AgentBoxExecErrors",
        "AgentBoxDeadLetters",
        "AgentBoxBoxesLost",
        "AgentBoxCanaryFailing",
    ];
    eventually("no such alert fires", RULES_DEADLINE, async || {
        let firing = prometheus.firing().await;
        quiet.iter().all(|alert| !firing.contains(*alert))
    })
    .await;
}
