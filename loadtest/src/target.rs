//! The system to measure: the one that the environment names, or one started for it.

use std::path::PathBuf;

use agentbox_client::Client;
use agentbox_testing::{Options, Runtime, System, build_kubernetes};
use anyhow::Context as _;

use crate::raw::{self, Raw};

/// The gateway's limits on requests, which must be out of the way.
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
    /// Where the runtime behind it is: containerd's socket, a Kubernetes' kubeconfig.
    place: Option<PathBuf>,
    url: String,
    system: Option<System>,
}

impl Target {
    /// # Errors
    /// When it cannot be started, or nobody can log in.
    pub async fn find(runtime: Runtime) -> anyhow::Result<Self> {
        let value = |name: &str| std::env::var(name).ok();
        let Some(url) = value("AGENTBOX_URL") else {
            return Self::start(runtime).await;
        };
        let of = |name| value(name).with_context(|| format!("{name} is not set"));
        let (username, password) = (
            of("AGENTBOX_ADMIN_USERNAME")?,
            of("AGENTBOX_ADMIN_PASSWORD")?,
        );
        Ok(Self {
            client: log_in(&url, &username, &password).await?,
            runtime,
            place: value(variable_of(runtime)).map(PathBuf::from),
            url,
            system: None,
        })
    }

    async fn start(runtime: Runtime) -> anyhow::Result<Self> {
        if runtime == Runtime::Kubernetes {
            println!("building the programs of a Kubernetes that are not in the cache");
            build_kubernetes().await?;
        }
        let mut options = Options::components(runtime.components()).durable();
        for limit in LIMITS {
            options = options.env("api-gateway", limit, NO_LIMIT);
        }
        let system = System::start(options).await?;
        let url = system.url().to_owned();
        Ok(Self {
            client: log_in(&url, &system.admin.username, &system.admin.password).await?,
            runtime,
            place: match runtime {
                Runtime::Containerd => system.containerd.as_ref().map(|it| it.socket.clone()),
                Runtime::Kubernetes => system.kubernetes.as_ref().map(|it| it.kubeconfig.clone()),
            },
            url,
            system: Some(system),
        })
    }

    /// The runtime alone, when it is known where it is.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn raw(&self) -> anyhow::Result<Option<Box<dyn Raw>>> {
        let Some(place) = &self.place else {
            let variable = variable_of(self.runtime);
            println!("the runtime alone is not measured: {variable} is not set");
            return Ok(None);
        };
        raw::connect(self.runtime, place).await.map(Some)
    }

    /// The system that was started for this.
    pub fn own(&self) -> Option<&System> {
        self.system.as_ref()
    }

    pub fn describe(&self) -> String {
        match self.system {
            Some(_) => "a system started for this: one replica of each service, no rate \
                        limits, disk writes as safe as those of `make up`"
                .to_owned(),
            None => format!("{}, as it is", self.url),
        }
    }

    pub async fn stop(self) {
        if let Some(system) = self.system {
            system.stop().await;
        }
    }
}

/// Says where the runtime of a system that runs already is.
const fn variable_of(runtime: Runtime) -> &'static str {
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
