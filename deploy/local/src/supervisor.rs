//! The process that owns an instance: it starts the components, restarts what exits, and stops
//! everything.
//!
//! * I1. It stops everything that it started: on SIGTERM and SIGINT, when a component cannot be
//!   started, and in a test when its standard input ends. The kernel closes that pipe when the test
//!   program ends in any way.
//! * I2. Shutdown goes from the outside in: services, each cluster's boxes and then its
//!   programs, Postgres and NATS, what observes the instance. Each step has a deadline, and a failed
//!   step does not prevent the next.
//! * I3. `state.json` describes the current phase and processes at all times.
//!
//! It is single-threaded: the kernel sends a child its orphan signal when the *thread* that
//! started it ends, so that thread must run as long as the process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use agentbox_testing::cluster::{Cluster, Endpoint, Runtime};
use agentbox_testing::paths::{Layout, NotBuilt};
use agentbox_testing::plan::Plan;
use agentbox_testing::private_file;
use agentbox_testing::state::{Phase, State};
use agentbox_testing::{GatewayEndpoint, NatsEndpoint, PostgresEndpoint};
use futures::future::{join_all, try_join_all};

use crate::cleanup;
use crate::containerd::ContainerdError;
use crate::image::ImageError;
use crate::kernel_limits;
use crate::kubernetes::KubernetesError;
use crate::kubernetes::existing;
use crate::nats::NatsError;
use crate::observability::{Addresses, ObservabilityError};
use crate::ports::{PortError, Ports, require_free};
use crate::postgres::PostgresError;
use crate::secrets::{Secrets, SecretsError};
use crate::services::{self, Replica, ServiceEnv};
use crate::slot::SlotError;
use crate::stale;

mod cluster;
mod cluster_processes;
mod components;
mod kubernetes;
mod observability;
mod probe;
mod process_group;
mod state_file;
mod stop_signal;

use cluster::SupervisedCluster;
use probe::{probe, url_of};
use process_group::{NotReady, ProcessGroup};
use state_file::StateFile;
use stop_signal::stop_signal;

/// The reason why an instance could not be started, in one line.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    #[error("cannot use {path}: {source}")]
    Directory {
        path: String,
        source: std::io::Error,
    },
    #[error("another supervisor is running in {0}; stop it with `make down`")]
    Running(String),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Observability(#[from] ObservabilityError),
    #[error(transparent)]
    NotBuilt(#[from] NotBuilt),
    #[error(transparent)]
    NotReady(#[from] NotReady),
    #[error("stopped by a signal before it was ready")]
    Stopped,
}

struct Supervisor {
    layout: Layout,
    plan: Plan,
    secrets: Secrets,
    state_file: StateFile,
    ports: Ports,
    services: ProcessGroup,
    clusters: Vec<SupervisedCluster>,
    nats: ProcessGroup,
    postgres: ProcessGroup,
    observability: ProcessGroup,
    /// `None`: the instance is not observed.
    observed_at: Option<Addresses>,
}

/// The running components that services connect to.
struct Backends {
    postgres: Option<PostgresEndpoint>,
    nats: Option<NatsEndpoint>,
    clusters: Vec<Cluster>,
}

/// Runs an instance until a signal stops it; with `until_stdin_ends`, also until standard input
/// ends.
///
/// # Errors
/// The reason why the start failed; everything is stopped again by then.
pub(crate) async fn run(layout: Layout, until_stdin_ends: bool) -> Result<(), SuperviseError> {
    let failed = |source: std::io::Error| SuperviseError::Directory {
        path: layout.directory().display().to_string(),
        source,
    };
    let lock = std::fs::File::create(layout.lock()).map_err(failed)?;
    if lock.try_lock().is_err() {
        return Err(SuperviseError::Running(
            layout.directory().display().to_string(),
        ));
    }
    std::fs::create_dir_all(layout.logs()).map_err(failed)?;
    let plan: Plan = serde_json::from_slice(&std::fs::read(layout.plan()).map_err(failed)?)
        .map_err(|error| failed(error.into()))?;
    let stop = stop_signal(until_stdin_ends).map_err(failed)?;
    let mut supervisor = Supervisor::new(layout.clone(), plan)?;
    let outcome = {
        tokio::pin!(stop);
        tokio::select! {
            started = supervisor.start() => match started {
                Ok(()) => {
                    supervisor.state_file.update(|state| state.phase = Phase::Ready);
                    tokio::select! {
                        () = &mut stop => Ok(()),
                        never = supervisor.observe_on_request() => match never {},
                    }
                }
                Err(error) => Err(error),
            },
            () = &mut stop => Err(SuperviseError::Stopped),
        }
    };
    let phase = match &outcome {
        Ok(()) | Err(SuperviseError::Stopped) => Phase::Stopped,
        Err(error) => Phase::Failed {
            message: error.to_string(),
        },
    };
    supervisor.shut_down(phase).await;
    outcome
}

impl Supervisor {
    fn new(layout: Layout, plan: Plan) -> Result<Self, SuperviseError> {
        let secrets = Secrets::load_or_generate(&layout.secrets())?;
        let instance = plan
            .deployment
            .clone()
            .unwrap_or_else(|| format!("test-{}", hex::encode(rand::random::<[u8; 4]>())));
        let state_file = StateFile::new(&layout, State::new(instance)).map_err(|source| {
            SuperviseError::Directory {
                path: layout.directory().display().to_string(),
                source,
            }
        })?;
        Ok(Self {
            ports: Ports::new()?,
            services: ProcessGroup::new(state_file.clone()),
            clusters: SupervisedCluster::all(&layout, &plan, &state_file)?,
            nats: ProcessGroup::new(state_file.clone()),
            postgres: ProcessGroup::new(state_file.clone()),
            observability: ProcessGroup::new(state_file.clone()),
            observed_at: None,
            layout,
            plan,
            secrets,
            state_file,
        })
    }

    async fn start(&mut self) -> Result<(), SuperviseError> {
        let started = Instant::now();
        if let Some(port) = self.plan.port {
            require_free(self.plan.host, port)?;
        }
        if self.plan.components.services {
            services::require_programs(&self.plan.bin_dir, &self.plan.boxd)?;
        }
        if self.plan.is_test() {
            stale::remove_instances().await;
        }
        if self.plan.components.containerd || self.plan.components.kubernetes {
            for problem in kernel_limits::raise() {
                self.state_file.log_step(&problem);
            }
        }
        for cluster in &self.clusters {
            cluster.prepare().await?;
        }
        cleanup::unmount_postgres(&self.state_file.deployment());
        let backends = self.start_backends().await?;
        self.state_file.update(|state| {
            state.postgres.clone_from(&backends.postgres);
            state.nats.clone_from(&backends.nats);
            state.clusters.clone_from(&backends.clusters);
        });
        // A previous run may have been observed.
        let _ = std::fs::remove_file(self.layout.trace_environment());
        let _ = std::fs::remove_file(self.layout.observe_request());
        if self.plan.observe {
            self.start_observability().await?;
        }
        if self.plan.components.services
            && let (Some(postgres), Some(nats)) = (&backends.postgres, &backends.nats)
            && !backends.clusters.is_empty()
        {
            self.start_services(postgres, nats, &backends.clusters)
                .await?;
        }
        self.observe_services().await?;
        self.state_file.log_step(&format!(
            "everything is ready after {:.1} s",
            started.elapsed().as_secs_f32()
        ));
        Ok(())
    }

    /// Starts Postgres, NATS and the clusters, all at the same time.
    async fn start_backends(&mut self) -> Result<Backends, SuperviseError> {
        let postgres_port = self.ports.take()?;
        let nats_ports = (self.ports.take()?, self.ports.take()?);
        let Self {
            layout,
            plan,
            secrets,
            state_file,
            clusters,
            nats,
            postgres,
            ..
        } = self;
        let components = plan.components;
        let (postgres, nats, clusters) = tokio::try_join!(
            async {
                if !components.postgres {
                    return Ok(None);
                }
                components::postgres(layout, plan, secrets, postgres, postgres_port)
                    .await
                    .map(Some)
            },
            async {
                if !components.nats {
                    return Ok(None);
                }
                components::nats(layout, plan, secrets, nats, nats_ports)
                    .await
                    .map(Some)
            },
            start_clusters(layout, plan, state_file, clusters),
        )?;
        Ok(Backends {
            postgres: postgres.map(|postgres| postgres.endpoint),
            nats: nats.map(|nats| nats.endpoint),
            clusters,
        })
    }

    async fn start_services(
        &mut self,
        postgres: &PostgresEndpoint,
        nats: &NatsEndpoint,
        clusters: &[Cluster],
    ) -> Result<(), SuperviseError> {
        let write = |file: &Path, content: &str| {
            private_file::write(file, content.as_bytes()).map_err(|source| {
                SuperviseError::Directory {
                    path: file.display().to_string(),
                    source,
                }
            })
        };
        let file = self.layout.clusters();
        write(&file, &services::clusters_file(clusters))?;
        // Boxes that no test asked for would disturb it.
        let pools = (!self.plan.is_test()).then(|| self.layout.pools());
        if let Some(pools) = &pools {
            write(pools, &services::pools_file())?;
        }
        let admin_password = self.layout.admin_password();
        write(&admin_password, &self.secrets.admin_password)?;
        let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let port = match self.plan.port {
            // Checked again, because building images may have taken minutes since the first check.
            Some(port) => {
                require_free(self.plan.host, port)?;
                port
            }
            None => self.ports.take()?,
        };
        let shared = SocketAddr::new(self.plan.host, port);
        let mut gateway = GatewayEndpoint {
            url: url_of(shared),
            replica_urls: Vec::new(),
        };
        let mut started = Vec::new();
        for (service, index) in services::all(self.plan.replicas) {
            let admin = local(self.ports.take()?);
            let listen = match service {
                "api-gateway" => Some([shared, local(self.ports.take()?)]),
                _ => None,
            };
            if let Some([_, own]) = listen {
                gateway.replica_urls.push(url_of(own));
            }
            let replica = Replica {
                service,
                index,
                admin,
                listen,
            };
            let env = ServiceEnv {
                plan: &self.plan,
                secrets: &self.secrets,
                postgres,
                nats,
                clusters: &file,
                pools: pools.as_deref(),
                admin_password: &admin_password,
            };
            let name = replica.name();
            let spec = replica.process_spec(&env, &self.layout)?;
            self.services.supervise(spec, Some(url_of(admin)));
            started.push((name, url_of(admin)));
        }
        self.state_file
            .update(|state| state.gateway = Some(gateway));
        let http = reqwest::Client::new();
        for (name, admin) in started {
            self.services
                .wait_ready(&name, Duration::from_secs(60), || {
                    probe(&http, format!("{admin}/health/ready"))
                })
                .await?;
            self.state_file.log_step(&format!("{name} is ready"));
        }
        Ok(())
    }

    /// Stops everything, from the outside in. `phase` is the last phase in the state file.
    async fn shut_down(mut self, phase: Phase) {
        self.state_file
            .update(|state| state.phase = Phase::Stopping);
        self.services.stop().await;
        join_all(self.clusters.iter_mut().map(SupervisedCluster::stop)).await;
        tokio::join!(self.nats.stop(), self.postgres.stop());
        self.observability.stop().await;
        cleanup::unmount_postgres(&self.state_file.deployment());
        if self.plan.is_test() {
            for directory in [self.layout.postgres(), self.layout.nats()] {
                let _ = std::fs::remove_dir_all(directory);
            }
        }
        self.state_file.log_step("everything is stopped");
        let failed = matches!(phase, Phase::Failed { .. });
        self.state_file.update(|state| state.phase = phase);
        // Components that are shared by the tests of a program stop after the program has exited, so
        // the program cannot remove their directory.
        if self.plan.is_test() && !failed && !self.layout.keep_marker().exists() {
            let _ = std::fs::remove_dir_all(self.layout.directory());
        }
    }
}

/// Starts the clusters of the plan and joins the existing one.
async fn start_clusters(
    layout: &Layout,
    plan: &Plan,
    state_file: &StateFile,
    clusters: &mut [SupervisedCluster],
) -> Result<Vec<Cluster>, SuperviseError> {
    let mut running = Vec::new();
    if !clusters.is_empty() {
        let images = components::images(state_file).await?;
        let starts = clusters
            .iter_mut()
            .map(|cluster| cluster.start(layout, plan, &images));
        running = try_join_all(starts).await?;
    }
    if let Some(cluster) = &plan.existing {
        let kubernetes = existing::join(cluster, &state_file.deployment()).await?;
        let name = Runtime::Kubernetes.cluster_name(plan.cluster_count());
        running.push(Cluster::new(name, Endpoint::Kubernetes { kubernetes }));
    }
    Ok(running)
}
