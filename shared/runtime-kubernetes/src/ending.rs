//! Stops a box, and removes all of it.
//!
//! boxd is asked to end, and has the caller's grace period. When it does not answer or does not
//! end in time, and when there is no grace period, the kubelet ends the Pod: its active deadline
//! is set to one second. The Pod then stays, with its exit status and its last output;
//! deleting it would take both.
//!
//! * I1. The reason is recorded before the box is ended, so that every replica reports the
//!   same one.
//! * I2. The Pod is deleted before its namespace: a namespace's objects are deleted in no order,
//!   and the network policy must outlast the Pod.
//! * I3. Nothing waits for the namespace: its deletion may take seconds or be stuck, and
//!   nothing of the box is left in it.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_box_protocol::proto::EndRequest;
use agentbox_box_protocol::token::BoxToken;
use agentbox_box_protocol::{client, variables};
use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{BoxPhase, RuntimeError};
use k8s_openapi::api::core::v1::Secret;
use kube::api::DeleteParams;
use serde_json::json;
use tokio::time::Instant;

use crate::box_state::StateChange;
use crate::cluster::namespace_of;
use crate::context::Context;
use crate::objects::{MAIN, SECRET};
use crate::pod::GRACE_S;
use crate::pod_watch::wait_for_change;

/// The longest pause between two reads, for when the watch misses a change.
const POLL: Duration = Duration::from_millis(500);

impl Context {
    pub async fn stop(&self, id: &EnvironmentId, grace: Duration) -> Result<(), RuntimeError> {
        let Some(observed) = self.get(id).await? else {
            return Ok(());
        };
        match observed.phase {
            BoxPhase::Exited { .. } | BoxPhase::Failed { .. } => Ok(()),
            BoxPhase::Starting { .. } => {
                self.record(id, &StateChange::Stopped).await?;
                self.remove_pod(id).await
            }
            BoxPhase::Running { address, .. } => {
                self.record(id, &StateChange::Stopped).await?;
                if !grace.is_zero() {
                    match self.request_end(id, address).await {
                        Ok(()) if self.ended_within(id, grace).await? => return Ok(()),
                        Ok(()) => {}
                        Err(error) => {
                            tracing::info!(environment.id = %id, error, "could not ask boxd to end");
                        }
                    }
                }
                self.kill(id).await
            }
        }
    }

    /// Asks boxd to end: the main command receives SIGTERM.
    async fn request_end(&self, id: &EnvironmentId, address: SocketAddr) -> Result<(), String> {
        let secrets = self
            .cluster
            .box_objects::<Secret>(id)
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
        let request = async {
            let mut boxd = client::connect(stream, &token)
                .await
                .map_err(|e| ErrorChain(&e).to_string())?;
            boxd.end(EndRequest {})
                .await
                .map_err(|status| status.message().to_owned())
        };
        let within = self.config.call_deadline();
        tokio::time::timeout(within, request)
            .await
            .map_err(|_| format!("no answer in {within:?}"))?
            .map(|_| ())
    }

    /// Ends the Pod by its active deadline: SIGTERM, and SIGKILL a second later.
    async fn kill(&self, id: &EnvironmentId) -> Result<(), RuntimeError> {
        let pods = self.cluster.box_pods(id).await?;
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
            wait_for_change(id, &mut changes, deadline.min(Instant::now() + POLL)).await;
        }
    }

    pub async fn remove(&self, id: &EnvironmentId) -> Result<(), RuntimeError> {
        let endpoints = self.cluster.system_services().await?;
        let parameters = DeleteParams::default();
        self.cluster
            .delete(&endpoints, id.as_str(), &parameters)
            .await?;
        let Some(state) = self.record(id, &StateChange::Removed).await? else {
            return Ok(());
        };
        self.remove_pod(id).await?;
        if state.deleted_at.is_some() {
            return Ok(());
        }
        let namespaces = self.cluster.namespaces().await?;
        let background = DeleteParams::background();
        self.cluster
            .delete(&namespaces, &namespace_of(id), &background)
            .await?;
        // A slow `ensure` may have created a Pod meanwhile. No later one can be created.
        self.remove_pod(id).await
    }

    /// Deletes the Pod, and waits until its node has removed it.
    async fn remove_pod(&self, id: &EnvironmentId) -> Result<(), RuntimeError> {
        let pods = self.cluster.box_pods(id).await?;
        let mut changes = self.changes().await?;
        let within = Duration::from_secs(self.config.removal_deadline_s);
        let deadline = Instant::now() + within;
        let mut is_requested = false;
        loop {
            let Some(pod) = self.cluster.get(&pods, MAIN).await? else {
                return Ok(());
            };
            let node = pod.spec.and_then(|spec| spec.node_name);
            let is_lost = match &node {
                Some(node) => self.node_unready_since(node).await?.is_some(),
                None => true,
            };
            // A node that is gone neither ends the Pod nor reports its end.
            if is_lost {
                self.cluster
                    .delete(&pods, MAIN, &DeleteParams::default().grace_period(0))
                    .await?;
                return Ok(());
            }
            if !is_requested {
                let with_grace = DeleteParams::default().grace_period(GRACE_S);
                self.cluster.delete(&pods, MAIN, &with_grace).await?;
                is_requested = true;
            }
            if Instant::now() >= deadline {
                return Err(RuntimeError::Deadline(within));
            }
            wait_for_change(id, &mut changes, deadline.min(Instant::now() + POLL)).await;
        }
    }
}
