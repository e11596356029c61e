//! What a real collector receives of a request's way through the whole system, and what
//! neither it nor a log may ever contain.

mod collector;
mod secrets;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use agentbox_local::{Options, System};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use collector::{Collector, Span, SpanKind};
use secrets::Secrets;

const PATIENCE: Duration = Duration::from_secs(60);
const SERVICES: [&str; 4] = ["api-gateway", "auth", "scheduler", "exec-proxy"];

fn traced(endpoint: &str) -> Options {
    Options::default()
        .replicas(2)
        .env("*", "OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .env("*", "OTEL_BSP_SCHEDULE_DELAY", "200")
        // More is logged than in production, so more could leak.
        .env("*", "AGENTBOX_LOG", "info,agentbox=debug")
}

/// A caller with a trace of its own for each request.
struct Caller {
    http: reqwest::Client,
    url: String,
    token: String,
}

/// A request's trace, as its caller began it.
#[derive(Clone)]
struct Began {
    trace: String,
    span: String,
}

impl Began {
    fn new() -> Self {
        Self {
            trace: hex::encode(rand::random::<[u8; 16]>()),
            span: hex::encode(rand::random::<[u8; 8]>()),
        }
    }
}

impl Caller {
    async fn login(system: &System) -> Self {
        let mut caller = Self {
            http: reqwest::Client::new(),
            url: system.url().to_owned(),
            token: String::new(),
        };
        let login = json!({
            "username": system.admin.username,
            "password": system.admin.password,
        });
        let (status, reply) = caller
            .ask(&Began::new(), "01", Method::POST, "/auth/login", &login)
            .await;
        assert_eq!(status, StatusCode::OK, "{reply}");
        caller.token = reply["token"].as_str().unwrap().to_owned();
        caller
    }

    /// Asks in the trace `began`; the answer names that trace.
    async fn ask(
        &self,
        began: &Began,
        flags: &str,
        method: Method,
        path: &str,
        body: &Value,
    ) -> (StatusCode, Value) {
        let mut request = self
            .http
            .request(method, format!("{}/api/v1{path}", self.url))
            .header(
                "traceparent",
                format!("00-{}-{}-{flags}", began.trace, began.span),
            );
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        if !body.is_null() {
            request = request.json(body);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["x-trace-id"], began.trace.as_str());
        let status = response.status();
        (status, response.json().await.unwrap_or(Value::Null))
    }

    async fn sampled(&self, method: Method, path: &str, body: &Value) -> (Began, Value) {
        let began = Began::new();
        let (status, reply) = self.ask(&began, "01", method, path, body).await;
        assert!(status.is_success(), "{path}: {status} {reply}");
        (began, reply)
    }

    async fn until_status(&self, id: &str, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let path = format!("/environments/{id}");
            let (_, reply) = self
                .ask(&Began::new(), "00", Method::GET, &path, &Value::Null)
                .await;
            if reply["status"] == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "not {wanted}: {reply}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The spans of one trace and what hangs on which.
struct Tree<'a>(Vec<&'a Span>);

impl<'a> Tree<'a> {
    fn of(spans: &'a [Span], trace: &str) -> Self {
        Self(spans.iter().filter(|span| span.trace == trace).collect())
    }

    fn find(&self, service: &str, kind: SpanKind, is: impl Fn(&Span) -> bool) -> Option<&'a Span> {
        let service = format!("agentbox-{service}");
        let fits = |span: &&&Span| span.service == service && span.kind == kind && is(span);
        self.0.iter().find(fits).copied()
    }

    fn is_below(&self, span: &Span, above: &Span) -> bool {
        let mut parent = span.parent.clone();
        for _ in 0..self.0.len() {
            if parent == above.id {
                return true;
            }
            match self.0.iter().find(|other| other.id == parent) {
                Some(next) => parent.clone_from(&next.parent),
                None => return false,
            }
        }
        false
    }
}

/// The gateway's span of a request, child of the caller's.
fn request<'a>(tree: &Tree<'a>, began: &Began, name: &str) -> Option<&'a Span> {
    tree.find("api-gateway", SpanKind::Server, |span| {
        span.name == name && span.parent == began.span
    })
}

/// HTTP → request → scheduler → Postgres, and the command that the scheduler sent.
fn through_the_scheduler(spans: &[Span], began: &Began, http: &str) -> Option<Span> {
    let tree = Tree::of(spans, &began.trace);
    let http = request(&tree, began, http)?;
    let sent = tree.find("scheduler", SpanKind::Producer, |span| {
        span.name.contains("command") && tree.is_below(span, http)
    })?;
    let served = tree.find("scheduler", SpanKind::Server, |span| {
        tree.is_below(sent, span)
    })?;
    tree.find("api-gateway", SpanKind::Client, |span| {
        span.id == served.parent && tree.is_below(span, http)
    })?;
    tree.find("scheduler", SpanKind::Client, |span| {
        span.attribute("db.system.name") == "postgresql"
            && !span.attribute("db.operation.name").is_empty()
            && tree.is_below(span, served)
    })?;
    Some(sent.clone())
}

/// The span of the command that `sent` sent: in a trace of its own, linked to it, with a
/// call of containerd below it.
fn command(spans: &[Span], sent: &Span, method: &str) -> Option<()> {
    let is_linked = |span: &&Span| {
        span.kind == SpanKind::Consumer
            && span.links.contains(&(sent.trace.clone(), sent.id.clone()))
    };
    let carried_out = spans.iter().find(is_linked)?;
    assert_ne!(carried_out.trace, sent.trace);
    assert_eq!(carried_out.parent, "");
    let tree = Tree::of(spans, &carried_out.trace);
    tree.find("scheduler", SpanKind::Client, |span| {
        span.attribute("rpc.method") == method
            && span.attribute("rpc.service") == "runtime.v1.RuntimeService"
            && tree.is_below(span, carried_out)
    })?;
    Some(())
}

/// HTTP → exec-proxy → boxd, down to the command.
fn through_the_box(spans: &[Span], began: &Began) -> Option<(Span, Span)> {
    let tree = Tree::of(spans, &began.trace);
    let http = request(&tree, began, "POST /api/v1/environments/{id}/exec")?;
    let session = tree.find("exec-proxy", SpanKind::Server, |s| tree.is_below(s, http))?;
    let call = tree.find("exec-proxy", SpanKind::Client, |s| {
        s.attribute("rpc.method") == "Run" && tree.is_below(s, session)
    })?;
    let run = tree.find("boxd", SpanKind::Server, |s| s.parent == call.id)?;
    let below = |name: &str| {
        tree.find("boxd", SpanKind::Internal, |s| {
            s.name == name && s.parent == run.id
        })
    };
    below("start")?;
    Some((run.clone(), below("command")?.clone()))
}

#[tokio::test]
async fn one_trace_leads_from_a_request_to_postgres_and_into_the_box() {
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
    // One service speaks the other protocol.
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
    caller.until_status(&id, "running").await;

    let sent = collector
        .find("way of the creation", |spans| {
            through_the_scheduler(spans, &create, "POST /api/v1/environments")
        })
        .await;
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
        .find("way into the box", |spans| through_the_box(spans, &run))
        .await;
    assert_eq!(boxd.attribute("environment"), id);
    assert_eq!(ran.attribute("process.exit.code"), "7");
    assert!(ran.start_nanos < ran.end_nanos);

    leave_traces_of_failures(&caller, &id, &mut secrets).await;

    let unsampled = Began::new();
    let (status, _) = caller
        .ask(&unsampled, "00", Method::GET, "/environments", &Value::Null)
        .await;
    assert_eq!(status, StatusCode::OK);

    let path = format!("/environments/{id}");
    let (delete, _) = caller.sampled(Method::DELETE, &path, &Value::Null).await;
    caller.until_status(&id, "terminated").await;
    let sent = collector
        .find("way of the deletion", |spans| {
            through_the_scheduler(spans, &delete, "DELETE /api/v1/environments/{id}")
        })
        .await;
    collector
        .find("command that removes the box", |spans| {
            command(spans, &sent, "RemovePodSandbox")
        })
        .await;

    assert_eq!(collector.key(), "collectors-own-key");
    check_spans(&collector.spans(), &id, &unsampled, &secrets);
    let logs = Logs::of(&system);
    logs.check(&secrets);
    logs.have_a_line_in(&create.trace, "scheduler");
    logs.have_a_line_in(&run.trace, "exec-proxy");
    system.stop().await;
}

/// Everything that goes wrong with a secret in hand.
async fn leave_traces_of_failures(caller: &Caller, id: &str, secrets: &mut Secrets) {
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
        .ask(&Began::new(), "01", Method::GET, &logs, &Value::Null)
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
            200,
        ),
        (
            Method::GET,
            format!("/{}", secrets.canary("a wrong path")),
            Value::Null,
            404,
        ),
    ];
    for (method, path, body, expected) in refused {
        let (status, reply) = caller.ask(&Began::new(), "01", method, &path, &body).await;
        assert_eq!(status.as_u16(), expected, "{path}: {reply}");
    }
}

fn check_spans(spans: &[Span], id: &str, unsampled: &Began, secrets: &Secrets) {
    for span in spans {
        secrets.check(&format!("span {}", span.name), &span.text);
        assert!(!span.name.contains(id), "an id is no name: {}", span.name);
        assert_ne!(
            span.trace, unsampled.trace,
            "it was not to be recorded: {span:?}"
        );
        let place = (
            "deployment.environment.name".to_owned(),
            "proving".to_owned(),
        );
        assert!(span.resource.contains(&place), "{:?}", span.resource);
    }
    let services: BTreeSet<_> = spans.iter().map(|span| span.service.as_str()).collect();
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

/// All logs of a system.
struct Logs(Vec<(String, String)>);

impl Logs {
    fn of(system: &System) -> Self {
        let read = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().unwrap();
            (
                name,
                String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()).into_owned(),
            )
        };
        let entries = std::fs::read_dir(system.logs()).unwrap();
        Self(entries.map(|entry| read(entry.unwrap())).collect())
    }

    /// The lines of our services; of Postgres, NATS and containerd none.
    fn lines(&self) -> impl Iterator<Item = (&str, Value)> {
        let ours = |name: &str| SERVICES.iter().any(|service| name.starts_with(service));
        self.0
            .iter()
            .filter(move |(name, _)| ours(name))
            .flat_map(|(name, text)| {
                text.lines().map(move |line| {
                    let value: Result<Value, _> = serde_json::from_str(line);
                    assert!(value.is_ok(), "{name}: no JSON: {line}");
                    (name.as_str(), value.unwrap())
                })
            })
    }

    fn check(&self, secrets: &Secrets) {
        for (name, text) in &self.0 {
            secrets.check(name, text);
        }
        let mut services = BTreeSet::new();
        for (name, line) in self.lines() {
            for key in ["timestamp", "level", "target", "service", "message"] {
                assert!(line[key].is_string(), "{name}: no {key}: {line}");
            }
            assert_ne!(line["level"], "ERROR", "nobody needs to act: {line}");
            services.insert(line["service"].as_str().unwrap().to_owned());
        }
        assert_eq!(services, SERVICES.map(String::from).into());
    }

    fn have_a_line_in(&self, trace: &str, service: &str) {
        assert!(
            self.lines()
                .any(|(_, line)| line["trace_id"] == trace && line["service"] == service),
            "{service} logs nothing in {trace}"
        );
    }
}

#[tokio::test]
async fn a_collector_that_hangs_slows_no_request_and_is_one_line_in_each_log() {
    // Connections wait in the kernel's queue, and nobody ever answers.
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
    // A single span that waited for the collector would take 300 ms of these.
    tokio::time::timeout(Duration::from_secs(20), asked)
        .await
        .unwrap();
    let url = system.admin_url("api-gateway", 0).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let metrics = reqwest::get(format!("{url}/metrics")).await.unwrap();
        let metrics = metrics.text().await.unwrap();
        let counted = |reason: &str| {
            metrics.contains(&format!(
                "agentbox_spans_dropped_total{{reason=\"{reason}\"}}"
            ))
        };
        if counted("queue") && counted("collector") {
            break;
        }
        assert!(Instant::now() < deadline, "dropped spans are not counted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let logs = Logs::of(&system);
    let told = logs.lines().filter(|(name, line)| {
        let text = line.to_string();
        name.starts_with("api-gateway")
            && (text.contains("collector") || text.contains("BatchSpan"))
    });
    let told: Vec<_> = told.collect();
    assert_eq!(told.len(), 1, "{told:?}");
    system.stop().await;
    drop(hanging);
}
