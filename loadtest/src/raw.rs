//! The cost of the runtime alone: boxes created by the cluster's API, without AgentBox.

mod containerd;
mod kubernetes;

use std::path::Path;
use std::time::Duration;

use agentbox_testing::Runtime;
use async_trait::async_trait;

use containerd::Containerd;
pub use containerd::channel as containerd_channel;
use kubernetes::Kubernetes;

/// The image of all boxes.
pub const IMAGE: &str = "busybox";
const DEADLINE: Duration = Duration::from_secs(60);
const CONTAINER: &str = "main";

/// The names of the two steps in a report.
pub struct Names {
    pub create: &'static str,
    pub exec: &'static str,
}

/// A box created without AgentBox: its Pod, and the container in it.
pub struct RawBox {
    pod: String,
    container: String,
}

/// A client of a cluster's own API. Every call ends within a minute.
#[async_trait]
pub trait Raw: Send + Sync {
    fn names(&self) -> Names;

    /// Creates a box with this number of CPUs; gives it and the time until it runs.
    async fn create(&self, name: &str, cpus: u32) -> anyhow::Result<(RawBox, Duration)>;

    /// Runs `true` in a box; gives the time.
    async fn exec(&self, raw: &RawBox) -> anyhow::Result<Duration>;

    /// Removes a box and waits until nothing is left of it. Prints a failure.
    async fn remove(&self, raw: RawBox);

    /// Waits until the cluster has finished the removal of earlier boxes, so that it does not
    /// slow the next sample.
    async fn wait_idle(&self) {}
}

/// Connects to containerd by its socket, or to a Kubernetes by its kubeconfig.
///
/// # Errors
/// When the cluster does not answer.
pub async fn connect(runtime: Runtime, path: &Path) -> anyhow::Result<Box<dyn Raw>> {
    Ok(match runtime {
        Runtime::Containerd => Box::new(Containerd::connect(path).await?),
        Runtime::Kubernetes => Box::new(Kubernetes::connect(path).await?),
    })
}
