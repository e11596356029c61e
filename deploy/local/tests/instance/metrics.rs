//! The metrics of an instance agree with what its client did, and are those of `docs/metrics.md`.

use std::ops::RangeInclusive;
use std::time::Duration;

use agentbox_metrics::reference::undocumented;
use agentbox_testing::{Options, System, eventually};
use reqwest::Method;
use serde_json::json;

use crate::api::Api;

const SERVICES: [&str; 5] = ["api-gateway", "auth", "scheduler", "exec-proxy", "webhooks"];
/// Longer than two intervals of the statistics.
const DEADLINE: Duration = Duration::from_secs(60);
const EXECS: u32 = 3;
const CONTENT: &str = "forty-two bytes, as the metrics count them";

async fn scrape(system: &System, service: &str) -> String {
    let url = format!("{}/metrics", system.admin_url(service, 0).unwrap());
    reqwest::get(url).await.unwrap().text().await.unwrap()
}

/// The sum over the series of a metric that have all these labels.
async fn sum(system: &System, service: &str, name: &str, labels: &[&str]) -> f64 {
    let text = scrape(system, service).await;
    text.lines()
        .filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        })
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Waits until the sum is one of `expected`.
async fn sum_becomes(
    system: &System,
    service: &str,
    name: &str,
    labels: &[&str],
    expected: RangeInclusive<f64>,
) {
    let text = format!("{service}: {name} {labels:?} is {expected:?}");
    eventually(&text, DEADLINE, async || {
        expected.contains(&sum(system, service, name, labels).await)
    })
    .await;
}

/// Uploads a file. Returns how often it was asked again because a part of the system stalled.
async fn upload(api: &Api, url: &str) -> u32 {
    let http = reqwest::Client::new();
    let mut retries = 0;
    eventually("the file is uploaded", DEADLINE, async || {
        let uploaded = http.put(url).bearer_auth(&api.token);
        let uploaded = uploaded.body(CONTENT).send().await.unwrap();
        let status = uploaded.status();
        let is_stalled = matches!(status.as_u16(), 502..=504);
        assert!(status.is_success() || is_stalled, "{uploaded:?}");
        retries += u32::from(is_stalled);
        status.is_success()
    })
    .await;
    retries
}

#[tokio::test]
async fn metrics_agree_with_the_requests_of_the_client() {
    let system = System::start(Options::default().without_rate_limits())
        .await
        .unwrap();
    let api = Api::of(&system).await;
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let created = api.create(name).await;
        ids.push(created["id"].as_str().unwrap().to_owned());
    }
    for id in &ids {
        api.wait_for_status(id, "running").await;
    }
    let [one, two] = ids.as_slice() else {
        panic!("{ids:?}");
    };
    for _ in 0..EXECS {
        let result = api.exec(one, "echo out").await;
        assert_eq!(result["exit_code"], 0, "{result}");
    }
    let path = format!("/environments/{one}/executions");
    let body = json!({ "command": ["sh", "-c", "echo done; exit 3"] });
    let started = api.post_once(&path, body, "started").await;
    let path = format!("{path}/{}?wait=20", started["id"].as_str().unwrap());
    let (status, ended) = api.served(Method::GET, &path, None).await;
    assert_eq!((status, &ended["exit_code"]), (200, &json!(3)), "{ended}");
    let url = format!(
        "{}/api/v1/environments/{one}/files/content?path=/tmp/file",
        system.url()
    );
    let uploads = 1.0 + f64::from(upload(&api, &url).await);
    api.delete(two).await;
    api.wait_for_status(two, "terminated").await;

    let created = [
        "http_request_method=\"POST\"",
        "http_route=\"/api/v1/environments\"",
    ];
    let requests = "agentbox_http_server_request_duration_seconds_count";
    // A request that was retried is counted once more.
    let retries = f64::from(api.retries.get());
    let counted = sum(&system, "api-gateway", requests, &created).await;
    assert!((2.0..=2.0 + retries).contains(&counted), "{counted}");
    // Each figure is exact, unless a request was retried that counts for it.
    let counts: &[(&str, &str, &[&str], RangeInclusive<f64>)] = &[
        (
            "scheduler",
            "agentbox_environment_transitions_total",
            &["status=\"running\""],
            2.0..=2.0,
        ),
        (
            "scheduler",
            "agentbox_environment_transitions_total",
            &["status=\"terminated\""],
            1.0..=1.0,
        ),
        (
            "scheduler",
            "agentbox_environments",
            &["status=\"running\""],
            1.0..=1.0,
        ),
        ("scheduler", "agentbox_owner_environments", &[], 1.0..=1.0),
        ("scheduler", "agentbox_outbox_pending_rows", &[], 0.0..=0.0),
        ("scheduler", "agentbox_cluster_reachable", &[], 1.0..=1.0),
        (
            "scheduler",
            "agentbox_orphans_removed_total",
            &[],
            0.0..=0.0,
        ),
        (
            "exec-proxy",
            "agentbox_exec_duration_seconds_count",
            &[],
            f64::from(EXECS)..=f64::from(EXECS) + retries,
        ),
        (
            "exec-proxy",
            "agentbox_exec_bytes_total",
            &["kind=\"files\"", "direction=\"in\""],
            42.0..=42.0 * uploads,
        ),
        (
            "exec-proxy",
            "agentbox_file_operation_duration_seconds_count",
            &["operation=\"write\"", "error_type=\"\""],
            1.0..=uploads,
        ),
        (
            "exec-proxy",
            "agentbox_executions_started_total",
            &[],
            1.0..=1.0,
        ),
        (
            "exec-proxy",
            "agentbox_executions_ended_total",
            &["status=\"exited\""],
            1.0..=1.0,
        ),
        ("exec-proxy", "agentbox_executions_running", &[], 0.0..=0.0),
        ("exec-proxy", "agentbox_exec_sessions_open", &[], 0.0..=0.0),
    ];
    for (service, name, labels, expected) in counts {
        sum_becomes(&system, service, name, labels, expected.clone()).await;
    }
    let stages = "agentbox_environment_stage_duration_seconds_count";
    for stage in ["queued", "admitted", "sandbox", "started", "running"] {
        let label = format!("stage=\"{stage}\"");
        sum_becomes(&system, "scheduler", stages, &[label.as_str()], 2.0..=2.0).await;
    }
    for (service, name) in [
        (
            "scheduler",
            "agentbox_db_client_operation_duration_seconds_count",
        ),
        (
            "scheduler",
            "agentbox_rpc_server_call_duration_seconds_count",
        ),
        (
            "scheduler",
            "agentbox_messaging_process_duration_seconds_count",
        ),
        ("scheduler", "agentbox_reconcile_duration_seconds_count"),
        (
            "scheduler",
            "agentbox_reconcile_last_comparison_timestamp_seconds",
        ),
        (
            "api-gateway",
            "agentbox_rpc_client_call_duration_seconds_count",
        ),
        ("api-gateway", "agentbox_session_bytes_total"),
        ("auth", "agentbox_db_client_connection_count"),
        ("exec-proxy", "agentbox_process_memory_usage_bytes"),
    ] {
        let text = format!("{service}: {name} is counted");
        eventually(&text, DEADLINE, async || {
            sum(&system, service, name, &[]).await > 0.0
        })
        .await;
    }

    for service in SERVICES {
        let text = scrape(&system, service).await;
        assert_eq!(
            undocumented(&text).unwrap(),
            Vec::<String>::new(),
            "{service}"
        );
        assert!(!text.contains(one.as_str()), "{service}: {text}");
    }
    system.stop().await;
}
