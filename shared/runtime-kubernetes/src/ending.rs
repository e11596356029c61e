//! Ends a box, and removes all of it.
//!
//! Ending is boxd's: it is told to, and has the caller's grace. A boxd that does not answer
//! or does not end, and a box without grace, is ended by the kubelet: the Pod's active
//! deadline is set to have passed. So the Pod stays, and with it how it ended and its
//! last output; deleting it would take both.
//!
//! * I1. Why we ended a box is recorded before it is ended, so that whoever looks next
//!   tells the same reason.
//! * I2. The Pod goes before its namespace: a namespace's objects go in no order, and the
//!   network policy must not go before the Pod.
//! * I3. The namespace goes last, and nobody waits for it: it may take seconds, or be
//!   stuck, and has nothing of the box in it any more.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_box_protocol::proto::EndRequest;
use agentbox_box_protocol::token::BoxToken;
use agentbox_box_protocol::{client, variables};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{BoxPhase, RuntimeError};
use k8s_openapi::api::core::v1::Secret;
use kube::api::DeleteParams;
use serde_json::json;
use tokio::time::Instant;

use crate::cluster::namespace_of;
use crate::driver::Inner;
use crate::ensure::wait_for;
use crate::facts::Fact;
use crate::objects::{MAIN, SECRET};
use crate::pod::GRACE_S;

/// A change may be missed.
const LOOK: Duration = Duration::from_millis(500);

impl Inner {
    pub async fn stop(&self, id: &EnvironmentId, grace: Duration) -> Result<(), RuntimeError> {
        let Some(observed) = self.get(id).await? else {
            return Ok(());
        };
        match observed.phase {
            BoxPhase::Exited { .. } | BoxPhase::Failed { .. } => Ok(()),
            BoxPhase::Starting { .. } => {
                self.learn(id, &Fact::Stopped).await?;
                self.remove_pod(id).await
            }
            BoxPhase::Running { address, .. } => {
                self.learn(id, &Fact::Stopped).await?;
                if !grace.is_zero() {
                    match self.ask_to_end(id, address).await {
                        Ok(()) if self.ended_within(id, grace).await? => return Ok(()),
                        Ok(()) => {}
                        Err(why) => {
                            tracing::info!(environment.id = %id, why, "boxd cannot be told to end");
                        }
                    }
                }
                self.kill(id).await
            }
        }
    }

    /// As SIGTERM to boxd: the main command gets it.
    async fn ask_to_end(&self, id: &EnvironmentId, address: SocketAddr) -> Result<(), String> {
        let secrets = self
            .cluster
            .of_box::<Secret>(id)
            .await
            .map_err(|e| e.to_string())?;
        let secret = self
            .cluster
            .get(&secrets, SECRET)
            .await
            .map_err(|e| e.to_string())?;
        let token = secret
            .and_then(|secret| secret.data?.remove(variables::TOKEN))
            .and_then(|bytes| String::from_utf8(bytes.0).ok())
            .ok_or("its token is gone")?;
        let token = BoxToken::parse(&token).map_err(|e| e.to_string())?;
        let stream = self.dial(id, address).await.map_err(|e| e.to_string())?;
        let asked = async {
            let mut boxd = client::connect(stream, &token)
                .await
                .map_err(|e| e.to_string())?;
            boxd.end(EndRequest {})
                .await
                .map_err(|status| status.message().to_owned())
        };
        let within = self.config.call_deadline();
        tokio::time::timeout(within, asked)
            .await
            .map_err(|_| format!("no answer in {within:?}"))?
            .map(|_| ())
    }

    /// The kubelet sends SIGTERM, and SIGKILL a second later.
    async fn kill(&self, id: &EnvironmentId) -> Result<(), RuntimeError> {
        let pods = self.cluster.pods_of(id).await?;
        let patch = json!({ "spec": { "activeDeadlineSeconds": 1 } });
        match self.cluster.merge(&pods, MAIN, &patch).await {
            Ok(_) => {}
            Err(error) if error.refusal().is_some_and(|(code, _)| code == 404) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let within = Duration::from_secs(self.config.removal_deadline_s);
        if self.ended_within(id, within).await? {
            return Ok(());
        }
        Err(RuntimeError::Deadline(within))
    }

    async fn ended_within(
        &self,
        id: &EnvironmentId,
        within: Duration,
    ) -> Result<bool, RuntimeError> {
        let deadline = Instant::now() + within;
        let mut changes = self.changes().await?;
        loop {
            let ended = match self.get(id).await? {
                None => true,
                Some(observed) => matches!(
                    observed.phase,
                    BoxPhase::Exited { .. } | BoxPhase::Failed { .. }
                ),
            };
            if ended || Instant::now() >= deadline {
                return Ok(ended);
            }
            wait_for(id, &mut changes, deadline.min(Instant::now() + LOOK)).await;
        }
    }

    pub async fn remove(&self, id: &EnvironmentId) -> Result<(), RuntimeError> {
        let endpoints = self.cluster.system_services().await?;
        let now = DeleteParams::default();
        self.cluster.delete(&endpoints, id.as_str(), &now).await?;
        let Some(facts) = self.learn(id, &Fact::Removed).await? else {
            return Ok(());
        };
        self.remove_pod(id).await?;
        if facts.deleted_at.is_some() {
            return Ok(());
        }
        let namespaces = self.cluster.namespaces().await?;
        let background = DeleteParams::background();
        self.cluster
            .delete(&namespaces, &namespace_of(id), &background)
            .await?;
        // One that a slow `ensure` made in between: none can come after.
        self.remove_pod(id).await
    }

    /// Kills what runs in it, and waits until its node has removed it.
    async fn remove_pod(&self, id: &EnvironmentId) -> Result<(), RuntimeError> {
        let pods = self.cluster.pods_of(id).await?;
        let mut changes = self.changes().await?;
        let within = Duration::from_secs(self.config.removal_deadline_s);
        let deadline = Instant::now() + within;
        let mut asked = false;
        loop {
            let Some(pod) = self.cluster.get(&pods, MAIN).await? else {
                return Ok(());
            };
            let node = pod.spec.and_then(|spec| spec.node_name);
            let is_lost = match &node {
                Some(node) => self.node_silent_since(node).await?.is_some(),
                None => true,
            };
            // Nobody is there to end it, or to say that it has.
            if is_lost {
                self.cluster
                    .delete(&pods, MAIN, &DeleteParams::default().grace_period(0))
                    .await?;
                return Ok(());
            }
            if !asked {
                let soon = DeleteParams::default().grace_period(GRACE_S);
                self.cluster.delete(&pods, MAIN, &soon).await?;
                asked = true;
            }
            if Instant::now() >= deadline {
                return Err(RuntimeError::Deadline(within));
            }
            wait_for(id, &mut changes, deadline.min(Instant::now() + LOOK)).await;
        }
    }
}
