//! A CRI client: containerd's readiness, the number of its boxes, and their removal.

use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ListPodSandboxRequest, PodSandboxState, RemovePodSandboxRequest, StatusRequest,
    StopPodSandboxRequest,
};
use tonic::transport::{Channel, Endpoint};

use super::ContainerdError;

/// Removing a sandbox takes about 0.2 s, most of which is waiting.
const CONCURRENT_REMOVALS: usize = 8;

/// A connection to the CRI of one containerd.
pub(crate) struct Cri(RuntimeServiceClient<Channel>);

fn failed(status: &tonic::Status) -> ContainerdError {
    ContainerdError::Cri(status.message().to_owned())
}

impl Cri {
    pub(crate) async fn connect(socket: &Path) -> Result<Self, ContainerdError> {
        let broken = |error: tonic::transport::Error| ContainerdError::Cri(error.to_string());
        let channel = Endpoint::from_shared(format!("unix:{}", socket.display()))
            .map_err(broken)?
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(30))
            .connect()
            .await
            .map_err(broken)?;
        Ok(Self(RuntimeServiceClient::new(channel)))
    }

    /// Succeeds when runtime and network are ready; otherwise gives the reason.
    pub(crate) async fn ready(&self) -> Result<(), ContainerdError> {
        let answer = self
            .0
            .clone()
            .status(StatusRequest::default())
            .await
            .map_err(|status| failed(&status))?;
        let conditions = answer.into_inner().status.unwrap_or_default().conditions;
        // Newer versions have more conditions, such as one for deprecations.
        let is_relevant = |kind: &str| matches!(kind, "RuntimeReady" | "NetworkReady");
        match conditions
            .iter()
            .find(|condition| is_relevant(&condition.r#type) && !condition.status)
        {
            None => Ok(()),
            Some(condition) => Err(ContainerdError::Cri(format!(
                "{}: {} {}",
                condition.r#type, condition.reason, condition.message
            ))),
        }
    }

    /// The number of sandboxes that run, and of all sandboxes.
    pub(crate) async fn count(&self) -> Result<(usize, usize), ContainerdError> {
        let items = self.sandboxes().await?;
        let ready = items.iter().filter(|(_, ready)| *ready).count();
        Ok((ready, items.len()))
    }

    async fn sandboxes(&self) -> Result<Vec<(String, bool)>, ContainerdError> {
        let answer = self
            .0
            .clone()
            .list_pod_sandbox(ListPodSandboxRequest::default())
            .await
            .map_err(|status| failed(&status))?;
        let is_ready = |state: i32| state == PodSandboxState::SandboxReady as i32;
        let items = answer.into_inner().items;
        Ok(items
            .into_iter()
            .map(|item| (item.id, is_ready(item.state)))
            .collect())
    }

    /// Stops and removes every sandbox with its containers.
    pub(crate) async fn remove_all(&self) -> Result<(), ContainerdError> {
        let mut removals = futures::stream::iter(self.sandboxes().await?)
            .map(|(id, _)| self.remove(id))
            .buffer_unordered(CONCURRENT_REMOVALS);
        let mut outcome = Ok(());
        while let Some(removal) = removals.next().await {
            outcome = outcome.and(removal);
        }
        outcome
    }

    async fn remove(&self, id: String) -> Result<(), ContainerdError> {
        let mut client = self.0.clone();
        let stop = StopPodSandboxRequest {
            pod_sandbox_id: id.clone(),
        };
        client
            .stop_pod_sandbox(stop)
            .await
            .map_err(|status| failed(&status))?;
        let remove = RemovePodSandboxRequest { pod_sandbox_id: id };
        client
            .remove_pod_sandbox(remove)
            .await
            .map_err(|status| failed(&status))?;
        Ok(())
    }
}
