//! The system to measure: the one that the environment names, or one started for it.

use std::path::PathBuf;

use agentbox_client::Client;
use agentbox_local::{Options, System};
use anyhow::Context as _;

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
    /// The containerd behind it.
    pub containerd: Option<PathBuf>,
    url: String,
    system: Option<System>,
}

impl Target {
    /// # Errors
    /// When it cannot be started, or nobody can log in.
    pub async fn find() -> anyhow::Result<Self> {
        let value = |name: &str| std::env::var(name).ok();
        let Some(url) = value("AGENTBOX_URL") else {
            return Self::start().await;
        };
        let of = |name| value(name).with_context(|| format!("{name} is not set"));
        let (username, password) = (
            of("AGENTBOX_ADMIN_USERNAME")?,
            of("AGENTBOX_ADMIN_PASSWORD")?,
        );
        Ok(Self {
            client: log_in(&url, &username, &password).await?,
            containerd: value("AGENTBOX_CONTAINERD_SOCKET").map(PathBuf::from),
            url,
            system: None,
        })
    }

    async fn start() -> anyhow::Result<Self> {
        let mut options = Options::default().durable();
        for limit in LIMITS {
            options = options.env("api-gateway", limit, NO_LIMIT);
        }
        let system = System::start(options).await?;
        let url = system.url().to_owned();
        Ok(Self {
            client: log_in(&url, &system.admin.username, &system.admin.password).await?,
            containerd: system.containerd.as_ref().map(|found| found.socket.clone()),
            url,
            system: Some(system),
        })
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

async fn log_in(url: &str, username: &str, password: &str) -> anyhow::Result<Client> {
    let (client, _) = Client::new(url)?
        .login(username, password)
        .await
        .context("logging in")?;
    Ok(client)
}
