//! A whole system, or some of its components, for one test.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::Deserialize;

use crate::cluster::Cluster;
use crate::endpoint::containerd::ContainerdEndpoint;
use crate::endpoint::gateway::GatewayEndpoint;
use crate::endpoint::kubernetes::{ExistingKubernetes, KubernetesEndpoint};
use crate::endpoint::nats::NatsEndpoint;
use crate::endpoint::observability::ObservabilityEndpoint;
use crate::endpoint::postgres::PostgresEndpoint;
use crate::instance::{Instance, StartError};
use crate::paths::{bin_dir, boxd, boxd_beside};
use crate::plan::{Components, Plan};
use crate::state::State;

/// The components to start, and their configuration.
#[derive(Clone, Debug)]
pub struct Options {
    pub components: Components,
    existing: Option<ExistingKubernetes>,
    /// The number of replicas of each service.
    pub replicas: usize,
    durable: bool,
    network_bandwidth: Option<String>,
    nats_tls: bool,
    observe: bool,
    /// The directory of the programs to start, with boxd in the same target directory; `None`: this
    /// build's.
    programs: Option<PathBuf>,
    /// Variables by service (`auth`; `*` for every service): name and value.
    environment: BTreeMap<String, BTreeMap<String, String>>,
}

impl Default for Options {
    /// Everything, with one replica of each service.
    fn default() -> Self {
        Self {
            components: Components::ALL,
            existing: None,
            replicas: 1,
            durable: false,
            network_bandwidth: None,
            nats_tls: false,
            observe: false,
            programs: None,
            environment: BTreeMap::new(),
        }
    }
}

impl Options {
    /// Some components only, for the tests of a crate below the services.
    #[must_use]
    pub fn components(components: Components) -> Self {
        Self {
            components,
            ..Self::default()
        }
    }

    /// Adds a Kubernetes that already runs to the clusters of the components.
    #[must_use]
    pub fn on(mut self, existing: ExistingKubernetes) -> Self {
        self.existing = Some(existing);
        self
    }

    #[must_use]
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// Makes acknowledged writes survive a power failure, as `make up` does. That costs time.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// Starts a trace collector, Jaeger, Prometheus and the canary too. The first use builds them, which
    /// takes minutes; `agentbox-local prepare --observe` does so before.
    #[must_use]
    pub fn observed(mut self) -> Self {
        self.observe = true;
        self
    }

    /// Sets how much a box on containerd may send and receive.
    #[must_use]
    pub fn network_bandwidth(mut self, bandwidth: &str) -> Self {
        self.network_bandwidth = Some(bandwidth.to_owned());
        self
    }

    /// Encrypts the connections to NATS.
    #[must_use]
    pub fn nats_tls(mut self) -> Self {
        self.nats_tls = true;
        self
    }

    /// Starts the programs of another build, such as an older commit's.
    #[must_use]
    pub fn programs(mut self, bin_dir: PathBuf) -> Self {
        self.programs = Some(bin_dir);
        self
    }

    /// Raises the gateway's rate limits for tests that do not test them.
    #[must_use]
    pub fn without_rate_limits(self) -> Self {
        ["AUTH", "FAILED_LOGIN", "CREATE", "EXEC", "FILES", "OTHER"]
            .iter()
            .fold(self, |options, category| {
                let name = format!("AGENTBOX_RATE_LIMIT_{category}");
                options.env("api-gateway", &name, "1000000")
            })
    }

    /// Sets a variable in the environment of one service, of every service with `*`, or of the
    /// `registry-proxy` of a containerd.
    #[must_use]
    pub fn env(mut self, service: &str, name: &str, value: impl Into<String>) -> Self {
        self.environment
            .entry(service.to_owned())
            .or_default()
            .insert(name.to_owned(), value.into());
        self
    }
}

/// The bootstrap administrator.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Admin {
    #[serde(rename = "admin_username")]
    pub username: String,
    #[serde(rename = "admin_password")]
    pub password: String,
}

impl Admin {
    /// The administrator of an instance, from its `secrets.json`.
    fn read(path: &Path) -> Result<Self, String> {
        let secrets = std::fs::read(path).map_err(|error| error.to_string())?;
        serde_json::from_slice(&secrets).map_err(|error| error.to_string())
    }
}

/// A running system or some of its components. It ends when this value is dropped, and when this
/// process ends in any way.
#[derive(Debug)]
pub struct System {
    instance: Instance,
    pub admin: Admin,
    /// The components that were not requested are `None` here.
    pub postgres: Option<PostgresEndpoint>,
    pub nats: Option<NatsEndpoint>,
    pub containerd: Option<ContainerdEndpoint>,
    pub kubernetes: Option<KubernetesEndpoint>,
    pub gateway: Option<GatewayEndpoint>,
}

impl System {
    /// Starts the components and waits until all of them are ready.
    ///
    /// # Errors
    /// In one line, with the directory of the logs; everything is stopped again by then.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let (bin_dir, boxd) = match options.programs {
            Some(directory) => {
                let boxd = boxd_beside(&directory);
                (directory, boxd)
            }
            None => (bin_dir(), boxd()),
        };
        let plan = Plan {
            deployment: None,
            components: options.components,
            existing: options.existing,
            replicas: options.replicas.max(1),
            durable: options.durable,
            network_bandwidth: options.network_bandwidth,
            nats_tls: options.nats_tls,
            observe: options.observe,
            bin_dir,
            boxd,
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: None,
            environment: options.environment,
        };
        let instance = Instance::start(&plan).await?;
        let failed = |message: String| StartError::Failed {
            message,
            logs: instance.layout().logs(),
        };
        let admin = Admin::read(&instance.layout().secrets())
            .map_err(|error| failed(format!("cannot read the administrator: {error}")))?;
        let state = instance
            .state()
            .ok_or_else(|| failed("the state file is missing".to_owned()))?;
        Ok(Self {
            admin,
            postgres: state.postgres,
            nats: state.nats,
            containerd: state.clusters.iter().find_map(Cluster::containerd).cloned(),
            kubernetes: state.clusters.iter().find_map(Cluster::kubernetes).cloned(),
            gateway: state.gateway,
            instance,
        })
    }

    /// The public URL that all gateways share; empty without services.
    #[must_use]
    pub fn url(&self) -> &str {
        self.gateway
            .as_ref()
            .map_or("", |gateway| gateway.url.as_str())
    }

    /// Where traces and metrics are found; `None` if the system is not observed.
    #[must_use]
    pub fn observability(&self) -> Option<ObservabilityEndpoint> {
        self.state()?.observability
    }

    /// The directory with a log file for each program: `auth-0.log`, `nats.log`.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.instance.layout().logs()
    }

    /// The instance's directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.instance.layout().directory()
    }

    /// The clusters file that scheduler and exec-proxy read.
    #[must_use]
    pub fn clusters_file(&self) -> PathBuf {
        self.instance.layout().clusters()
    }

    fn state(&self) -> Option<State> {
        self.instance.state()
    }

    /// The pids of the running replicas by index. `nats`, `postgres` and `containerd` have one.
    #[must_use]
    pub fn pids(&self, service: &str) -> BTreeMap<usize, u32> {
        let processes = self
            .state()
            .map(|state| state.processes)
            .unwrap_or_default();
        processes
            .into_iter()
            .filter_map(|(name, process)| Some((index_of(&name, service)?, process.identity?.pid)))
            .collect()
    }

    /// Sends a signal to one replica; the supervisor restarts it when it exits. Returns whether
    /// the replica was running.
    pub fn signal(&self, service: &str, index: usize, signal: Signal) -> bool {
        let processes = self
            .state()
            .map(|state| state.processes)
            .unwrap_or_default();
        processes
            .iter()
            .find(|(name, _)| index_of(name, service) == Some(index))
            .and_then(|(_, process)| process.identity)
            .is_some_and(|identity| identity.signal(signal))
    }

    /// Sends SIGKILL to one replica; see [`Self::signal`].
    pub fn kill(&self, service: &str, index: usize) -> bool {
        self.signal(service, index, Signal::SIGKILL)
    }

    /// The admin URL of a replica, with `/metrics` and `/health/ready`.
    #[must_use]
    pub fn admin_url(&self, service: &str, index: usize) -> Option<String> {
        self.state()?
            .processes
            .get(&format!("{service}-{index}"))?
            .admin_url
            .clone()
    }

    /// Waits until every process is ready.
    ///
    /// # Errors
    /// After `within`, with the name of a process that is not ready, and the reason.
    pub async fn wait_ready(&self, within: Duration) -> Result<(), StartError> {
        let deadline = Instant::now() + within;
        let http = reqwest::Client::new();
        loop {
            let Some(last_step) = self.unready_process(&http).await else {
                return Ok(());
            };
            if Instant::now() > deadline {
                return Err(StartError::Deadline {
                    waited: within,
                    last_step,
                    logs: self.logs(),
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The first process that is not ready, and the reason.
    async fn unready_process(&self, http: &reqwest::Client) -> Option<String> {
        let Some(state) = self.state() else {
            return Some("the system is not running".to_owned());
        };
        for (name, process) in state.processes {
            if !process.identity.is_some_and(|identity| identity.is_alive()) {
                return Some(format!("{name} is not running"));
            }
            if let Some(admin) = process.admin_url
                && let Err(why) = check_ready(http, &admin).await
            {
                return Some(format!("{name}: {why}"));
            }
        }
        None
    }

    /// Stops the system and waits until nothing of it is left. Dropping it does the same, but
    /// blocks the thread.
    pub async fn stop(mut self) {
        self.instance.stop().await;
    }
}

/// Asks a service's admin port whether it is ready.
///
/// # Errors
/// The reason why it is not.
pub async fn check_ready(http: &reqwest::Client, admin_url: &str) -> Result<(), String> {
    let response = http
        .get(format!("{admin_url}/health/ready"))
        .timeout(Duration::from_secs(2))
        .send()
        .await
        .map_err(|_| "its admin port does not answer".to_owned())?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let body = response.text().await.unwrap_or_default();
    let body = body.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(format!(
        "{} {}",
        status.as_u16(),
        body.chars().take(120).collect::<String>()
    ))
}

/// The index of a replica by its process name: 1 for `auth-1`, 0 for `nats`.
fn index_of(name: &str, service: &str) -> Option<usize> {
    match name.strip_prefix(service)? {
        "" => Some(0),
        rest => rest.strip_prefix('-')?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_name_gives_the_index_of_its_service() {
        assert_eq!(index_of("api-gateway-2", "api-gateway"), Some(2));
        assert_eq!(index_of("nats", "nats"), Some(0));
        assert_eq!(index_of("auth-0", "api-gateway"), None);
        assert_eq!(index_of("exec-proxy-0", "exec"), None);
    }
}
