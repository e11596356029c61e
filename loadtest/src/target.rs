//! The system to measure: the one that environment variables select, or a new one.

use std::path::{Path, PathBuf};

use agentbox_client::Client;
use agentbox_testing::{Options, Runtime, System, build_kubernetes};
use anyhow::Context as _;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::http::Http;
use crate::raw;

/// The variable that selects a running system.
const URL_VARIABLE: &str = "AGENTBOX_URL";
/// The gateway's limits of one user and of one network, which are raised: here both are the load of many.
pub const LIMITS: [&str; 9] = [
    "AGENTBOX_RATE_LIMIT_AUTH",
    "AGENTBOX_RATE_LIMIT_CREATE",
    "AGENTBOX_RATE_LIMIT_EXEC",
    "AGENTBOX_RATE_LIMIT_OTHER",
    "AGENTBOX_FLOOD_PER_SECOND",
    "AGENTBOX_FLOOD_BURST",
    "AGENTBOX_MAX_SESSIONS_PER_USER",
    "AGENTBOX_MAX_CONNECTIONS_PER_NETWORK",
    "AGENTBOX_MAX_UNAUTHENTICATED_CONNECTIONS_PER_NETWORK",
];
/// The exec-proxy's limit of sessions, which the followers and the writer of `fan-out` exceed.
const SESSIONS_PER_BOX: &str = "AGENTBOX_MAX_SESSIONS_PER_BOX";
pub const NO_LIMIT: &str = "1000000";
/// Longer than any scenario: a token that expires would end it.
const TOKEN_TTL_S: &str = "86400";

/// What to start.
#[derive(Clone, Debug)]
pub struct Setup {
    pub runtime: Runtime,
    /// The number of replicas of each service.
    pub replicas: usize,
    /// The directory of the programs of another build; `None`: this build's.
    pub programs: Option<PathBuf>,
}

/// Whether a new system is started for the measurement.
pub fn is_new_system() -> bool {
    std::env::var_os(URL_VARIABLE).is_none()
}

/// The clients of a logged-in user. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Api {
    /// For streams: events, output, terminals, files.
    pub client: Client,
    /// For requests with one answer.
    pub http: Http,
    /// The body of the user's login.
    pub login: Value,
}

pub struct Target {
    pub api: Api,
    pub runtime: Runtime,
    /// containerd's socket or the kubeconfig of the Kubernetes, if it is known.
    pub runtime_path: Option<PathBuf>,
    url: String,
    system: Option<System>,
}

impl Target {
    /// Selects the running system of the variables, or starts a new one.
    ///
    /// # Errors
    /// When a new system cannot be started, or the login fails.
    pub async fn find(setup: &Setup) -> anyhow::Result<Self> {
        let runtime = setup.runtime;
        let value = |name: &str| std::env::var(name).ok();
        let Some(url) = value(URL_VARIABLE) else {
            return Self::start(setup).await;
        };
        let required = |name| value(name).with_context(|| format!("{name} is not set"));
        let (username, password) = (
            required("AGENTBOX_ADMIN_USERNAME")?,
            required("AGENTBOX_ADMIN_PASSWORD")?,
        );
        Ok(Self {
            api: log_in(&url, &username, &password).await?,
            runtime,
            runtime_path: value(runtime_variable(runtime)).map(PathBuf::from),
            url,
            system: None,
        })
    }

    async fn start(setup: &Setup) -> anyhow::Result<Self> {
        let runtime = setup.runtime;
        if runtime == Runtime::Kubernetes {
            println!("building the programs of a Kubernetes that are not in the cache");
            build_kubernetes().await?;
        }
        let mut options = Options::components(runtime.components())
            .durable()
            .network_bandwidth("none")
            .replicas(setup.replicas)
            .env("auth", "AGENTBOX_TOKEN_TTL", TOKEN_TTL_S);
        if let Some(programs) = &setup.programs {
            options = options.programs(programs.clone());
        }
        for limit in LIMITS {
            options = options.env("api-gateway", limit, NO_LIMIT);
        }
        options = options.env("exec-proxy", SESSIONS_PER_BOX, NO_LIMIT);
        for resource in ["ENVIRONMENTS", "CPU", "MEMORY", "STORAGE"] {
            options = options.env("scheduler", &format!("AGENTBOX_QUOTA_{resource}"), "0");
        }
        let system = System::start(options).await?;
        let url = system.url().to_owned();
        Ok(Self {
            api: log_in(&url, &system.admin.username, &system.admin.password).await?,
            runtime,
            runtime_path: match runtime {
                Runtime::Containerd => system
                    .containerd
                    .as_ref()
                    .map(|containerd| containerd.socket.clone()),
                Runtime::Kubernetes => system
                    .kubernetes
                    .as_ref()
                    .map(|kubernetes| kubernetes.kubeconfig.clone()),
            },
            url,
            system: Some(system),
        })
    }

    /// The system that was started for this measurement.
    ///
    /// # Errors
    /// When a running one is measured.
    pub fn require_new_system(&self) -> anyhow::Result<&System> {
        let system = self.system.as_ref();
        system.with_context(|| format!("needs a new system: unset {URL_VARIABLE}"))
    }

    /// The target's containerd, if its socket is known.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn cri(&self) -> anyhow::Result<Option<RuntimeServiceClient<Channel>>> {
        let socket = self.runtime_path.as_deref();
        match socket.filter(|_| self.runtime == Runtime::Containerd) {
            Some(socket) => cri(socket).await.map(Some),
            None => Ok(None),
        }
    }

    pub fn describe(&self) -> String {
        match self.system {
            Some(_) => {
                "a new system: no rate limits, no bound of the boxes' bandwidth on containerd, durable \
                 writes as with `make up`"
                    .to_owned()
            }
            None => format!("the running system at {}", self.url),
        }
    }

    pub async fn stop(self) {
        if let Some(system) = self.system {
            system.stop().await;
        }
    }
}

/// The variable with the path of the runtime of a system that already runs.
pub const fn runtime_variable(runtime: Runtime) -> &'static str {
    match runtime {
        Runtime::Containerd => "AGENTBOX_CONTAINERD_SOCKET",
        Runtime::Kubernetes => "AGENTBOX_KUBECONFIG",
    }
}

async fn cri(socket: &Path) -> anyhow::Result<RuntimeServiceClient<Channel>> {
    let channel = raw::containerd_channel(socket).await?;
    Ok(RuntimeServiceClient::new(channel))
}

async fn log_in(url: &str, username: &str, password: &str) -> anyhow::Result<Api> {
    let (client, login) = Client::new(url)?
        .login(username, password)
        .await
        .context("logging in")?;
    Ok(Api {
        client,
        http: Http::new(url, Some(&login.token))?,
        login: json!({ "username": username, "password": password }),
    })
}
