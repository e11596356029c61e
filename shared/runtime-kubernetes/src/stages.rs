//! The stages of a create, from the conditions of its Pod, which have a resolution of one second.

use std::time::Duration;

use agentbox_runtime::metrics::{Stage, stage_completed};
use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::Pod;

use crate::timestamps::from_kubernetes;

const SCHEDULED: &str = "PodScheduled";
/// The sandbox and its network exist.
const SANDBOX_READY: &str = "PodReadyToStartContainers";

/// Records the stages of a Pod whose boxd has answered for the first time, at `now`.
pub fn record(pod: &Pod, now: DateTime<Utc>) {
    if let Some((sandbox, started)) = durations(pod, now) {
        stage_completed(Stage::Sandbox, sandbox);
        stage_completed(Stage::Started, started);
    }
}

/// The time for the sandbox, and from then until `now`. `None` when the Pod does not have both
/// conditions.
fn durations(pod: &Pod, now: DateTime<Utc>) -> Option<(Duration, Duration)> {
    let scheduled = became_true(pod, SCHEDULED)?;
    let sandbox_ready = became_true(pod, SANDBOX_READY)?;
    let between = |from: DateTime<Utc>, to: DateTime<Utc>| (to - from).to_std().unwrap_or_default();
    Some((
        between(scheduled, sandbox_ready),
        between(sandbox_ready, now),
    ))
}

fn became_true(pod: &Pod, kind: &str) -> Option<DateTime<Utc>> {
    let conditions = pod.status.as_ref()?.conditions.as_deref()?;
    let condition = conditions
        .iter()
        .find(|condition| condition.type_ == kind)?;
    let since = condition.last_transition_time.as_ref()?;
    (condition.status == "True").then(|| from_kubernetes(since))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(conditions: &[(&str, &str, &str)]) -> Pod {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(kind, status, since)| {
                json!({ "type": kind, "status": status, "lastTransitionTime": since })
            })
            .collect();
        serde_json::from_value(json!({ "status": { "conditions": conditions } })).unwrap()
    }

    #[test]
    fn stages_follow_from_the_conditions_of_the_pod() {
        let now = "2026-01-01T00:00:09Z".parse().unwrap();
        let scheduled = (SCHEDULED, "True", "2026-01-01T00:00:01Z");
        let ready = (SANDBOX_READY, "True", "2026-01-01T00:00:03Z");
        let seconds = Duration::from_secs;
        assert_eq!(
            durations(&pod(&[scheduled, ready]), now),
            Some((seconds(2), seconds(6)))
        );
        let not_ready = (SANDBOX_READY, "False", "2026-01-01T00:00:03Z");
        assert_eq!(durations(&pod(&[scheduled, not_ready]), now), None);
        assert_eq!(durations(&pod(&[scheduled]), now), None);
        assert_eq!(durations(&Pod::default(), now), None);
    }
}
