//! scheduler: the lifecycle of environments.
//!
//! Owns the Postgres schema `scheduler` and the environment event stream. Postgres has the
//! requested state, clusters have the actual one, and this service reconciles the second
//! with the first. All its state in memory can be read again. It never carries user I/O.
//!
//! * [`config`], [`migrations`]: its settings and its schema.
//! * [`cluster`]: where boxes run.
//! * [`environment`]: everything about environments.
//! * [`dead_letters`]: messages that could not be processed, for operators.
//! * [`pool`]: warm pools.
//! * [`trace`], [`metrics`]: telemetry.

pub mod cluster;
pub mod config;
mod dead_letters;
pub mod environment;
mod metrics;
pub mod migrations;
pub mod pool;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use agentbox_bus::{Bus, BusError, Command, Retry, Server};
use agentbox_contracts::ErrorChain;
use agentbox_contracts::cluster::rpc as clusters;
use agentbox_contracts::dead_letter::rpc as letters;
use agentbox_contracts::environment::rpc;
use agentbox_contracts::metering::rpc as metered;
use agentbox_contracts::pool::rpc as pools;
use agentbox_contracts::registry::rpc as credentials;
use agentbox_contracts::subjects::{self, Subject};
use agentbox_database::Leases;
use agentbox_database::secret::MasterSecret;
use agentbox_runtime::Runtime;
use agentbox_service::{Component, Context, ServiceFuture};
use anyhow::Context as _;
use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;

use crate::cluster::registry::{Cluster, Clusters};
pub use crate::config::Config;
use crate::config::Settings;
use crate::environment::handlers::Environments;
use crate::environment::outbox::{self, Relay};
use crate::environment::reconcile::Reconciler;
use crate::environment::store::Store;
use crate::environment::{execution_events, metering, orphans, queue, sweeper};
use crate::pool::boxes::WarmBoxes;
use crate::pool::configuration;
use crate::pool::handlers::Pools;
use crate::pool::reconcile::PoolReconciler;

const SERVICE: &str = "scheduler";
/// A command whose replica was killed is delivered again after this time.
const COMMAND_ACK_WAIT: Duration = Duration::from_secs(10);
/// Deliveries of one command. A delivery fails only when the database does.
const COMMAND_ATTEMPTS: i64 = 20;
const COMMAND_RETRY: Duration = Duration::from_secs(1);
/// How long the start waits for a cluster. Requests are answered after it in any case, because
/// most of them need no cluster.
const CLUSTER_START_WAIT: Duration = Duration::from_secs(5);

/// Starts the scheduler: its tasks run until shutdown.
///
/// # Errors
/// When the clusters file, the database or the bus cannot be used.
pub fn run(config: Config, context: Context) -> ServiceFuture {
    Box::pin(start(config, context))
}

async fn start(config: Config, context: Context) -> Result<(), anyhow::Error> {
    metrics::describe();
    // Not parsed by clap, whose errors would show the value.
    let secret: MasterSecret = config
        .scheduler_secret
        .parse()
        .context("AGENTBOX_SCHEDULER_SECRET")?;
    let specs = cluster::config::read(&config.clusters)?;
    let configured = config.pools.as_deref().map(configuration::read);
    let configured = configured.transpose()?.unwrap_or_default();
    let database = context.readiness.component("database");
    let pool = agentbox_database::connect(
        &config.database_url,
        SERVICE,
        config.database_connections.max(4),
    )
    .await?;
    agentbox_database::migrate::<migrations::Migrator>(&pool, SERVICE).await?;
    let connections = agentbox_database::report_connections(pool.clone(), context.shutdown.clone());
    context.tasks.spawn("database-connections", async move {
        connections.await;
        Ok(())
    });
    let store = Store::new(pool, secret);
    let sealed = store.seal_stored_variables().await?;
    if sealed > 0 {
        tracing::info!(rows = sealed, "stored variables sealed");
    }
    configuration::apply(&store, &configured).await?;
    database.ready();
    context
        .bus
        .wait_for_streams(SERVICE)
        .await
        .context("the streams do not exist")?;

    let clusters = Clusters::new(specs.iter().map(|spec| {
        Cluster::new(
            &spec.name,
            spec.driver_kind(),
            spec.labels.clone(),
            spec.extra.overcommit,
            spec.extra.allowed_registries.clone(),
        )
    }));
    let mut runtimes = Vec::new();
    for spec in specs {
        let runtime = spec.runtime()?;
        runtimes.push((spec.name, runtime));
    }
    let scheduler = Scheduler::new(
        store,
        clusters,
        context.bus.clone(),
        config.settings(),
        context.shutdown.clone(),
    );
    let ready = context.readiness.component("clusters");
    scheduler
        .start(runtimes, Some(ready), |name, task| {
            context.tasks.spawn(name, task);
        })
        .await?;
    Ok(())
}

/// The state that the tasks of the service share.
#[derive(Clone)]
struct AppState {
    environments: Environments,
    pools: Pools,
    reconciler: Arc<Reconciler>,
    clusters: Clusters,
    store: Store,
    bus: Bus,
    settings: Settings,
    shutdown: CancellationToken,
}

/// The service before its start.
pub struct Scheduler {
    state: AppState,
    relay: Relay,
}

impl Scheduler {
    /// Builds the service on a migrated database.
    #[must_use]
    pub fn new(
        store: Store,
        clusters: Clusters,
        bus: Bus,
        settings: Settings,
        shutdown: CancellationToken,
    ) -> Self {
        let (outbox, relay) = outbox::outbox(store.clone(), bus.clone());
        let reconciler = Reconciler::new(
            store.clone(),
            clusters.clone(),
            bus.clone(),
            outbox.clone(),
            settings.clone(),
            shutdown.clone(),
        );
        let environments = Environments::new(
            store.clone(),
            clusters.clone(),
            outbox.clone(),
            reconciler.clone(),
            settings.clone(),
        );
        let pools = Pools::new(store.clone(), clusters.clone(), outbox, settings.clone());
        let state = AppState {
            environments,
            pools,
            reconciler,
            clusters,
            store,
            bus,
            settings,
            shutdown,
        };
        Self { state, relay }
    }

    /// Passes every task to `spawn`; requests are answered when it returns. `ready` follows
    /// whether a cluster is reachable.
    ///
    /// # Errors
    /// When the bus refuses the subscription to requests.
    pub async fn start(
        self,
        runtimes: Vec<(String, Arc<dyn Runtime>)>,
        ready: Option<Component>,
        mut spawn: impl FnMut(&'static str, ServiceFuture),
    ) -> Result<(), BusError> {
        let Self { state, relay } = self;
        for (name, runtime) in runtimes {
            let (state, ready) = (state.clone(), ready.clone());
            let serve = async move { Ok(state.serve_cluster(name, runtime, ready).await?) };
            spawn("cluster", serve.boxed());
        }
        // A failure means that this replica places environments in cordoned clusters until the first
        // read that succeeds.
        if let Err(error) = state.environments.refresh_scheduling().await {
            tracing::warn!(error = %ErrorChain(&error), "states of clusters not read; retried");
        }
        let environments = state.environments.clone();
        let shutdown = state.shutdown.clone();
        let scheduling = async move {
            sweeper::run_scheduling(&environments, shutdown).await;
            Ok(())
        };
        spawn("cluster-states", scheduling.boxed());
        // Until then another replica, which may reach a cluster, answers the creates.
        state
            .clusters
            .wait_for_unreachable(CLUSTER_START_WAIT)
            .await;
        let requests = state.server().listen().await?;
        let shutdown = state.shutdown.clone();
        let answer = async move { Ok(requests.run(shutdown).await?) };
        spawn("requests", answer.boxed());
        let shutdown = state.shutdown.clone();
        spawn("outbox", relay.run(shutdown).map(Ok).boxed());
        let sweepers = async move {
            state.run_sweepers().await;
            Ok(())
        };
        spawn("sweepers", sweepers.boxed());
        Ok(())
    }
}

impl AppState {
    fn leases(&self) -> Leases {
        self.store.leases(self.bus.instance().clone())
    }

    fn server(&self) -> Server {
        let (environments, warm_pools) = (&self.environments, &self.pools);
        self.bus
            .serve(SERVICE)
            .on_shared::<rpc::Create, _, _, _>(environments, async |e, r| e.create(r).await)
            .on_shared::<rpc::Get, _, _, _>(environments, async |e, r| e.get(r).await)
            .on_shared::<rpc::GetMany, _, _, _>(environments, async |e, r| e.get_many(r).await)
            .on_shared::<rpc::List, _, _, _>(environments, async |e, r| e.list(r).await)
            .on_shared::<rpc::Resolve, _, _, _>(environments, async |e, r| e.resolve(r).await)
            .on_shared::<rpc::Patch, _, _, _>(environments, async |e, r| e.patch(r).await)
            .on_shared::<rpc::RecordActivity, _, _, _>(environments, async |e, r| {
                e.record_activity(r).await
            })
            .on_shared::<rpc::Delete, _, _, _>(environments, async |e, r| e.delete(r).await)
            .on_shared::<rpc::DeleteOwned, _, _, _>(environments, async |e, r| {
                e.delete_owned(r).await
            })
            .on_shared::<credentials::SetCredential, _, _, _>(environments, async |e, r| {
                e.set_credential(r).await
            })
            .on_shared::<credentials::ListCredentials, _, _, _>(environments, async |e, r| {
                e.list_credentials(r).await
            })
            .on_shared::<credentials::DeleteCredential, _, _, _>(environments, async |e, r| {
                e.delete_credential(r).await
            })
            .on_shared::<pools::SetPool, _, _, _>(warm_pools, async |p, r| p.set(r).await)
            .on_shared::<pools::GetPool, _, _, _>(warm_pools, async |p, r| p.get(r).await)
            .on_shared::<pools::ListPools, _, _, _>(warm_pools, async |p, r| p.list(r).await)
            .on_shared::<pools::DeletePool, _, _, _>(warm_pools, async |p, r| p.delete(r).await)
            .on_shared::<clusters::ListClusters, _, _, _>(environments, async |e, _| {
                e.list_clusters().await
            })
            .on_shared::<clusters::CordonCluster, _, _, _>(environments, async |e, r| {
                e.cordon_cluster(r).await
            })
            .on_shared::<clusters::UncordonCluster, _, _, _>(environments, async |e, r| {
                e.uncordon_cluster(r).await
            })
            .on_shared::<clusters::DrainCluster, _, _, _>(environments, async |e, r| {
                e.drain_cluster(r).await
            })
            .on_shared::<metered::ReadUsage, _, _, _>(environments, async |e, r| {
                e.read_usage(r).await
            })
            .on_shared::<letters::ListDeadLetters, _, _, _>(&self.bus, async |bus, r| {
                dead_letters::list(&bus, r).await
            })
            .on_shared::<letters::GetDeadLetter, _, _, _>(&self.bus, async |bus, r| {
                dead_letters::get(&bus, r).await
            })
            .on_shared::<letters::ReplayDeadLetter, _, _, _>(&self.bus, async |bus, r| {
                dead_letters::replay(&bus, r).await
            })
            .on_shared::<letters::DiscardDeadLetter, _, _, _>(&self.bus, async |bus, r| {
                dead_letters::discard(&bus, r).await
            })
            .on_shared::<rpc::Health, _, _, _>(environments, async |e, _| Ok(e.health().await))
    }

    /// The periodic work for all clusters.
    async fn run_sweepers(&self) {
        let leases = self.leases();
        let expiry = leases.run_while_held("expiry", &self.shutdown, |held| {
            sweeper::run_expiry(&self.environments, held)
        });
        let purge = leases.run_while_held("retention", &self.shutdown, |held| {
            sweeper::run_purge(&self.store, self.settings.retention, held)
        });
        let idle = leases.run_while_held("idle", &self.shutdown, |held| {
            sweeper::run_idle(&self.environments, &self.bus, held)
        });
        let reconciler = PoolReconciler::new(
            self.clusters.clone(),
            self.environments.clone(),
            self.settings.clone(),
        );
        let pools = leases.run_while_held("pools", &self.shutdown, |held| reconciler.run(held));
        let statistics =
            sweeper::run_statistics(&self.store, &self.clusters, self.shutdown.clone());
        let drains = leases.run_while_held("drain", &self.shutdown, |held| {
            sweeper::run_drains(&self.environments, held)
        });
        let metering = leases.run_while_held("metering", &self.shutdown, |held| {
            metering::run(&self.store, &self.bus, held)
        });
        let execution_events = leases.run_while_held("execution-events", &self.shutdown, |held| {
            execution_events::run(&self.store, &self.bus, held)
        });
        tokio::join!(
            expiry,
            idle,
            pools,
            purge,
            drains,
            metering,
            execution_events,
            statistics,
        );
    }

    /// Reports whether a cluster is reachable. One is enough.
    fn report_readiness(&self, ready: Option<&Component>) {
        let Some(ready) = ready else { return };
        let mut clusters = self.clusters.iter();
        if clusters.any(|cluster| cluster.capacity.current().is_some()) {
            ready.ready();
        } else {
            ready.not_ready("no cluster is reachable");
        }
    }

    /// Serves one cluster until shutdown: its capacity, its commands, its due environments and warm
    /// boxes, its changes.
    async fn serve_cluster(
        &self,
        name: String,
        runtime: Arc<dyn Runtime>,
        ready: Option<Component>,
    ) -> Result<(), BusError> {
        let Some(cluster) = self.clusters.get(&name).cloned() else {
            return Ok(());
        };
        cluster.set_runtime(runtime.clone());
        let capacity =
            cluster
                .capacity
                .run_refresh(&name, &*runtime, self.shutdown.clone(), || {
                    self.report_readiness(ready.as_ref());
                });
        let commands = self
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
        let commands = commands.run(
            move |command| {
                let reconciler = reconciler.clone();
                async move { handle_command(&reconciler, &command).await }
            },
            self.shutdown.clone(),
        );
        let due = queue::run_due(
            self.store.clone(),
            name.clone(),
            self.reconciler.clone(),
            self.settings.max_reconciles,
            self.shutdown.clone(),
        );
        let warm_boxes = WarmBoxes::new(self.store.clone(), cluster.clone(), self.settings.clone());
        let warm_boxes = warm_boxes.run_due(self.shutdown.clone());
        let (leases, lease) = (self.leases(), format!("cluster:{name}"));
        let changes = leases.run_while_held(&lease, &self.shutdown, |held| {
            orphans::run(
                &self.store,
                &cluster,
                &self.reconciler,
                self.settings.resync_interval,
                held,
            )
        });
        tokio::join!(commands, due, warm_boxes, capacity, changes);
        Ok(())
    }
}

async fn handle_command(reconciler: &Reconciler, command: &Command) -> Result<(), Retry> {
    let Some(Subject::Command { id, .. }) = Subject::parse(&command.subject) else {
        tracing::error!(
            subject = command.subject,
            "command with an unknown subject discarded"
        );
        return Ok(());
    };
    reconciler.reconcile(&id).await.map_err(|error| Retry {
        after: COMMAND_RETRY,
        reason: ErrorChain(&error).to_string(),
    })
}
