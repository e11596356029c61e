//! The spans of a request through the whole system, as a collector receives them; and the secrets
//! that must not be in a span or a log.

mod caller;
mod collector;
mod logs;
mod paths;
mod secrets;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use agentbox_testing::{Options, System, eventually};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use caller::{Caller, TraceContext};
use collector::{Collector, Span};
use logs::Logs;
use paths::{box_path, command, scheduler_path};
use secrets::Secrets;

const DEADLINE: Duration = Duration::from_secs(60);

fn traced(endpoint: &str) -> Options {
    Options::default()
        .replicas(2)
        .env("*", "OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("*", "OTEL_BSP_SCHEDULE_DELAY", "200")
        // A lower level than in production, for a stricter test.
        .env("*", "AGENTBOX_LOG", "info,agentbox=debug")
}

#[tokio::test]
async fn trace_of_a_request_includes_postgres_and_the_box() {
    let collector = Collector::start().await;
    let options = traced(&format!("http://{}", collector.address))
        .env(
            "*",
            "OTEL_EXPORTER_OTLP_HEADERS",
            "x-collector-key=collectors-own-key",
        )
        .env(
            "*",
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=proving",
        );
    // One service uses the other protocol.
    let http = format!("http://{}", collector.http_address);
    let options = options
        .env("auth", "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .env("auth", "OTEL_EXPORTER_OTLP_ENDPOINT", http);
    let system = System::start(options).await.unwrap();
    let caller = Caller::login(&system).await;
    let mut secrets = Secrets::of(&system);
    secrets.add("the collector's key", "collectors-own-key");
    secrets.add("the JWT", &caller.token);

    let environment = json!({
        "name": "traced",
        "image": "busybox",
        "resources": { "cpu": "100m", "memory": "64Mi", "storage": "64Mi" },
        "env": { "OF_THE_BOX": secrets.canary("a box's variable") },
        "labels": { "label": secrets.canary("a label") },
        "command": ["sh", "-c", format!("echo {}; sleep 600", secrets.canary("a main command"))],
    });
    let (create, reply) = caller
        .sampled(Method::POST, "/environments", &environment)
        .await;
    let id = reply["id"].as_str().unwrap().to_owned();
    secrets.add_token_of(&id);
    caller.wait_for_status(&id, "running").await;

    let sent = collector
        .find("spans of the create", |spans| {
            scheduler_path(spans, &create, "POST /api/v1/environments")
        })
        .await;
    assert_eq!(sent.attribute("environment.id"), id);
    collector
        .find("command that creates the box", |spans| {
            command(spans, &sent, "RunPodSandbox")
        })
        .await;

    let exec = json!({
        "command": ["sh", "-c",
            format!("cat; echo $OF_THE_COMMAND; echo {} | tr A-Z a-z; exit 7", secrets.canary("an argument"))],
        "env": { "OF_THE_COMMAND": secrets.canary("a command's variable") },
        "stdin": secrets.canary("stdin"),
    });
    let path = format!("/environments/{id}/exec");
    let (run, reply) = caller.sampled(Method::POST, &path, &exec).await;
    assert_eq!(reply["exit_code"], 7, "{reply}");
    let output = reply["stdout"].as_str().unwrap();
    secrets.add("stdout", output.lines().last().unwrap());
    let (boxd, ran) = collector
        .find("spans of the exec", |spans| box_path(spans, &run))
        .await;
    assert_eq!(boxd.attribute("environment.id"), id);
    assert_eq!(ran.attribute("process.exit.code"), "7");
    assert!(ran.start_nanos < ran.end_nanos);

    send_failing_requests(&caller, &id, &mut secrets).await;

    let unsampled = TraceContext::new();
    let (status, _) = caller
        .ask(&unsampled, "00", Method::GET, "/environments", &Value::Null)
        .await;
    assert_eq!(status, StatusCode::OK);

    let path = format!("/environments/{id}");
    let (delete, _) = caller.sampled(Method::DELETE, &path, &Value::Null).await;
    caller.wait_for_status(&id, "terminated").await;
    let sent = collector
        .find("spans of the delete", |spans| {
            scheduler_path(spans, &delete, "DELETE /api/v1/environments/{id}")
        })
        .await;
    collector
        .find("command that removes the box", |spans| {
            command(spans, &sent, "RemovePodSandbox")
        })
        .await;

    assert_eq!(collector.key(), "collectors-own-key");
    check_spans(&collector.spans(), &id, &unsampled, &secrets);
    for (request, service) in [(&create, "scheduler"), (&run, "exec-proxy")] {
        let expected = format!("{service} logs a line in {}", request.trace);
        eventually(&expected, DEADLINE, async || {
            Logs::of(&system).has_line_in_trace(&request.trace, service)
        })
        .await;
    }
    Logs::of(&system).check(&secrets);
    system.stop().await;
}

/// Requests that fail and contain a secret.
async fn send_failing_requests(caller: &Caller, id: &str, secrets: &mut Secrets) {
    let (_, key) = caller
        .sampled(
            Method::POST,
            "/api-keys",
            &json!({ "description": "traced" }),
        )
        .await;
    let key = key["key"].as_str().unwrap().to_owned();
    secrets.add("an API key", &key);
    let with_key = Caller {
        http: caller.http.clone(),
        url: caller.url.clone(),
        token: key,
    };
    with_key
        .sampled(Method::GET, "/auth/me", &Value::Null)
        .await;

    let ticket = json!({ "environment_id": id, "action": "logs" });
    let (_, ticket) = caller.sampled(Method::POST, "/auth/tickets", &ticket).await;
    let ticket = ticket["ticket"].as_str().unwrap().to_owned();
    secrets.add("a ticket", &ticket);
    let anonymous = Caller {
        token: String::new(),
        ..with_key
    };
    let logs = format!("/environments/{id}/logs?ticket={ticket}");
    anonymous
        .ask(&TraceContext::new(), "01", Method::GET, &logs, &Value::Null)
        .await;

    let wrong = json!({
        "username": secrets.canary("a user's name"),
        "password": secrets.canary("a wrong password"),
    });
    let refused = [
        (Method::POST, "/auth/login".to_owned(), wrong, 401),
        (
            Method::POST,
            "/environments".to_owned(),
            json!({ "name": secrets.canary("a wrong name"), "colour": secrets.canary("a wrong field") }),
            400,
        ),
        (
            Method::GET,
            format!("/environments?label={}", secrets.canary("a query")),
            Value::Null,
            200,
        ),
        (
            Method::POST,
            format!("/environments/{id}/exec"),
            json!({ "command": [secrets.canary("a wrong program")] }),
            200,
        ),
        (
            Method::POST,
            format!("/environments/{id}/exec"),
            json!({ "command": ["true"], "working_dir": format!("/{}", secrets.canary("a wrong directory")) }),
            400,
        ),
        (
            Method::GET,
            format!("/{}", secrets.canary("a wrong path")),
            Value::Null,
            404,
        ),
    ];
    for (method, path, body, expected) in refused {
        let (status, reply) = caller
            .ask(&TraceContext::new(), "01", method, &path, &body)
            .await;
        assert_eq!(status.as_u16(), expected, "{path}: {reply}");
    }
}

fn check_spans(spans: &[Span], id: &str, unsampled: &TraceContext, secrets: &Secrets) {
    for span in spans {
        secrets.check(&format!("span {}", span.name), &span.text);
        assert!(
            !span.name.contains(id),
            "a span name contains an id: {}",
            span.name
        );
        assert_ne!(
            span.trace, unsampled.trace,
            "an unsampled request was recorded: {span:?}"
        );
        let attribute = (
            "deployment.environment.name".to_owned(),
            "proving".to_owned(),
        );
        assert!(span.resource.contains(&attribute), "{:?}", span.resource);
    }
    // webhooks has no part in a request: it may read the events meanwhile, in traces of its own.
    let services: BTreeSet<_> = spans
        .iter()
        .map(|span| span.service.as_str())
        .filter(|service| *service != "agentbox-webhooks")
        .collect();
    let expected = ["api-gateway", "auth", "boxd", "exec-proxy", "scheduler"];
    assert_eq!(
        services,
        expected
            .map(|name| format!("agentbox-{name}"))
            .iter()
            .map(String::as_str)
            .collect()
    );
}

#[tokio::test]
async fn hanging_collector_slows_no_request_and_is_logged_once() {
    // Connections stay in the kernel's queue without an answer.
    let hanging = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let options = traced(&format!("http://{}", hanging.local_addr().unwrap()))
        .replicas(1)
        .env("*", "OTEL_EXPORTER_OTLP_TIMEOUT", "300")
        .env("*", "OTEL_BSP_MAX_QUEUE_SIZE", "16");
    let system = System::start(options).await.unwrap();
    let caller = Caller::login(&system).await;
    let asked = async {
        for _ in 0..100 {
            caller.sampled(Method::GET, "/auth/me", &Value::Null).await;
        }
    };
    // One span that waited for the collector would take 300 ms.
    tokio::time::timeout(Duration::from_secs(20), asked)
        .await
        .unwrap();
    let url = system.admin_url("api-gateway", 0).unwrap();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let metrics = reqwest::get(format!("{url}/metrics")).await.unwrap();
        let metrics = metrics.text().await.unwrap();
        let counted = |reason: &str| {
            let series = format!("agentbox_spans_dropped_total{{reason=\"{reason}\"}} ");
            let mut values = metrics
                .lines()
                .filter_map(|line| line.strip_prefix(&series));
            values.any(|value| value != "0")
        };
        if counted("queue") && counted("collector") {
            break;
        }
        assert!(Instant::now() < deadline, "dropped spans are not counted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let collector_lines = || {
        let logs = Logs::of(&system);
        let lines = logs.lines().filter(|(name, line)| {
            let text = line.to_string();
            name.starts_with("api-gateway")
                && (text.contains("collector") || text.contains("BatchSpan"))
        });
        lines.map(|(_, line)| line).collect::<Vec<_>>()
    };
    eventually("the failure is logged", DEADLINE, async || {
        !collector_lines().is_empty()
    })
    .await;
    let lines = collector_lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    system.stop().await;
    drop(hanging);
}
