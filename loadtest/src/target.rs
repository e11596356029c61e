//! The system to measure: the one that environment variables select, or a new one.

use std::path::PathBuf;

use agentbox_client::Client;
use agentbox_testing::{Options, Runtime, System, build_kubernetes};
use anyhow::Context as _;

/// The gateway's rate limits, which are raised for the measurement.
pub const LIMITS: [&str; 6] = [
    "AGENTBOX_RATE_LIMIT_AUTH",
    "AGENTBOX_RATE_LIMIT_CREATE",
    "AGENTBOX_RATE_LIMIT_EXEC",
    "AGENTBOX_RATE_LIMIT_OTHER",
    "AGENTBOX_FLOOD_PER_SECOND",
    "AGENTBOX_FLOOD_BURST",
];
pub const NO_LIMIT: &str = "1000000";

pub struct Target {
    pub client: Client,
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
    pub async fn find(runtime: Runtime) -> anyhow::Result<Self> {
        let value = |name: &str| std::env::var(name).ok();
        let Some(url) = value("AGENTBOX_URL") else {
            return Self::start(runtime).await;
        };
        let required = |name| value(name).with_context(|| format!("{name} is not set"));
        let (username, password) = (
            required("AGENTBOX_ADMIN_USERNAME")?,
            required("AGENTBOX_ADMIN_PASSWORD")?,
        );
        Ok(Self {
            client: log_in(&url, &username, &password).await?,
            runtime,
            runtime_path: value(runtime_variable(runtime)).map(PathBuf::from),
            url,
            system: None,
        })
    }

    async fn start(runtime: Runtime) -> anyhow::Result<Self> {
        if runtime == Runtime::Kubernetes {
            println!("building the programs of a Kubernetes that are not in the cache");
            build_kubernetes().await?;
        }
        let mut options = Options::components(runtime.components())
            .durable()
            .network_bandwidth("none");
        for limit in LIMITS {
            options = options.env("api-gateway", limit, NO_LIMIT);
        }
        for resource in ["CPU", "MEMORY", "STORAGE"] {
            options = options.env("scheduler", &format!("AGENTBOX_QUOTA_{resource}"), "0");
        }
        let system = System::start(options).await?;
        let url = system.url().to_owned();
        Ok(Self {
            client: log_in(&url, &system.admin.username, &system.admin.password).await?,
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

    /// The system that was started for this measurement; `None` for a running one.
    pub fn new_system(&self) -> Option<&System> {
        self.system.as_ref()
    }

    pub fn describe(&self) -> String {
        match self.system {
            Some(_) => {
                "a new system: one replica of each service, no rate limits, no bound of the \
                        boxes' bandwidth on containerd, durable writes as with `make up`"
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

async fn log_in(url: &str, username: &str, password: &str) -> anyhow::Result<Client> {
    let (client, _) = Client::new(url)?
        .login(username, password)
        .await
        .context("logging in")?;
    Ok(client)
}
