//! The state of a box that Kubernetes does not keep: annotations of its namespace.
//!
//! * I1. Every change names the namespace's version that it was decided on. Another change in
//!   between is a conflict, and the decision is repeated.
//! * I2. The generation never decreases.

use std::collections::BTreeMap;

use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_runtime::{FailureReason, NetworkPolicy, RuntimeError};
use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::Namespace;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cluster::{ApiError, namespace_of};
use crate::context::Context;
use crate::labels;
use crate::timestamps::from_kubernetes;

pub const GENERATION: &str = "agentbox.dev/generation";
pub const NETWORK_POLICY: &str = "agentbox.dev/network-policy";
const BLOCKED: &str = "agentbox.dev/blocked";
const FAILURE: &str = "agentbox.dev/failure";
const FAILURE_MESSAGE: &str = "agentbox.dev/failure-message";
const STARTED_AT: &str = "agentbox.dev/started-at";
const ENDING: &str = "agentbox.dev/ending";
const REMOVAL: &str = "agentbox.dev/removal";

/// Conflicts in a row before a change fails. Each is another replica's progress.
const ATTEMPTS: u32 = 20;

/// The reason that a box will never run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: FailureReason,
    pub message: String,
}

/// A failure that the kubelet retries, and when it was first seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockedSince {
    /// As in [`crate::blocked::Blocked`].
    pub key: String,
    pub since: DateTime<Utc>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct BoxState {
    pub generation: i64,
    pub created_at: DateTime<Utc>,
    /// The network policy that it was created with, or that replaced it.
    pub policy: Option<NetworkPolicy>,
    /// `None` for a box of an older version.
    pub owner: Option<UserId>,
    pub failure: Option<Failure>,
    /// The last failure that the kubelet retries.
    pub blocked: Option<BlockedSince>,
    /// When it was first observed running. From then on its Pod is never recreated.
    pub started_at: Option<DateTime<Utc>>,
    /// It was created warm, and its claim is not complete.
    pub is_warm: bool,
    /// This driver stopped it.
    pub is_stopped: bool,
    /// This driver is removing it.
    pub is_removed: bool,
    /// Since when the namespace is being deleted.
    pub deleted_at: Option<DateTime<Utc>>,
    /// The version of the namespace that this state was read from (I1).
    version: String,
}

impl BoxState {
    pub fn read(namespace: &Namespace) -> Self {
        let metadata = &namespace.metadata;
        let empty = BTreeMap::new();
        let annotations = metadata.annotations.as_ref().unwrap_or(&empty);
        let failure = annotations.get(FAILURE).and_then(|text| reason_of(text));
        Self {
            generation: annotations
                .get(GENERATION)
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
            created_at: metadata
                .creation_timestamp
                .as_ref()
                .map(from_kubernetes)
                .unwrap_or_default(),
            policy: annotations
                .get(NETWORK_POLICY)
                .and_then(|text| serde_json::from_str(text).ok()),
            owner: metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(labels::OWNER)?.parse().ok()),
            failure: failure.map(|reason| Failure {
                reason,
                message: annotations
                    .get(FAILURE_MESSAGE)
                    .cloned()
                    .unwrap_or_default(),
            }),
            blocked: annotations
                .get(BLOCKED)
                .and_then(|text| serde_json::from_str(text).ok()),
            started_at: annotations
                .get(STARTED_AT)
                .and_then(|text| text.parse().ok()),
            is_warm: annotations.contains_key(labels::WARM),
            is_stopped: annotations.contains_key(ENDING),
            is_removed: annotations.contains_key(REMOVAL),
            deleted_at: metadata.deletion_timestamp.as_ref().map(from_kubernetes),
            version: metadata.resource_version.clone().unwrap_or_default(),
        }
    }

    /// Whether it is being removed: nothing may be created in it any more.
    pub fn is_terminating(&self) -> bool {
        self.is_removed || self.deleted_at.is_some()
    }
}

/// One change of a box's state.
#[derive(Clone, Debug)]
pub enum StateChange {
    Generation(i64),
    /// The network policy of this generation.
    Policy(i64, NetworkPolicy),
    Failed(Failure),
    Blocked(BlockedSince),
    Started(DateTime<Utc>),
    /// The claim of this owner is complete.
    Claimed(UserId),
    Stopped,
    Removed,
}

impl StateChange {
    fn annotations(&self) -> Value {
        match self {
            Self::Generation(generation) => json!({ GENERATION: generation.to_string() }),
            Self::Policy(generation, policy) => json!({
                GENERATION: generation.to_string(),
                NETWORK_POLICY: json!(policy).to_string(),
            }),
            Self::Failed(failure) => json!({
                FAILURE: name_of(failure.reason),
                FAILURE_MESSAGE: failure.message,
            }),
            Self::Blocked(blocked) => json!({ BLOCKED: json!(blocked).to_string() }),
            Self::Started(at) => json!({ STARTED_AT: at.to_rfc3339() }),
            // Null removes an annotation.
            Self::Claimed(_) => json!({ labels::WARM: Value::Null }),
            Self::Stopped => json!({ ENDING: "stopped" }),
            Self::Removed => json!({ REMOVAL: "begun" }),
        }
    }

    /// The labels that it adds.
    fn labels(&self) -> Value {
        match self {
            Self::Claimed(owner) => json!({ labels::OWNER: owner }),
            _ => json!({}),
        }
    }

    /// Whether this changes `state`. A box keeps its first end and its first failure.
    pub fn changes(&self, state: &BoxState) -> bool {
        match self {
            Self::Generation(generation) => *generation > state.generation,
            Self::Policy(generation, policy) => {
                *generation > state.generation
                    || (*generation == state.generation && state.policy.as_ref() != Some(policy))
            }
            Self::Failed(_) => state.failure.is_none(),
            // The first record of a failure stays; another failure replaces it.
            Self::Blocked(blocked) => state
                .blocked
                .as_ref()
                .is_none_or(|known| known.key != blocked.key),
            Self::Started(_) => state.started_at.is_none(),
            Self::Claimed(_) => state.is_warm,
            Self::Stopped => !state.is_stopped,
            Self::Removed => !state.is_removed,
        }
    }
}

/// The reasons as the annotation has them.
const NAMES: [(FailureReason, &str); 5] = [
    (FailureReason::ImagePull, "IMAGE_PULL"),
    (FailureReason::ImageInvalid, "IMAGE_INVALID"),
    (FailureReason::Unschedulable, "UNSCHEDULABLE"),
    (FailureReason::Quota, "QUOTA"),
    (FailureReason::RuntimeClass, "RUNTIME_CLASS"),
];

fn name_of(reason: FailureReason) -> &'static str {
    NAMES
        .iter()
        .find(|(known, _)| *known == reason)
        .map_or("", |(_, name)| name)
}

fn reason_of(name: &str) -> Option<FailureReason> {
    NAMES
        .iter()
        .find(|(_, known)| *known == name)
        .map(|(reason, _)| *reason)
}

impl Context {
    pub async fn box_state(&self, id: &EnvironmentId) -> Result<Option<BoxState>, ApiError> {
        let namespaces = self.cluster.namespaces().await?;
        let found = self.cluster.get(&namespaces, &namespace_of(id)).await?;
        Ok(found
            .filter(|namespace| self.has_deployment_label(namespace.metadata.labels.as_ref()))
            .map(|namespace| BoxState::read(&namespace)))
    }

    /// Records the change unless it is recorded already, and returns the resulting state; `None`
    /// when the box is gone.
    pub async fn record(
        &self,
        id: &EnvironmentId,
        change: &StateChange,
    ) -> Result<Option<BoxState>, RuntimeError> {
        let namespaces = self.cluster.namespaces().await?;
        for _ in 0..ATTEMPTS {
            let Some(state) = self.box_state(id).await? else {
                return Ok(None);
            };
            if !change.changes(&state) {
                return Ok(Some(state));
            }
            let patch = json!({ "metadata": {
                "resourceVersion": state.version,
                "annotations": change.annotations(),
                "labels": change.labels(),
            }});
            match self
                .cluster
                .merge(&namespaces, &namespace_of(id), &patch)
                .await
            {
                Ok(namespace) => return Ok(Some(BoxState::read(&namespace))),
                Err(error) if error.is_conflict() => {}
                Err(error) if error.refusal().is_some_and(|(code, _)| code == 404) => {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(RuntimeError::Cluster {
            operation: "record the state of a box",
            message: format!("the namespace changed during each of {ATTEMPTS} attempts"),
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn state_with(annotations: Value) -> BoxState {
        let namespace = json!({ "metadata": {
            "name": "agentbox-x", "annotations": annotations, "resourceVersion": "7",
            "creationTimestamp": "2026-01-02T03:04:05Z",
        }});
        BoxState::read(&serde_json::from_value(namespace).unwrap())
    }

    #[test]
    fn state_change_reads_as_written_and_is_written_once() {
        let at = DateTime::from_timestamp(1_700_000_000, 5_000).unwrap();
        let failures = NAMES.map(|(reason, _)| {
            StateChange::Failed(Failure {
                reason,
                message: "why".to_owned(),
            })
        });
        let others = [
            StateChange::Generation(3),
            StateChange::Policy(3, NetworkPolicy::unspecified(true)),
            StateChange::Started(at),
            StateChange::Blocked(blocked("main: pull")),
            StateChange::Stopped,
            StateChange::Removed,
        ];
        for change in failures.into_iter().chain(others) {
            assert!(change.changes(&state_with(json!({}))), "{change:?}");
            let after = state_with(change.annotations());
            assert!(!change.changes(&after), "{change:?}: {after:?}");
        }
        assert_eq!(
            state_with(StateChange::Started(at).annotations()).started_at,
            Some(at)
        );
    }

    fn blocked(key: &str) -> BlockedSince {
        BlockedSince {
            key: key.to_owned(),
            since: DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
        }
    }

    #[test]
    fn blocked_since_is_replaced_by_another_failure_only() {
        let held = state_with(StateChange::Blocked(blocked("boxd: pull")).annotations());
        let later = BlockedSince {
            since: DateTime::from_timestamp(1_800_000_000, 0).unwrap(),
            ..blocked("boxd: pull")
        };
        assert!(!StateChange::Blocked(later).changes(&held));
        assert!(StateChange::Blocked(blocked("main: pull")).changes(&held));
    }

    #[test]
    fn claim_replaces_the_warm_annotation_by_the_owner_once() {
        let owner: UserId = "user-0123456789abcdef".parse().unwrap();
        let claimed = StateChange::Claimed(owner);
        assert!(claimed.changes(&state_with(json!({ labels::WARM: "true" }))));
        assert!(!claimed.changes(&state_with(json!({}))));
        assert_eq!(claimed.annotations()[labels::WARM], Value::Null);
        assert_eq!(claimed.labels()[labels::OWNER], "user-0123456789abcdef");
        assert_eq!(StateChange::Stopped.labels(), json!({}));
    }

    #[test]
    fn generation_never_decreases() {
        let held = state_with(json!({ GENERATION: "7" }));
        assert!(!StateChange::Generation(6).changes(&held));
        assert!(StateChange::Generation(8).changes(&held));
        for (generation, changes) in [(6, false), (7, true), (8, true)] {
            let change = StateChange::Policy(generation, NetworkPolicy::default());
            assert_eq!(change.changes(&held), changes, "{generation}");
        }
    }
}
