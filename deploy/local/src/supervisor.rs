//! The one process that owns an instance: starts its parts, restarts what dies, and
//! takes everything down.
//!
//! * I1. What it starts, it ends: on SIGTERM and SIGINT, when a part cannot be started,
//!   and, for a test, when its standard input ends, as it does however the test ends.
//! * I2. Teardown goes from the outside in: services, each cluster's boxes and then its
//!   programs, the stores; each step is bounded, and a step that fails does not keep the
//!   next.
//! * I3. `state.json` always says what it is doing.
//!
//! It is single-threaded: a child gets its orphan signal when the *thread* that started
//! it ends, so that must be the one that lives as long as the process.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use futures::future::{join_all, try_join_all};

use crate::cluster::{Cluster as RunningCluster, Endpoint, Runtime};
use crate::containerd::{ContainerdError, leftovers};
use crate::image::ImageError;
use crate::kubernetes::KubernetesError;
use crate::nats::{Nats, NatsError};
use crate::plan::{Layout, Plan};
use crate::ports::{PortError, Ports, require_free};
use crate::postgres::{Postgres, PostgresError};
use crate::secrets::{Secrets, SecretsError, write_private};
use crate::services::{self, BUILD_BOXD, NotBuilt, Replica, Surroundings};
use crate::state::{GatewayEndpoint, Phase, State};

mod board;
mod cluster;
mod kubernetes;
mod layer;
mod parts;
mod probe;
mod stop;

use board::Board;
use cluster::Cluster;
use layer::{Layer, NotReady};
use probe::{answers, url_of};
use stop::stop_request;

/// Why an instance could not be started. Each is one line for a person.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    #[error("cannot use {path}: {source}")]
    Directory {
        path: String,
        source: std::io::Error,
    },
    #[error("another supervisor runs in {0}")]
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
    Containerd(#[from] ContainerdError),
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    NotBuilt(#[from] NotBuilt),
    #[error(transparent)]
    NotReady(#[from] NotReady),
    #[error("it was told to stop")]
    Stopped,
}

struct Supervisor {
    layout: Layout,
    plan: Plan,
    secrets: Secrets,
    board: Board,
    ports: Ports,
    services: Layer,
    clusters: Vec<Cluster>,
    nats: Layer,
    postgres: Layer,
}

/// Runs an instance until it is told to stop. With `until_stdin_ends`, also until then.
///
/// # Errors
/// What kept it from starting; by then everything is down again.
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
    let stop = stop_request(until_stdin_ends).map_err(failed)?;
    let mut supervisor = Supervisor::new(layout.clone(), plan)?;
    let outcome = {
        tokio::pin!(stop);
        tokio::select! {
            started = supervisor.start() => match started {
                Ok(()) => {
                    supervisor.board.update(|state| state.phase = Phase::Ready);
                    stop.await;
                    Ok(())
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
    supervisor.tear_down(phase).await;
    outcome
}

impl Supervisor {
    fn new(layout: Layout, plan: Plan) -> Result<Self, SuperviseError> {
        let secrets = Secrets::load_or_generate(&layout.secrets())?;
        let instance = plan
            .deployment
            .clone()
            .unwrap_or_else(|| format!("test-{}", hex::encode(rand::random::<[u8; 4]>())));
        let board = Board::new(&layout, State::new(instance)).map_err(|source| {
            SuperviseError::Directory {
                path: layout.directory().display().to_string(),
                source,
            }
        })?;
        Ok(Self {
            ports: Ports::new()?,
            services: Layer::new(board.clone()),
            clusters: Cluster::all(&layout, &plan, &board)?,
            nats: Layer::new(board.clone()),
            postgres: Layer::new(board.clone()),
            layout,
            plan,
            secrets,
            board,
        })
    }

    async fn start(&mut self) -> Result<(), SuperviseError> {
        let begun = Instant::now();
        if let Some(port) = self.plan.port {
            require_free(self.plan.host, port)?;
        }
        let wanted = self.plan.parts;
        if wanted.services {
            let programs = self.plan.bin_dir.clone();
            for (service, _) in services::all(1) {
                services::require(
                    programs.join(format!("agentbox-{service}")),
                    services::BUILD_SERVICES,
                )?;
            }
            services::require(self.plan.boxd.clone(), BUILD_BOXD)?;
        }
        if self.plan.is_test() {
            crate::abandoned::remove().await;
        }
        for cluster in &self.clusters {
            cluster.clear().await?;
        }
        leftovers::release_postgres(&self.board.deployment());
        let postgres_port = self.ports.take()?;
        let nats_ports = (self.ports.take()?, self.ports.take()?);
        // Disjoint parts of self, started at the same time.
        let Self {
            layout,
            plan,
            secrets,
            board,
            clusters,
            nats,
            postgres,
            ..
        } = self;
        let (postgres, nats, clusters) = tokio::try_join!(
            async {
                match wanted.postgres {
                    true => parts::postgres(layout, plan, secrets, postgres, postgres_port)
                        .await
                        .map(Some),
                    false => Ok(None),
                }
            },
            async {
                match wanted.nats {
                    true => parts::nats(layout, plan, secrets, nats, nats_ports)
                        .await
                        .map(Some),
                    false => Ok(None),
                }
            },
            async {
                let mut running = Vec::new();
                if !clusters.is_empty() {
                    let images = parts::images(board).await?;
                    let starts = clusters
                        .iter_mut()
                        .map(|cluster| cluster.start(layout, plan, &images));
                    running = try_join_all(starts).await?;
                }
                if let Some(existing) = &plan.existing {
                    let kubernetes = existing.join(&board.deployment()).await?;
                    let name = Runtime::Kubernetes.name(plan.clusters());
                    running.push(RunningCluster::new(
                        name,
                        Endpoint::Kubernetes { kubernetes },
                    ));
                }
                Ok(running)
            },
        )?;
        board.update(|state| {
            state.postgres = postgres.as_ref().map(|postgres| postgres.endpoint.clone());
            state.nats = nats.as_ref().map(|nats| nats.endpoint.clone());
            state.clusters.clone_from(&clusters);
        });
        if let (true, Some(postgres), Some(nats)) = (wanted.services, postgres, nats)
            && !clusters.is_empty()
        {
            self.start_services(&postgres, &nats, &clusters).await?;
        }
        self.board.say(&format!(
            "all is ready after {:.1} s",
            begun.elapsed().as_secs_f32()
        ));
        Ok(())
    }

    async fn start_services(
        &mut self,
        postgres: &Postgres,
        nats: &Nats,
        clusters: &[RunningCluster],
    ) -> Result<(), SuperviseError> {
        let file = self.layout.clusters();
        write_private(&file, services::clusters(clusters).as_bytes()).map_err(|source| {
            SuperviseError::Directory {
                path: file.display().to_string(),
                source,
            }
        })?;
        let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        let port = match self.plan.port {
            // Images may have been built since it was looked at.
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
        let mut names = Vec::new();
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
            let around = Surroundings {
                plan: &self.plan,
                secrets: &self.secrets,
                postgres: &postgres.endpoint,
                nats: &nats.endpoint,
                clusters: &file,
            };
            let name = replica.name();
            let launch = replica.launch(&around, self.layout.log(&name))?;
            self.services.keep(launch, Some(url_of(admin)));
            names.push((name, url_of(admin)));
        }
        self.board.update(|state| state.gateway = Some(gateway));
        let http = reqwest::Client::new();
        for (name, admin) in names {
            self.services
                .until_ready(&name, Duration::from_secs(60), || {
                    answers(&http, format!("{admin}/health/ready"))
                })
                .await?;
            self.board.say(&format!("{name} is ready"));
        }
        Ok(())
    }

    /// Ends everything, outermost first. `phase` is what is left to read.
    async fn tear_down(mut self, phase: Phase) {
        self.board.update(|state| state.phase = Phase::Stopping);
        self.services.end().await;
        join_all(self.clusters.iter_mut().map(Cluster::end)).await;
        tokio::join!(self.nats.end(), self.postgres.end());
        leftovers::release_postgres(&self.board.deployment());
        if self.plan.is_test() {
            for directory in [self.layout.postgres(), self.layout.nats()] {
                let _ = std::fs::remove_dir_all(directory);
            }
        }
        self.board.say("all is down");
        let failed = matches!(phase, Phase::Failed { .. });
        self.board.update(|state| state.phase = phase);
        // Nobody may be left to do it: a test program's shared parts end after it.
        if self.plan.is_test() && !failed && !self.layout.keep_marker().exists() {
            let _ = std::fs::remove_dir_all(self.layout.directory());
        }
    }
}
