//! A box's usage from `metrics.k8s.io`: metrics-server, or another server of that API.

use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::units::{Bytes, MilliCpu};
use agentbox_runtime::Usage;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::{GroupVersionKind, Status};
use serde_json::Value;

use crate::cluster::{ApiError, namespace_of};
use crate::context::Context;
use crate::usage_cache::UsageCache;

impl Context {
    /// A box's usage; `None` when the cluster does not measure, or has not measured this box yet.
    pub async fn usage(&self, id: &EnvironmentId) -> Result<Option<Usage>, ApiError> {
        if let Some(usage) = self.usage_cache.cached(id) {
            return Ok(usage);
        }
        let kind = GroupVersionKind::gvk("metrics.k8s.io", "v1beta1", "PodMetrics");
        let resource = ApiResource::from_gvk_with_plural(&kind, "pods");
        let client = self.cluster.client().await?.clone();
        let pods: Api<DynamicObject> = Api::namespaced_with(client, &namespace_of(id), &resource);
        let asked = pods.get("main");
        let usage = match self.cluster.call("read a box's metrics", asked).await {
            Ok(metrics) => usage_of(&metrics.data),
            Err(ApiError::Refused { status, .. }) if is_not_measured_yet(&status) => None,
            Err(error) => {
                // The caller asks boxd instead.
                cache_failure(&self.usage_cache, id, &error);
                return Err(error);
            }
        };
        self.usage_cache.insert(id, usage);
        Ok(usage)
    }
}

/// Records a failed request. Only an API that is not served, or not to this client, is a property
/// of the whole cluster; a slow or broken request concerns its box, until the next measurement.
fn cache_failure(cache: &UsageCache, id: &EnvironmentId, error: &ApiError) {
    match error.refusal() {
        Some((403 | 404, _)) => cache.mark_unavailable(),
        _ => cache.insert(id, None),
    }
}

/// Whether the API is served and has no measurement of this Pod yet.
fn is_not_measured_yet(status: &Status) -> bool {
    let about = status.details.as_ref();
    status.code == 404 && about.is_some_and(|about| about.name.ends_with("main"))
}

/// The sum of the Pod's containers; `None` when a container has no measurement.
fn usage_of(metrics: &Value) -> Option<Usage> {
    let containers = metrics["containers"].as_array()?;
    let mut total = (!containers.is_empty()).then_some(Usage {
        cpu: MilliCpu(0),
        memory: Bytes(0),
    })?;
    for container in containers {
        let quantity = |name: &str| container["usage"][name].as_str();
        // An idle box uses 0, which is not a valid quantity of a request.
        let cpu = quantity("cpu")?.parse().unwrap_or(MilliCpu(0));
        let memory: Bytes = quantity("memory")?.parse().ok()?;
        total.cpu.0 = total.cpu.0.saturating_add(cpu.0);
        total.memory.0 = total.memory.0.saturating_add(memory.0);
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    #[test]
    fn box_usage_is_the_sum_of_its_containers() {
        let container =
            |cpu: &str, memory: &str| json!({ "usage": { "cpu": cpu, "memory": memory } });
        let metrics =
            json!({ "containers": [container("1500001n", "1024Ki"), container("0", "2Mi")] });
        let usage = Usage {
            cpu: MilliCpu(2),
            memory: Bytes(3 << 20),
        };
        assert_eq!(usage_of(&metrics), Some(usage));
    }

    fn refused(code: u16) -> ApiError {
        ApiError::Refused {
            operation: "read a box's metrics",
            status: Status::failure("refused", "Refused")
                .with_code(code)
                .boxed(),
        }
    }

    #[test]
    fn failed_request_leaves_the_metrics_of_other_boxes_available() {
        let operation = "read a box's metrics";
        for error in [
            ApiError::Deadline {
                operation,
                after: Duration::from_secs(10),
            },
            ApiError::Unavailable {
                operation,
                message: "connection reset".to_owned(),
            },
            refused(500),
        ] {
            let cache = UsageCache::default();
            let (id, other) = (EnvironmentId::random(), EnvironmentId::random());
            cache_failure(&cache, &id, &error);
            assert_eq!(cache.cached(&id), Some(None), "{error}");
            assert_eq!(cache.cached(&other), None, "{error}");
        }
        for code in [403, 404] {
            let cache = UsageCache::default();
            cache_failure(&cache, &EnvironmentId::random(), &refused(code));
            assert_eq!(cache.cached(&EnvironmentId::random()), Some(None), "{code}");
        }
    }

    #[test]
    fn missing_measurement_is_none_and_not_zero() {
        for metrics in [
            json!({}),
            json!({ "containers": [] }),
            json!({ "containers": [{ "usage": { "cpu": "1m" } }] }),
            json!({ "containers": [{ "usage": { "cpu": "1m", "memory": "0" } }] }),
        ] {
            assert_eq!(usage_of(&metrics), None, "{metrics}");
        }
    }
}
