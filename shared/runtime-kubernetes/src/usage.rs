//! What a box uses, as `metrics.k8s.io` has it: from metrics-server, or whatever serves that.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
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

/// How long an answer is as good as a new one: no metrics server measures more often.
const FRESH: Duration = Duration::from_secs(5);
/// Boxes whose last answer is kept.
const KEPT: usize = 1_024;

/// What the cluster last answered, so that a client who asks again and again does not have
/// the API server asked each time.
#[derive(Debug, Default)]
pub struct Measurements(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Since when it does not measure at all.
    silent_since: Option<Instant>,
    boxes: HashMap<EnvironmentId, (Instant, Option<Usage>)>,
}

impl Measurements {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer, if there is no need to ask.
    fn recall(&self, id: &EnvironmentId) -> Option<Option<Usage>> {
        let known = self.known();
        let is_silent = known.silent_since.is_some_and(|at| at.elapsed() < PAUSE);
        let (at, usage) = match known.boxes.get(id) {
            _ if is_silent => return Some(None),
            Some(answer) => answer,
            None => return None,
        };
        (at.elapsed() < FRESH).then_some(*usage)
    }

    fn keep(&self, id: &EnvironmentId, usage: Option<Usage>) {
        let mut known = self.known();
        if known.boxes.len() >= KEPT {
            known.boxes.retain(|_, (at, _)| at.elapsed() < FRESH);
        }
        if known.boxes.len() < KEPT {
            known.boxes.insert(id.clone(), (Instant::now(), usage));
        }
    }

    fn fall_silent(&self) {
        self.known().silent_since = Some(Instant::now());
    }
}

impl Inner {
    /// `None` where the cluster does not measure, or has not measured this box yet.
    pub async fn usage(&self, id: &EnvironmentId) -> Result<Option<Usage>, ApiError> {
        if let Some(usage) = self.measurements.recall(id) {
            return Ok(usage);
        }
        let kind = GroupVersionKind::gvk("metrics.k8s.io", "v1beta1", "PodMetrics");
        let resource = ApiResource::from_gvk_with_plural(&kind, "pods");
        let client = self.cluster.client().await?.clone();
        let pods: Api<DynamicObject> = Api::namespaced_with(client, &namespace_of(id), &resource);
        let asked = pods.get("main");
        let usage = match self.cluster.call("read a box's metrics", asked).await {
            Ok(metrics) => usage_of(&metrics.data),
            Err(ApiError::Refused { status, .. }) if is_not_measured(&status) => None,
            Err(error) => {
                // Not served, not allowed, or down: boxd answers meanwhile.
                self.measurements.fall_silent();
                return Err(error);
            }
        };
        self.measurements.keep(id, usage);
        Ok(usage)
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
    fn an_answer_is_kept_for_a_while_and_so_is_that_there_is_none() {
        let measurements = Measurements::default();
        let (id, other) = (EnvironmentId::random(), EnvironmentId::random());
        assert_eq!(measurements.recall(&id), None);
        let usage = Some(Usage {
            cpu: MilliCpu(1),
            memory: Bytes(1),
        });
        measurements.keep(&id, usage);
        assert_eq!(measurements.recall(&id), Some(usage));
        assert_eq!(measurements.recall(&other), None);
        measurements.fall_silent();
        assert_eq!(measurements.recall(&other), Some(None));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let measurements = Measurements::default();
        for _ in 0..=KEPT {
            measurements.keep(&EnvironmentId::random(), None);
        }
        assert_eq!(measurements.known().boxes.len(), KEPT);
    }
}
