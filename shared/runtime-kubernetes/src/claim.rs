//! Gives a warm box to its owner.
//!
//! A claim reaches boxd alone. The API server learns of it afterwards: `ensure` of the claimed spec
//! adds the labels and annotations that a cold box has from its creation.
//!
//! * I1. A claim changes no network policy: the node would enforce it some time later. The caller
//!   matches it. A policy that opens the owner's other boxes needs the owner's label, so that no warm
//!   box can have it.
//! * I2. boxd refuses another claim; TLS shows that it is the boxd of this box, whatever Pod has its
//!   address now.
//! * I3. `ensure` records the claim as complete last: a killed call is repeated.
//! * I4. A claim that boxd has accepted succeeds again after the end of its command, and of boxd with it:
//!   the kubelet has put boxd's report, with the claim, into the Pod's status. The API server is asked for
//!   it only when boxd does not answer.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_box_protocol::termination::Termination;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{
    BoxPhase, BoxSpec, NetworkPolicy, Observed, RuntimeError, configure_claimed,
};
use chrono::Utc;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use serde_json::json;
use tokio::time::Instant;

use crate::box_state::StateChange;
use crate::context::Context;
use crate::labels;
use crate::objects::MAIN;
use crate::phase::end_report;
use crate::pod_watch::wait_for_change;

/// The longest pause between two reads, for when the watch misses a change.
const POLL: Duration = Duration::from_millis(500);

/// Whether the Pod's boxd was started unconfigured. A Pod that `ensure` creates after the claim is not.
fn is_warm(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.is_some_and(|annotations| annotations.contains_key(labels::WARM))
}

impl Context {
    /// The instants of the result are those of the claim.
    pub async fn claim(
        &self,
        spec: &BoxSpec,
        generation: i64,
        address: SocketAddr,
    ) -> Result<Observed, RuntimeError> {
        if spec
            .network_policy(self.config.default_allow_internet)
            .allow_cluster_internal
        {
            return Err(RuntimeError::NotClaimable(
                "allow_cluster_internal: the cluster must know the owner of the box first"
                    .to_owned(),
            ));
        }
        self.configure(spec, address).await?;
        let now = Utc::now();
        Ok(Observed {
            id: spec.id.clone(),
            generation,
            phase: BoxPhase::Running {
                address,
                started_at: now,
            },
            created_at: now,
        })
    }

    /// Records the claim of a running box, and makes it if [`Self::claim`] did not.
    pub async fn complete_claim(
        &self,
        spec: &BoxSpec,
        generation: i64,
        policy: &NetworkPolicy,
        address: SocketAddr,
    ) -> Result<(), RuntimeError> {
        let id = &spec.id;
        let change = StateChange::Policy(generation, policy.clone());
        if let Some(state) = self.record(id, &change).await?
            && state.generation > generation
        {
            return Err(RuntimeError::Fenced {
                given: generation,
                held: state.generation,
            });
        }
        self.replace_policy(spec, policy, None).await?;
        if self.pod(id).await?.as_ref().is_some_and(is_warm) {
            self.configure(spec, address).await?;
        }
        let patch = json!({ "metadata": {
            "labels": { labels::OWNER: spec.owner },
            "annotations": labels::annotations(spec),
        }});
        let pods: Api<Pod> = self.cluster.box_pods(id).await?;
        self.cluster.merge(&pods, MAIN, &patch).await?;
        let claimed = StateChange::Claimed(spec.owner.clone());
        self.record(id, &claimed).await?;
        Ok(())
    }

    async fn configure(&self, spec: &BoxSpec, address: SocketAddr) -> Result<(), RuntimeError> {
        let within = Duration::from_millis(self.config.connect_deadline_ms);
        let connection = self.dial(&spec.id, address);
        let prepared = std::future::ready(Ok(()));
        let recorded = self.recorded_claim(&spec.id, within);
        // The commands of images are not known on Kubernetes.
        configure_claimed(connection, prepared, recorded, spec, None, within).await
    }

    /// The claim in the report of a box that has ended, for which it waits up to `within`: the kubelet reports
    /// an end some time after it.
    async fn recorded_claim(&self, id: &EnvironmentId, within: Duration) -> Option<String> {
        let deadline = Instant::now() + within;
        let mut changes = self.changes().await.ok()?;
        loop {
            let pod = self.pod(id).await.ok()??;
            if let Some(report) = end_report(&pod) {
                return Termination::claim_in(report.as_bytes());
            }
            if Instant::now() >= deadline {
                return None;
            }
            wait_for_change(id, &mut changes, deadline.min(Instant::now() + POLL)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use agentbox_runtime::conformance::example_spec;

    use super::*;
    use crate::config::Config;
    use crate::pod;

    #[test]
    fn pod_is_warm_if_it_was_created_from_a_warm_spec() {
        let config: Config = serde_json::from_value(crate::config::tests::minimal()).unwrap();
        for warm in [true, false] {
            let spec = example_spec(|spec| spec.warm = warm);
            let pod: Pod = serde_json::from_value(pod::pod(&config, &spec, false)).unwrap();
            assert_eq!(is_warm(&pod), warm);
        }
    }
}
