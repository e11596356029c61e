//! Every expression of every panel and rule, on a Prometheus that read a system in a scenario where a client
//! counted what it did. The table in `answers` has a row for each.

mod answers;
mod known;
mod readings;
mod receiver;
mod scenario;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agentbox_testing::{Options, System, eventually};

use answers::{EXTRA, Facts, table};
use known::{Kind, Row};
use readings::Readings;
use scenario::{POOL, Scenario};

use super::dashboards::panels;
use super::prometheus::{Prometheus, Series, now};

/// The client works for at least this time. A rate is exact to an interval between two scrapes (one second)
/// at each end of its window.
const SCENARIO: Duration = Duration::from_secs(60);
const CANARY_DEADLINE: Duration = Duration::from_secs(120);
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);
const RULES_DEADLINE: Duration = Duration::from_secs(60);

/// An expression, and its result.
struct Found {
    query: String,
    series: Vec<Series>,
}

/// By the title of the panel or the name of the rule, and the index.
type Results = BTreeMap<(String, usize), Found>;

async fn start() -> System {
    let mut options = Options::default()
        .observed()
        .without_rate_limits()
        .env(
            "webhooks",
            "AGENTBOX_WEBHOOK_ALLOWED_NETWORKS",
            "127.0.0.0/8",
        )
        // It works once, before the scenario.
        .env("canary", "AGENTBOX_CANARY_INTERVAL", "3600");
    for variable in ["AGENTBOX_FLOOD_PER_SECOND", "AGENTBOX_FLOOD_BURST"] {
        options = options.env("api-gateway", variable, "1000000");
    }
    System::start(options).await.unwrap()
}

#[tokio::test]
async fn expressions_of_panels_and_rules_agree_with_what_a_client_did() {
    let system = start().await;
    let prometheus = Prometheus::of(&system);
    let canary_ended = r#"sum(agentbox_canary_steps_total{step="delete"})"#;
    eventually("the canary has run once", CANARY_DEADLINE, async || {
        prometheus.value(canary_ended).await == Some(1.0)
    })
    .await;
    let scenario = Scenario::prepare(&system).await;
    // One is kept, the other loses its row.
    settle(&system, &prometheus, 2.0).await;

    let begun = now();
    prometheus.wait_for_scrape().await;
    prometheus.wait_for_scrape().await;
    let before = Readings::take(&system).await;
    let received = scenario.receiver.received();
    let done = scenario.work(SCENARIO).await;
    let events = stored_events(&before, &settle(&system, &prometheus, 1.0).await);
    eventually("each event was delivered", SETTLE_DEADLINE, async || {
        scenario.receiver.received() - received >= events
    })
    .await;
    prometheus.wait_for_scrape().await;
    prometheus.wait_for_scrape().await;
    let ended = now();
    let window = (ended - begun).floor();

    let results = evaluate(&prometheus, window, ended).await;
    let spans = format!("sum(rate(traces_span_metrics_calls_total[{window}s])) * {window}");
    let facts = Facts {
        done,
        before,
        after: Readings::take(&system).await,
        window,
        deliveries: count(scenario.receiver.received() - received),
        spans: prometheus.value(&spans).await.unwrap(),
        total_cores: total(&prometheus, "cpu_cores").await,
        total_memory: total(&prometheus, "memory_bytes").await,
    };
    let rows = table(&facts);
    report(&facts, &results, &rows);
    let problems = problems(&results, &rows, window);
    assert!(
        problems.is_empty(),
        "{} of {} expressions:\n{}",
        problems.len(),
        results.len(),
        problems.join("\n")
    );
    no_alert_of_availability_fires(&prometheus).await;
    drop(scenario);
    system.stop().await;
}

/// Waits until what was begun has ended everywhere, with so many environments left, and the gauges that are measured from time to time show it.
async fn settle(system: &System, prometheus: &Prometheus, environments: f64) -> Readings {
    let ready = format!(r#"max(agentbox_pool_boxes{{pool="{POOL}",status="ready"}})"#);
    let gauges = [
        (
            "sum(max by (owner) (agentbox_owner_environments))",
            environments,
        ),
        ("sum(agentbox_messaging_consumer_pending_messages)", 0.0),
        (
            "sum(agentbox_messaging_consumer_unacknowledged_messages)",
            0.0,
        ),
        ("max(agentbox_outbox_pending_rows)", 0.0),
        ("max(agentbox_outbox_oldest_age_seconds)", 0.0),
        (ready.as_str(), 1.0),
    ];
    for (gauge, value) in gauges {
        let expected = format!("{gauge} is {value}");
        eventually(&expected, SETTLE_DEADLINE, async || {
            prometheus.value(gauge).await == Some(value)
        })
        .await;
    }
    let expected = "NATS and Postgres have no message that is not processed";
    eventually(expected, SETTLE_DEADLINE, async || {
        let readings = Readings::take(system).await;
        readings.unfinished == 0 && readings.unpublished == 0.0
    })
    .await;
    Readings::take(system).await
}

fn stored_events(before: &Readings, after: &Readings) -> u64 {
    let stream = agentbox_contracts::subjects::EVENTS_STREAM;
    after.stored(stream) - before.stored(stream)
}

fn count(events: u64) -> f64 {
    f64::from(u32::try_from(events).unwrap())
}

/// All that the cluster has of a resource.
async fn total(prometheus: &Prometheus, resource: &str) -> f64 {
    let query = format!(r#"max(agentbox_cluster_{resource}{{state="total"}})"#);
    prometheus.value(&query).await.unwrap()
}

/// The results of all expressions over the window that ended then.
async fn evaluate(prometheus: &Prometheus, window: f64, ended: f64) -> Results {
    let range = format!("{window}s");
    let mut expressions = Vec::new();
    for panel in panels(&range) {
        for (index, query) in panel.expressions.into_iter().enumerate() {
            expressions.push(((panel.title.clone(), index), query));
        }
    }
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for rule in prometheus.rules().await {
        let index = seen.entry(rule.name.clone()).or_default();
        expressions.push(((rule.name, *index), rule.query));
        *index += 1;
    }
    for (name, query) in EXTRA {
        let query = query.replace("$__rate_interval", &range);
        expressions.push(((name.to_owned(), 0), query));
    }
    let mut results = Results::new();
    for (key, query) in expressions {
        let series = prometheus.query_at(&query, ended).await;
        results.insert(key, Found { query, series });
    }
    results
}

/// Each expression without a row, each row without an expression, and each result that disagrees with its row.
fn problems(results: &Results, rows: &[Row], window: f64) -> Vec<String> {
    let mut problems = Vec::new();
    let rows_of = |key: &(String, usize)| {
        let (name, index) = (key.0.clone(), key.1);
        rows.iter()
            .filter(move |row| row.name == name && row.index == index)
    };
    for (key, found) in results {
        if rows_of(key).next().is_none() {
            problems.push(format!("{key:?}: the table of answers has no row for it"));
        }
        for problem in rows_of(key).filter_map(|row| row.problem(&found.series, window)) {
            let (name, index) = key;
            problems.push(format!(
                "{name}, expression {index}: {problem}\n    by {}",
                found.query
            ));
        }
    }
    let unknown = rows
        .iter()
        .map(|row| (row.name.to_owned(), row.index))
        .filter(|key| !results.contains_key(key))
        .collect::<BTreeSet<_>>();
    problems.extend(
        unknown
            .iter()
            .map(|key| format!("{key:?}: no such expression")),
    );
    problems
}

/// Prints how many expressions have an answer of each kind; that of an expression is its strongest row.
fn report(facts: &Facts, results: &Results, rows: &[Row]) {
    let mut kinds: BTreeMap<&(String, usize), Kind> = BTreeMap::new();
    for key in results.keys() {
        let of_key = rows
            .iter()
            .filter(|row| row.name == key.0 && row.index == key.1);
        if let Some(kind) = of_key.map(Row::kind).min() {
            kinds.insert(key, kind);
        }
    }
    println!(
        "{} expressions of panels and rules in {} s, with {} creates, {} claims, {} requests:",
        results.len(),
        facts.window,
        facts.done.creates(),
        facts.done.claims,
        facts.done.sent.len()
    );
    for kind in Kind::ALL {
        let count = kinds.values().filter(|found| **found == kind).count();
        println!("  {count:>4} {kind}");
    }
    for row in rows {
        if let Some(reason) = row.reason() {
            println!("  not known: {} {}: {reason}", row.name, row.index);
        }
    }
}

/// In the scenario nothing is wrong with availability.
async fn no_alert_of_availability_fires(prometheus: &Prometheus) {
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
