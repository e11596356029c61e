//! A real containerd that tests share, each with a deployment of its own; and the real
//! exec-proxy, which archives a box's last output.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::environment::rpc::{
    Create, CreateRequest, Delete, DeleteRequest, Get, GetRequest, Health, HealthReply,
};
use agentbox_contracts::environment::{Environment, EnvironmentEvent, EnvironmentRequest, Status};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::rpc::{Empty, Rpc};
use agentbox_contracts::subjects;
use agentbox_runtime::Runtime;
use agentbox_runtime_containerd::{Config, Driver};
use agentbox_scheduler::config::Settings;
use agentbox_testing::{
    NatsEndpoint, System, TestContainerd, TestNats, bin_dir, eventually_some, pause,
};
use futures::StreamExt as _;
use serde_json::json;
use tokio::sync::OnceCell;

use super::scheduler::{BOX_SECRET, Replica, bus, settings};
use super::{Database, database_of_a_scheduler, eventually};

static CONTAINERD: OnceCell<TestContainerd> = OnceCell::const_new();

pub const CLUSTER: &str = "local";
pub const CALL: Duration = Duration::from_secs(5);
/// How long the next event, or the answer to a repeated request, may take.
const NEXT: Duration = Duration::from_secs(20);

/// One test's own database, bus, cluster and exec-proxy.
pub struct World {
    pub database: Database,
    pub nats: NatsEndpoint,
    pub driver: Arc<dyn Runtime>,
    /// A connection to the bus as the api-gateway.
    pub gateway: Bus,
    pub owner: UserId,
    exec_proxy: Process,
    clusters: PathBuf,
    _files: tempfile::TempDir,
    _nats: System,
}

/// A running program of the product, which is killed when it is dropped.
pub struct Process(Child);

impl Process {
    fn spawn(
        program: &Path,
        service: &str,
        nats: &NatsEndpoint,
        environment: &[(&str, &str)],
    ) -> Self {
        let child = Command::new(program)
            .env("AGENTBOX_NATS_URL", &nats.url)
            .env("AGENTBOX_NATS_USER", service)
            .env("AGENTBOX_NATS_PASSWORD", &nats.passwords[service])
            .env("AGENTBOX_ADMIN_LISTEN", "127.0.0.1:0")
            .env("AGENTBOX_BOX_SECRET", BOX_SECRET)
            .env("AGENTBOX_SCHEDULER_SECRET", hex::encode([1_u8; 32]))
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap_or_else(|error| panic!("{} is not built: {error}", program.display())))
    }

    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether a request got no answer of a scheduler: NATS may still deliver one to a replica that was just
/// killed, and on a busy machine Postgres may give none a connection in time.
pub fn is_without_answer(error: &Error) -> bool {
    matches!(error.code, ErrorCode::Timeout | ErrorCode::Unavailable)
}

impl World {
    pub async fn new() -> Self {
        Self::with_labels(json!({})).await
    }

    /// A world whose clusters file has `labels` for the cluster.
    pub async fn with_labels(labels: serde_json::Value) -> Self {
        let containerd = CONTAINERD
            .get_or_try_init(TestContainerd::start)
            .await
            .expect("containerd for tests");
        let files = tempfile::tempdir().unwrap();
        let config = serde_json::to_value(containerd.endpoint.another_deployment()).unwrap();
        let clusters = json!({ "clusters": [{
            "name": CLUSTER, "driver": "containerd", "labels": labels, "containerd": config,
        }]});
        let path = files.path().join("clusters.json");
        std::fs::write(&path, clusters.to_string()).unwrap();
        let config: Config = serde_json::from_value(config).unwrap();
        let driver: Arc<dyn Runtime> = Arc::new(Driver::connect(config).unwrap());

        let (system, nats) = TestNats::own().await.unwrap();
        let exec_proxy = Process::spawn(
            &bin_dir().join("agentbox-exec-proxy"),
            "exec-proxy",
            &nats,
            &[("AGENTBOX_CLUSTERS", path.to_str().unwrap())],
        );
        let gateway = bus(&nats, "api-gateway").await;
        Self {
            database: database_of_a_scheduler().await,
            nats,
            driver,
            gateway,
            owner: UserId::random(),
            exec_proxy,
            clusters: path,
            _files: files,
            _nats: system,
        }
    }

    /// A replica over the real driver.
    pub async fn replica(&self) -> Replica {
        self.replica_with(self.driver.clone(), settings()).await
    }

    pub async fn replica_with(&self, runtime: Arc<dyn Runtime>, settings: Settings) -> Replica {
        let replica = self.replica_of(vec![(CLUSTER, runtime)], settings).await;
        self.wait_until_ready().await;
        replica
    }

    /// A replica of several clusters, some of which may be unreachable.
    pub async fn replica_of(
        &self,
        runtimes: Vec<(&str, Arc<dyn Runtime>)>,
        settings: Settings,
    ) -> Replica {
        Replica::start(&self.database, &self.nats, runtimes, settings).await
    }

    /// Starts a replica as a process, which can be killed.
    pub fn process(&self) -> Process {
        let environment = [
            ("AGENTBOX_CLUSTERS", self.clusters.to_str().unwrap()),
            ("AGENTBOX_DATABASE_URL", &self.database.url),
            ("AGENTBOX_RESYNC_INTERVAL", "1"),
        ];
        let program = Path::new(env!("CARGO_BIN_EXE_agentbox-scheduler"));
        Process::spawn(program, "scheduler", &self.nats, &environment)
    }

    pub fn kill_exec_proxy(&mut self) {
        self.exec_proxy.kill();
    }

    /// Waits until a scheduler answers and is connected to its clusters.
    pub async fn wait_until_ready(&self) {
        eventually("a scheduler answers", Duration::from_secs(20), async || {
            let health = self.health().await;
            health.is_ok_and(|h| h.database && h.clusters.iter().all(|c| c.connected))
        })
        .await;
    }

    pub async fn health(&self) -> Result<HealthReply, Error> {
        self.gateway.call::<Health>(&Empty {}, CALL).await
    }

    /// Sends a request that may be repeated. One without an answer is.
    pub async fn ask<R: Rpc>(&self, request: &R::Request) -> Result<R::Reply, Error> {
        eventually_some("the request is answered", NEXT, async || {
            let answer = self.gateway.call::<R>(request, CALL).await;
            let refusal = answer.as_ref().err();
            let is_answered = refusal.is_none_or(|error| !is_without_answer(error));
            is_answered.then_some(answer)
        })
        .await
    }

    pub async fn try_create(&self, request: EnvironmentRequest) -> Result<Environment, Error> {
        self.try_create_as(request, None).await
    }

    async fn try_create_as(
        &self,
        request: EnvironmentRequest,
        idempotency_key: Option<String>,
    ) -> Result<Environment, Error> {
        let request = CreateRequest {
            owner: self.owner.clone(),
            owner_username: "somebody".into(),
            request,
            idempotency_key,
            limits: Default::default(),
        };
        self.gateway.call::<Create>(&request, CALL).await
    }

    /// Creates with an idempotency key, and repeats the request until it succeeds.
    pub async fn create_until_answered(
        &self,
        request: EnvironmentRequest,
        within: Duration,
    ) -> Environment {
        let key = request.name.clone();
        let begun = tokio::time::Instant::now();
        loop {
            match self.try_create_as(request.clone(), Some(key.clone())).await {
                Ok(environment) => return environment,
                Err(error) => assert!(begun.elapsed() < within, "{key}: {error}"),
            }
            // Without a scheduler each is refused at once. Leaves the machine to the next one's start.
            tokio::time::sleep(pause(begun.elapsed())).await;
        }
    }

    /// Creates an environment. A request without an answer is repeated with the same idempotency key.
    pub async fn create(&self, request: EnvironmentRequest) -> Environment {
        let key = EnvironmentId::random().to_string();
        eventually_some("the create is answered", NEXT, async || {
            let answer = self.try_create_as(request.clone(), Some(key.clone())).await;
            match answer {
                Ok(environment) => Some(environment),
                Err(error) if is_without_answer(&error) => None,
                Err(error) => panic!("{error}"),
            }
        })
        .await
    }

    pub async fn get(&self, id: &EnvironmentId) -> Environment {
        let request = GetRequest { id: id.clone() };
        self.ask::<Get>(&request).await.unwrap()
    }

    async fn try_get(&self, id: &EnvironmentId) -> Result<Environment, Error> {
        self.gateway
            .call::<Get>(&GetRequest { id: id.clone() }, CALL)
            .await
    }

    /// Deletes an environment without a grace period. A request without an answer is repeated.
    pub async fn force_delete(&self, id: &EnvironmentId) {
        let request = DeleteRequest {
            id: id.clone(),
            force: true,
        };
        eventually("the deletion is answered", NEXT, async || {
            let answer = self.gateway.call::<Delete>(&request, CALL).await;
            if let Err(error) = &answer {
                assert!(is_without_answer(error), "{error}");
            }
            answer.is_ok()
        })
        .await;
    }

    /// Waits for a status. Fails at once when the environment has ended with another one. A question
    /// without an answer is repeated.
    pub async fn wait_for_status(
        &self,
        id: &EnvironmentId,
        status: Status,
        within: Duration,
    ) -> Environment {
        let begun = tokio::time::Instant::now();
        loop {
            let answer = self.try_get(id).await;
            let may_change = match answer {
                Ok(environment) if environment.status == status => return environment,
                Ok(ref environment) => !environment.status.is_ended(),
                Err(ref error) => is_without_answer(error),
            };
            assert!(
                may_change && begun.elapsed() < within,
                "not {status:?} within {within:?}: {answer:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The first `count` events of one environment.
    pub async fn events(&self, id: &EnvironmentId, count: usize) -> Vec<EnvironmentEvent> {
        let mut stream = self
            .gateway
            .events(subjects::environment_events(id), 0)
            .await
            .unwrap();
        let mut events = Vec::new();
        while events.len() < count {
            let next = tokio::time::timeout(NEXT, stream.next()).await;
            events.push(
                next.expect("another event")
                    .expect("the stream has not ended")
                    .unwrap()
                    .event,
            );
        }
        events
    }

    pub async fn wait_for_box_removal(&self, id: &EnvironmentId) {
        eventually("the box is removed", Duration::from_secs(15), async || {
            matches!(self.driver.get(id).await, Ok(None))
        })
        .await;
    }
}
