//! The whole system for one test, and what a test may ask of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::cluster::Cluster;
use crate::containerd::ContainerdEndpoint;
use crate::instance::{Instance, StartError, bin_dir, boxd};
use crate::kubernetes::KubernetesEndpoint;
use crate::kubernetes::existing::ExistingKubernetes;
use crate::nats::NatsEndpoint;
use crate::plan::{Parts, Plan};
use crate::postgres::PostgresEndpoint;
use crate::secrets::Secrets;
use crate::state::{GatewayEndpoint, State};

/// What is started, and how.
#[derive(Clone, Debug)]
pub struct Options {
    pub parts: Parts,
    existing: Option<ExistingKubernetes>,
    /// Of each service.
    pub replicas: usize,
    durable: bool,
    /// Environment by service (`auth`; `*` for each): name and value.
    environment: BTreeMap<String, BTreeMap<String, String>>,
}

impl Default for Options {
    /// Everything, one replica of each service.
    fn default() -> Self {
        Self {
            parts: Parts::ALL,
            existing: None,
            replicas: 1,
            durable: false,
            environment: BTreeMap::new(),
        }
    }
}

impl Options {
    /// Some parts only, for the tests of a crate below the services.
    #[must_use]
    pub fn parts(parts: Parts) -> Self {
        Self {
            parts,
            ..Self::default()
        }
    }

    /// With boxes on a Kubernetes that is there, beside the clusters of the parts.
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

    /// Writes to disk as safely as `make up` does, which costs time. Tests need not.
    #[must_use]
    pub fn durable(mut self) -> Self {
        self.durable = true;
        self
    }

    /// Without the gateway's limits on requests a minute, for tests that are not about them.
    #[must_use]
    pub fn without_rate_limits(self) -> Self {
        ["AUTH", "CREATE", "EXEC", "OTHER"]
            .iter()
            .fold(self, |options, category| {
                let name = format!("AGENTBOX_RATE_LIMIT_{category}");
                options.env("api-gateway", &name, "1000000")
            })
    }

    /// Sets a variable of one service's environment; of every service's for `*`.
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub username: String,
    pub password: String,
}

/// A running system, or the parts that were asked for. Ends with this value, and with
/// this process however that ends.
#[derive(Debug)]
pub struct System {
    instance: Instance,
    pub admin: Admin,
    /// The parts that were not asked for are `None` here.
    pub postgres: Option<PostgresEndpoint>,
    pub nats: Option<NatsEndpoint>,
    pub containerd: Option<ContainerdEndpoint>,
    pub kubernetes: Option<KubernetesEndpoint>,
    pub gateway: Option<GatewayEndpoint>,
}

impl System {
    /// Starts it and waits until every part is ready.
    ///
    /// # Errors
    /// In one line, with the place of the logs; everything is down again by then.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        let plan = Plan {
            deployment: None,
            parts: options.parts,
            existing: options.existing,
            replicas: options.replicas.max(1),
            durable: options.durable,
            bin_dir: bin_dir(),
            boxd: boxd(),
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: None,
            environment: options.environment,
        };
        let instance = Instance::start(&plan).await?;
        let failed = |message: String| StartError::Failed {
            message,
            logs: instance.layout().logs(),
        };
        let secrets = Secrets::load_or_generate(&instance.layout().secrets())
            .map_err(|error| failed(error.to_string()))?;
        let state = instance
            .state()
            .ok_or_else(|| failed("its state is gone".to_owned()))?;
        Ok(Self {
            admin: Admin {
                username: secrets.admin_username,
                password: secrets.admin_password,
            },
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

    /// One log file for each program: `auth-0.log`, `nats.log`.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.instance.layout().logs()
    }

    /// The instance's own directory.
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

    /// The replicas that run now, by index. `nats`, `postgres` and `containerd` have one.
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

    /// Sends a signal to one replica; the supervisor restarts it when it ends by that.
    /// Whether there was one to send it to.
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

    /// SIGKILL to one replica. Whether there was one; see [`Self::signal`].
    pub fn kill(&self, service: &str, index: usize) -> bool {
        self.signal(service, index, Signal::SIGKILL)
    }

    /// The admin URL of a replica, on which `/metrics` and `/health/ready` are.
    #[must_use]
    pub fn admin_url(&self, service: &str, index: usize) -> Option<String> {
        self.state()?
            .processes
            .get(&format!("{service}-{index}"))?
            .admin_url
            .clone()
    }

    /// Waits until every service is (again) ready.
    ///
    /// # Errors
    /// After `within`, with who is not, and why.
    pub async fn wait_ready(&self, within: Duration) -> Result<(), StartError> {
        let deadline = Instant::now() + within;
        let http = reqwest::Client::new();
        loop {
            let missing = self.not_ready(&http).await;
            let Some(last_step) = missing else {
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

    /// The first that is not ready.
    async fn not_ready(&self, http: &reqwest::Client) -> Option<String> {
        let Some(state) = self.state() else {
            return Some("it is not running".to_owned());
        };
        for (name, process) in state.processes {
            if !process.identity.is_some_and(|identity| identity.is_alive()) {
                return Some(format!("{name} is not running"));
            }
            if let Some(admin) = process.admin_url
                && let Err(why) = crate::status::ask(http, &admin).await
            {
                return Some(format!("{name}: {why}"));
            }
        }
        None
    }

    /// Takes it down and waits until nothing is left of it; dropping does the same, but
    /// blocks the thread.
    pub async fn stop(mut self) {
        self.instance.stop().await;
    }
}

/// `auth-1` is replica 1 of `auth`; `nats` is number 0 of itself.
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
    fn a_process_name_gives_its_service_and_index() {
        assert_eq!(index_of("api-gateway-2", "api-gateway"), Some(2));
        assert_eq!(index_of("nats", "nats"), Some(0));
        assert_eq!(index_of("auth-0", "api-gateway"), None);
        assert_eq!(index_of("exec-proxy-0", "exec"), None);
    }
}
