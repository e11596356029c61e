//! The runtime's own cost: a box made by the cluster's own API, without AgentBox.

mod containerd;
mod kubernetes;

use std::path::Path;
use std::time::Duration;

use agentbox_testing::Runtime;
use async_trait::async_trait;

use containerd::Containerd;
use kubernetes::Kubernetes;

const WITHIN: Duration = Duration::from_secs(60);
const CONTAINER: &str = "main";

/// What the two steps are called in a report.
pub struct Names {
    pub create: &'static str,
    pub exec: &'static str,
}

/// A box made without AgentBox: its Pod, and the container in it.
pub struct RawBox {
    pod: String,
    container: String,
}

/// A cluster, asked as its own clients ask it. Every call ends within a minute.
#[async_trait]
pub trait Raw: Send + Sync {
    fn names(&self) -> Names;

    /// A box that runs, and how long that took.
    async fn create(&self, name: &str) -> anyhow::Result<(RawBox, Duration)>;

    /// `true` in it: how long it took.
    async fn exec(&self, raw: &RawBox) -> anyhow::Result<Duration>;

    /// Until nothing is left; says when something may be.
    async fn remove(&self, raw: RawBox);

    /// Waits for what the cluster still does behind an end that has been told, so that the
    /// next sample does not bear it.
    async fn settle(&self) {}
}

/// Of containerd's socket or a Kubernetes' kubeconfig.
///
/// # Errors
/// When it is not there.
pub async fn connect(runtime: Runtime, place: &Path) -> anyhow::Result<Box<dyn Raw>> {
    Ok(match runtime {
        Runtime::Containerd => Box::new(Containerd::connect(place).await?),
        Runtime::Kubernetes => Box::new(Kubernetes::connect(place).await?),
    })
}
