//! scheduler: the life of environments.
//!
//! Owns the Postgres schema `scheduler` and the environment event stream. Postgres says
//! what is wanted, clusters say what runs, and this service brings the second to the
//! first; it keeps nothing that matters in memory. Never carries a byte of user I/O.
//!
//! * [`config`], [`migrations`]: its settings and its schema.
//! * [`cluster`]: where boxes run.
//! * [`environment`]: everything about environments.
//! * [`trace`], [`metrics`]: what operators see.

pub mod cluster;
pub mod config;
pub mod environment;
mod metrics;
pub mod migrations;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::{Bus, BusError, Command, Retry, Server};
use agentbox_contracts::environment::rpc;
use agentbox_contracts::subjects::{self, Subject};
use agentbox_database::Leases;
use agentbox_runtime::Runtime;
use agentbox_service::{Component, Context};
use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use crate::cluster::registry::{Cluster, Clusters};
pub use crate::config::Config;
use crate::config::Settings;
use crate::environment::handlers::Environments;
use crate::environment::outbox::{self, Relay};
use crate::environment::reconcile::Reconciler;
use crate::environment::store::Store;
use crate::environment::{due, expire, orphans, retention};

const SERVICE: &str = "scheduler";
/// A command whose replica died comes again after so long.
const COMMAND_ACK_WAIT: Duration = Duration::from_secs(10);
/// A command only fails when the database does.
const COMMAND_ATTEMPTS: i64 = 20;
const COMMAND_RETRY: Duration = Duration::from_secs(1);
/// Requests are heard after so long at the latest: most need no cluster.
const CLUSTERS_ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Starts the scheduler: its tasks run on until shutdown.
///
/// # Errors
/// When the clusters file, the database or the bus cannot be used.
pub async fn run(config: Config, context: Context) -> Result<(), anyhow::Error> {
    metrics::describe();
    let specs = cluster::config::read(&config.clusters)?;
    let database = context.readiness.component("database");
    let pool = agentbox_database::connect(
        &config.database_url,
        SERVICE,
        config.database_connections.max(4),
    )
    .await?;
    agentbox_database::migrate::<migrations::Migrator>(&pool, SERVICE).await?;
    database.ready();
    context
        .bus
        .ensure_streams(SERVICE)
        .await
        .context("the streams cannot be set up")?;

    let clusters = Clusters::new(specs.iter().map(|spec| {
        Cluster::new(
            &spec.name,
            spec.driver_kind(),
            spec.labels.clone(),
            spec.extra.overcommit,
        )
    }));
    let scheduler = Scheduler::new(
        Store::new(pool),
        clusters,
        context.bus.clone(),
        config.settings(),
        context.shutdown.clone(),
    );
    let ready = context.readiness.component("clusters");
    for spec in specs {
        let runtime = spec.runtime()?;
        let (parts, ready) = (scheduler.parts.clone(), ready.clone());
        context.tasks.spawn("cluster", async move {
            Ok(parts.serve_cluster(spec.name, runtime, Some(ready)).await?)
        });
    }
    // Before it knows a cluster it can create nothing, and another replica may.
    let clusters = scheduler.parts.clusters.clone();
    clusters.wait_for_another(CLUSTERS_ANSWER_WITHIN).await;
    scheduler.spawn(&context.tasks).await?;
    Ok(())
}

/// What every task of the service shares.
#[derive(Clone)]
pub struct Parts {
    pub environments: Environments,
    pub reconciler: Arc<Reconciler>,
    pub clusters: Clusters,
    store: Store,
    bus: Bus,
    settings: Settings,
    shutdown: CancellationToken,
}

/// The service, wired and not yet running.
pub struct Scheduler {
    pub parts: Parts,
    relay: Relay,
}

impl Scheduler {
    /// Wires the service over a migrated database.
    #[must_use]
    pub fn new(
        store: Store,
        clusters: Clusters,
        bus: Bus,
        settings: Settings,
        shutdown: CancellationToken,
    ) -> Self {
        let (outbox, relay) = outbox::outbox(store.clone(), bus.clone());
        let environments = Environments::new(
            store.clone(),
            clusters.clone(),
            outbox.clone(),
            settings.clone(),
        );
        let reconciler = Reconciler::new(
            store.clone(),
            clusters.clone(),
            bus.clone(),
            outbox,
            settings.clone(),
            shutdown.clone(),
        );
        let parts = Parts {
            environments,
            reconciler,
            clusters,
            store,
            bus,
            settings,
            shutdown,
        };
        Self { parts, relay }
    }

    /// Everything that does not wait for a cluster; requests are heard when it returns.
    async fn spawn(self, tasks: &agentbox_service::Tasks) -> Result<(), BusError> {
        let Self { parts, relay } = self;
        let requests = parts.requests().listen().await?;
        let shutdown = parts.shutdown.clone();
        tasks.spawn("requests", async move { Ok(requests.run(shutdown).await?) });
        let shutdown = parts.shutdown.clone();
        tasks.spawn("outbox", async move {
            relay.run(shutdown).await;
            Ok(())
        });
        tasks.spawn("sweeps", async move {
            parts.sweep().await;
            Ok(())
        });
        Ok(())
    }

    /// Runs all of it until shutdown, for callers that connect their clusters themselves.
    ///
    /// # Errors
    /// When the bus refuses.
    pub async fn run_with(self, runtimes: Vec<(String, Arc<dyn Runtime>)>) -> Result<(), BusError> {
        let Self { parts, relay } = self;
        let shutdown = parts.shutdown.clone();
        let clusters = futures::future::try_join_all(
            runtimes
                .into_iter()
                .map(|(name, runtime)| parts.serve_cluster(name, runtime, None)),
        );
        let requests = parts.requests().listen().await?.run(shutdown.clone());
        let ((), (), _, ()) = tokio::try_join!(
            requests,
            async {
                relay.run(shutdown).await;
                Ok(())
            },
            clusters,
            async {
                parts.sweep().await;
                Ok(())
            },
        )?;
        Ok(())
    }
}

impl Parts {
    fn leases(&self) -> Leases {
        self.store.leases(self.bus.instance().clone())
    }

    fn requests(&self) -> Server {
        macro_rules! answer {
            ($server:expr, $rpc:ty, $method:ident) => {{
                let environments = self.environments.clone();
                $server.on::<$rpc, _, _>(move |request| {
                    let environments = environments.clone();
                    async move { environments.$method(request).await }
                })
            }};
        }
        let server = self.bus.serve(SERVICE);
        let server = answer!(server, rpc::Create, create);
        let server = answer!(server, rpc::Get, get);
        let server = answer!(server, rpc::List, list);
        let server = answer!(server, rpc::Resolve, resolve);
        let server = answer!(server, rpc::Patch, patch);
        let server = answer!(server, rpc::Delete, delete);
        let server = answer!(server, rpc::DeleteOwned, delete_owned);
        let environments = self.environments.clone();
        server.on::<rpc::Health, _, _>(move |_| {
            let environments = environments.clone();
            async move { Ok(environments.health().await) }
        })
    }

    /// What time asks for, in every cluster.
    async fn sweep(&self) {
        let leases = self.leases();
        let expiry = leases.run_while_held("expiry", &self.shutdown, |held| {
            expire::sweep(&self.environments, held)
        });
        let forgetting = leases.run_while_held("retention", &self.shutdown, |held| {
            retention::sweep(&self.store, self.settings.retention, held)
        });
        tokio::join!(expiry, forgetting);
    }

    /// Serves one cluster until shutdown: its capacity, its commands, what is due in it, its
    /// changes.
    async fn serve_cluster(
        &self,
        name: String,
        runtime: Arc<dyn Runtime>,
        ready: Option<Component>,
    ) -> Result<(), BusError> {
        let Some(cluster) = self.clusters.get(&name).cloned() else {
            return Ok(());
        };
        cluster.connected(runtime.clone());
        let capacity = cluster
            .capacity
            .keep_fresh(&name, &*runtime, self.shutdown.clone(), || {
                let Some(ready) = &ready else { return };
                // One of several is enough to be of use.
                if self
                    .clusters
                    .iter()
                    .any(|cluster| cluster.capacity.current().is_some())
                {
                    ready.ready();
                } else {
                    ready.not_ready("no cluster answers");
                }
            });
        let queue = self
            .bus
            .work_queue(
                &format!("scheduler-{name}"),
                subjects::cluster_commands(&name),
                COMMAND_ACK_WAIT,
                COMMAND_ATTEMPTS,
                self.settings.max_reconciles,
            )
            .await?;
        let reconciler = self.reconciler.clone();
        let commands = queue.run(
            move |command| {
                let reconciler = reconciler.clone();
                async move { carry_out(&reconciler, &command).await }
            },
            self.shutdown.clone(),
        );
        let due = due::keep_driving(
            self.store.clone(),
            name.clone(),
            self.reconciler.clone(),
            self.settings.max_reconciles,
            self.shutdown.clone(),
        );
        let (leases, lease) = (self.leases(), format!("cluster:{name}"));
        let changes = leases.run_while_held(&lease, &self.shutdown, |held| {
            orphans::follow(
                &self.store,
                &cluster,
                &self.reconciler,
                self.settings.resync_interval,
                held,
            )
        });
        tokio::join!(commands, due, capacity, changes);
        Ok(())
    }
}

async fn carry_out(reconciler: &Reconciler, command: &Command) -> Result<(), Retry> {
    let Some(Subject::Command { id, .. }) = Subject::parse(&command.subject) else {
        tracing::error!(subject = command.subject, "not a command of ours");
        return Ok(());
    };
    reconciler.reconcile(&id).await.map_err(|error| Retry {
        after: COMMAND_RETRY,
        reason: error.to_string(),
    })
}
