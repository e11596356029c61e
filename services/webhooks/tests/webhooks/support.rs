//! A replica of webhooks with its stores, the services around it, and a receiver.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentbox_bus::{Bus, BusConfig};
use agentbox_contracts::environment::{EnvironmentEvent, EventKind, Status};
use agentbox_contracts::error::Error;
use agentbox_contracts::ids::{EnvironmentId, InstanceId, UserId, WebhookId};
use agentbox_contracts::rpc::Rpc;
use agentbox_contracts::webhook::rpc::{
    CreateWebhook, CreateWebhookReply, CreateWebhookRequest, ListDeliveries, ListDeliveriesRequest,
};
use agentbox_contracts::webhook::{Delivery, DeliveryState};
use agentbox_testing::{
    NatsEndpoint, PostgresEndpoint, System, TestNats, TestPostgres, eventually, eventually_some,
};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::Utc;

use crate::names::NameServer;

/// The deployment's secret.
const SECRET: &str = "c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8c8";
/// Longer than two times after which an event is delivered again.
pub const DEADLINE: Duration = Duration::from_secs(120);
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// A part of the message of a call that got no connection to Postgres.
const NO_CONNECTION: &str = "the database cannot be reached";
/// Lets webhooks reach the receivers of the tests.
pub const ALLOWED_NETWORKS: (&str, &str) = ("AGENTBOX_WEBHOOK_ALLOWED_NETWORKS", "127.0.0.0/8");

/// Runs the program `$0` with the resolver's files of the directory `$1`.
const RESOLVE_BY: &str = r#"
for file in resolv.conf nsswitch.conf; do mount --bind "$1/$file" "/etc/$file" || exit; done
exec "$0"
"#;

/// Reserves a free port below the range of ephemeral ports. Like those of `agentbox-local`, it is locked by
/// a file until that is closed, so no other test takes it while the replica does not listen.
fn reserve_port() -> (u16, File) {
    let user = std::fs::metadata("/proc/self").unwrap().uid();
    let directory = std::env::temp_dir().join(format!("agentbox-ports-{user}"));
    std::fs::create_dir_all(&directory).unwrap();
    loop {
        let port = 20_000 + rand::random::<u16>() % 10_000;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join(port.to_string()))
            .unwrap();
        if file.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return (port, file);
        }
    }
}

async fn connect(nats: &NatsEndpoint, service: &'static str) -> Bus {
    Bus::connect(BusConfig {
        url: nats.url.clone(),
        tls_ca: nats.tls_ca.clone(),
        user: service.to_owned(),
        password: nats.passwords[service].clone(),
        service,
        instance: InstanceId::random(),
    })
    .await
    .unwrap()
}

pub struct World {
    process: Child,
    port: u16,
    _port_lock: File,
    database_url: String,
    postgres: PostgresEndpoint,
    environment: Vec<(&'static str, String)>,
    /// The directory of the resolver's files; `None`: those of the machine.
    resolver: Option<PathBuf>,
    pub nats: NatsEndpoint,
    pub system: System,
    gateway: Bus,
    scheduler: Bus,
}

impl World {
    /// Starts webhooks, which may reach the loopback and repeats failed deliveries at once.
    pub async fn start() -> Self {
        Self::with(&[ALLOWED_NETWORKS]).await
    }

    /// Starts webhooks with further variables in `environment`.
    pub async fn with(environment: &[(&'static str, &str)]) -> Self {
        Self::launch(environment, None).await
    }

    /// As [`Self::with`]. Names are resolved by `names` only.
    pub async fn with_names(environment: &[(&'static str, &str)], names: &NameServer) -> Self {
        Self::launch(environment, Some(names.directory().to_owned())).await
    }

    async fn launch(environment: &[(&'static str, &str)], resolver: Option<PathBuf>) -> Self {
        let postgres = TestPostgres::start().await.unwrap();
        let (system, nats) = TestNats::own().await.unwrap();
        let environment: Vec<(&'static str, String)> = environment
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        let (port, port_lock) = reserve_port();
        let world = Self {
            process: spawn(
                &nats,
                port,
                &postgres.url,
                &environment,
                resolver.as_deref(),
            ),
            port,
            _port_lock: port_lock,
            database_url: postgres.url,
            postgres: postgres.endpoint,
            environment,
            resolver,
            gateway: connect(&nats, "api-gateway").await,
            scheduler: connect(&nats, "scheduler").await,
            nats,
            system,
        };
        world.wait_ready().await;
        world
    }

    async fn wait_ready(&self) {
        let url = format!("http://127.0.0.1:{}/health/ready", self.port);
        eventually("webhooks is ready", DEADLINE, async || {
            let answer = reqwest::get(&url).await;
            answer.is_ok_and(|answer| answer.status().is_success())
        })
        .await;
    }

    /// Kills the replica (SIGKILL), and starts it again.
    pub async fn restart_after_kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = spawn(
            &self.nats,
            self.port,
            &self.database_url,
            &self.environment,
            self.resolver.as_deref(),
        );
        self.wait_ready().await;
    }

    /// Calls a method as the gateway. A call that got no connection to Postgres within 2 s is repeated:
    /// Postgres runs, so that is a machine that stalls.
    pub async fn call<R: Rpc>(&self, request: R::Request) -> Result<R::Reply, Error> {
        eventually_some("the call is served", DEADLINE, async || {
            match self.gateway.call::<R>(&request, CALL_DEADLINE).await {
                Err(error) if error.message.contains(NO_CONNECTION) => None,
                answered => Some(answered),
            }
        })
        .await
    }

    /// A connection to NATS as another service.
    pub async fn bus_of(&self, service: &'static str) -> Bus {
        connect(&self.nats, service).await
    }

    /// Runs a statement on the service's database, as the superuser.
    pub async fn execute(&self, statement: &str) {
        self.postgres
            .execute_on(&self.database_url, &[statement])
            .await
            .unwrap();
    }

    pub async fn create(&self, owner: &UserId, url: &str) -> CreateWebhookReply {
        let request = CreateWebhookRequest {
            owner: owner.clone(),
            url: url.to_owned(),
            kinds: Vec::new(),
            description: None,
        };
        self.call::<CreateWebhook>(request).await.unwrap()
    }

    /// Publishes an event as the scheduler.
    pub async fn publish(&self, owner: &UserId, kind: EventKind) -> EnvironmentEvent {
        let event = EnvironmentEvent {
            environment_id: EnvironmentId::random(),
            owner: owner.clone(),
            kind,
            status: Status::Running,
            status_reason: None,
            status_message: None,
            exit_code: None,
            pool: None,
            execution: None,
            at: Utc::now(),
        };
        let message_id = event.environment_id.to_string();
        // NATS may be starting. A second event with the same id is dropped.
        eventually("the event is published", DEADLINE, async || {
            let published = self.scheduler.publish_event(&event, &message_id).await;
            published.is_ok()
        })
        .await;
        event
    }

    /// The newest delivery of a webhook when it is in `state`.
    pub async fn delivery(&self, owner: &UserId, id: &WebhookId, state: DeliveryState) -> Delivery {
        eventually_some("the delivery in its state", DEADLINE, async || {
            let request = ListDeliveriesRequest {
                owner: owner.clone(),
                id: id.clone(),
                state: Some(state),
                limit: 1,
                offset: 0,
            };
            let listed = self.call::<ListDeliveries>(request).await.ok()?;
            listed.deliveries.into_iter().next()
        })
        .await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(
    nats: &NatsEndpoint,
    port: u16,
    database_url: &str,
    environment: &[(&'static str, String)],
    resolver: Option<&Path>,
) -> Child {
    let program = env!("CARGO_BIN_EXE_agentbox-webhooks");
    let mut command = Command::new("setpriv");
    // Killed with the test, however the test ends.
    command.args(["--pdeathsig", "KILL", "--"]);
    match resolver {
        // In a mount namespace of its own. It stays one process.
        Some(directory) => command
            .args(["unshare", "--mount", "sh", "-c", RESOLVE_BY, program])
            .arg(directory),
        None => command.arg(program),
    };
    command
        .env("AGENTBOX_NATS_URL", &nats.url)
        .env("AGENTBOX_NATS_USER", "webhooks")
        .env("AGENTBOX_NATS_PASSWORD", &nats.passwords["webhooks"])
        .env("AGENTBOX_ADMIN_LISTEN", format!("127.0.0.1:{port}"))
        .env("AGENTBOX_DATABASE_URL", database_url)
        .env("AGENTBOX_WEBHOOKS_SECRET", SECRET)
        .env("AGENTBOX_WEBHOOK_FIRST_RETRY", "0")
        .env("AGENTBOX_WEBHOOK_ATTEMPTS", "3")
        // A machine that stalls ends no attempt, so the tests can count attempts.
        .env("AGENTBOX_WEBHOOK_TIMEOUT", "60")
        .env("AGENTBOX_SWEEP_INTERVAL", "1")
        .envs(environment.iter().map(|(name, value)| (*name, value)))
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

/// A request that the receiver got.
#[derive(Clone, Debug)]
pub struct Received {
    pub headers: HeaderMap,
    pub body: String,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

#[derive(Clone)]
struct Answers {
    received: Arc<Mutex<Vec<Received>>>,
    /// The statuses of the next answers; then 204.
    statuses: Arc<Mutex<Vec<u16>>>,
    /// Where redirects lead.
    location: Arc<str>,
}

/// An HTTP server on the loopback that keeps what it receives.
pub struct Receiver {
    pub address: SocketAddr,
    answers: Answers,
    server: tokio::task::JoinHandle<()>,
}

async fn receive(State(answers): State<Answers>, headers: HeaderMap, body: Bytes) -> Response {
    let body = String::from_utf8(body.to_vec()).unwrap();
    let received = Received { headers, body };
    answers.received.lock().unwrap().push(received);
    let status = answers.statuses.lock().unwrap().pop().unwrap_or(204);
    let status = StatusCode::from_u16(status).unwrap();
    if status.is_redirection() {
        return (status, [(header::LOCATION, &*answers.location)]).into_response();
    }
    status.into_response()
}

impl Receiver {
    /// Answers the first requests with these statuses, and all others with 204.
    pub async fn start(statuses: &[u16]) -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::at(any_port, statuses, "/elsewhere").await.unwrap()
    }

    /// As [`Self::start`], at this address. Redirects lead to `location`.
    pub async fn at(
        address: SocketAddr,
        statuses: &[u16],
        location: &str,
    ) -> std::io::Result<Self> {
        let answers = Answers {
            received: Arc::default(),
            statuses: Arc::new(Mutex::new(statuses.iter().rev().copied().collect())),
            location: location.into(),
        };
        let listener = tokio::net::TcpListener::bind(address).await?;
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(receive).with_state(answers.clone());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Ok(Self {
            address,
            answers,
            server,
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    pub fn received(&self) -> Vec<Received> {
        self.answers.received.lock().unwrap().clone()
    }

    /// Waits for this many requests.
    pub async fn wait_for(&self, count: usize) -> Vec<Received> {
        eventually("the requests", DEADLINE, async || {
            self.received().len() >= count
        })
        .await;
        self.received()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}
