//! What a box uses, as `metrics.k8s.io` has it: from metrics-server, or whatever serves that.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::units::{Bytes, MilliCpu};
use agentbox_runtime::Usage;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::{GroupVersionKind, Status};
use serde_json::Value;

use crate::cluster::{ApiError, namespace_of};
use crate::driver::Inner;

/// How long a cluster that does not measure is not asked again.
const PAUSE: Duration = Duration::from_secs(60);

/// When the cluster last said that it does not measure at all.
#[derive(Debug, Default)]
pub struct Silence(Mutex<Option<Instant>>);

impl Silence {
    fn lasts(&self) -> bool {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.elapsed() < PAUSE)
    }

    fn begin(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

impl Inner {
    /// `None` where the cluster does not measure, or has not measured this box yet.
    pub async fn usage(&self, id: &EnvironmentId) -> Result<Option<Usage>, ApiError> {
        if self.silence.lasts() {
            return Ok(None);
        }
        let kind = GroupVersionKind::gvk("metrics.k8s.io", "v1beta1", "PodMetrics");
        let resource = ApiResource::from_gvk_with_plural(&kind, "pods");
        let client = self.cluster.client().await?.clone();
        let pods: Api<DynamicObject> = Api::namespaced_with(client, &namespace_of(id), &resource);
        match self
            .cluster
            .call("read a box's metrics", pods.get("main"))
            .await
        {
            Ok(metrics) => Ok(usage_of(&metrics.data)),
            Err(ApiError::Refused { status, .. }) if is_not_measured(&status) => Ok(None),
            Err(error) => {
                // Not served, not allowed, or down: boxd answers meanwhile.
                self.silence.begin();
                Err(error)
            }
        }
    }
}

/// Served, but nothing of this Pod: it is new.
fn is_not_measured(status: &Status) -> bool {
    let about = status.details.as_ref();
    status.code == 404 && about.is_some_and(|about| about.name.ends_with("main"))
}

/// The sum of the Pod's containers; `None` when one is missing or says nothing.
fn usage_of(metrics: &Value) -> Option<Usage> {
    let containers = metrics["containers"].as_array()?;
    let mut whole = (!containers.is_empty()).then_some(Usage {
        cpu: MilliCpu(0),
        memory: Bytes(0),
    })?;
    for container in containers {
        let of = |name: &str| container["usage"][name].as_str();
        // An idle box uses none, which is no quantity to ask for.
        let cpu = of("cpu")?.parse().unwrap_or(MilliCpu(0));
        let memory: Bytes = of("memory")?.parse().ok()?;
        whole.cpu.0 = whole.cpu.0.saturating_add(cpu.0);
        whole.memory.0 = whole.memory.0.saturating_add(memory.0);
    }
    Some(whole)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_box_uses_what_its_containers_use() {
        let of = |cpu: &str, memory: &str| json!({ "usage": { "cpu": cpu, "memory": memory } });
        let metrics = json!({ "containers": [of("1500001n", "1024Ki"), of("0", "2Mi")] });
        let usage = Usage {
            cpu: MilliCpu(2),
            memory: Bytes(3 << 20),
        };
        assert_eq!(usage_of(&metrics), Some(usage));
    }

    #[test]
    fn what_is_not_measured_is_not_nothing() {
        for metrics in [
            json!({}),
            json!({ "containers": [] }),
            json!({ "containers": [{ "usage": { "cpu": "1m" } }] }),
            json!({ "containers": [{ "usage": { "cpu": "1m", "memory": "0" } }] }),
        ] {
            assert_eq!(usage_of(&metrics), None, "{metrics}");
        }
    }

    #[test]
    fn a_cluster_that_does_not_measure_is_left_alone_for_a_while() {
        let silence = Silence::default();
        assert!(!silence.lasts());
        silence.begin();
        assert!(silence.lasts());
    }
}
