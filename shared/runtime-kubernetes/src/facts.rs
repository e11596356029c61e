//! What Kubernetes cannot remember of a box: annotations of its namespace.
//!
//! * I1. Every change names the namespace's version it was decided on; somebody else's
//!   change in between is a conflict, and the decision is made anew.
//! * I2. The generation never falls.

use std::collections::BTreeMap;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{FailureReason, NetworkPolicy, RuntimeError};
use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::Namespace;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cluster::{ApiError, namespace_of};
use crate::driver::Inner;
use crate::observe::instant;

pub const GENERATION: &str = "agentbox.dev/generation";
pub const NETWORK_POLICY: &str = "agentbox.dev/network-policy";
const BLOCKED: &str = "agentbox.dev/blocked";
const FAILURE: &str = "agentbox.dev/failure";
const FAILURE_MESSAGE: &str = "agentbox.dev/failure-message";
const STARTED_AT: &str = "agentbox.dev/started-at";
const ENDING: &str = "agentbox.dev/ending";
const REMOVAL: &str = "agentbox.dev/removal";

/// Conflicts in a row before a change is given up; each is somebody else's progress.
const ATTEMPTS: u32 = 20;

/// Why a box will never run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: FailureReason,
    pub message: String,
}

/// A failure that the kubelet retries, and when it was first seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockedSince {
    /// As in [`crate::image::Blocked`].
    pub key: String,
    pub since: DateTime<Utc>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    pub generation: i64,
    pub created_at: DateTime<Utc>,
    /// What it was made with.
    pub policy: Option<NetworkPolicy>,
    pub failure: Option<Failure>,
    /// The last failure that the kubelet retries.
    pub blocked: Option<BlockedSince>,
    /// When it was first seen to run. From then on its Pod is never made again.
    pub started_at: Option<DateTime<Utc>>,
    /// We stopped it.
    pub is_stopped: bool,
    /// We are removing it.
    pub is_removed: bool,
    /// The namespace is going, since then.
    pub deleted_at: Option<DateTime<Utc>>,
    version: String,
}

impl Facts {
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
                .map(instant)
                .unwrap_or_default(),
            policy: annotations
                .get(NETWORK_POLICY)
                .and_then(|text| serde_json::from_str(text).ok()),
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
            is_stopped: annotations.contains_key(ENDING),
            is_removed: annotations.contains_key(REMOVAL),
            deleted_at: metadata.deletion_timestamp.as_ref().map(instant),
            version: metadata.resource_version.clone().unwrap_or_default(),
        }
    }

    /// Nothing may be made in it any more.
    pub fn is_going(&self) -> bool {
        self.is_removed || self.deleted_at.is_some()
    }
}

/// One more fact.
#[derive(Clone, Debug)]
pub enum Fact {
    Generation(i64),
    Failed(Failure),
    Blocked(BlockedSince),
    Started(DateTime<Utc>),
    Stopped,
    Removed,
}

impl Fact {
    fn annotations(&self) -> Value {
        match self {
            Self::Generation(generation) => json!({ GENERATION: generation.to_string() }),
            Self::Failed(failure) => json!({
                FAILURE: name_of(failure.reason),
                FAILURE_MESSAGE: failure.message,
            }),
            Self::Blocked(blocked) => json!({ BLOCKED: json!(blocked).to_string() }),
            Self::Started(at) => json!({ STARTED_AT: at.to_rfc3339() }),
            Self::Stopped => json!({ ENDING: "stopped" }),
            Self::Removed => json!({ REMOVAL: "begun" }),
        }
    }

    /// A box keeps its first end and its first failure, and never goes back.
    pub fn changes(&self, facts: &Facts) -> bool {
        match self {
            Self::Generation(generation) => *generation > facts.generation,
            Self::Failed(_) => facts.failure.is_none(),
            // The first time counts; another failure than the last begins anew.
            Self::Blocked(blocked) => facts
                .blocked
                .as_ref()
                .is_none_or(|known| known.key != blocked.key),
            Self::Started(_) => facts.started_at.is_none(),
            Self::Stopped => !facts.is_stopped,
            Self::Removed => !facts.is_removed,
        }
    }
}

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

impl Inner {
    pub async fn facts(&self, id: &EnvironmentId) -> Result<Option<Facts>, ApiError> {
        let namespaces = self.cluster.namespaces().await?;
        let found = self.cluster.get(&namespaces, &namespace_of(id)).await?;
        Ok(found
            .filter(|namespace| self.is_ours(namespace.metadata.labels.as_ref()))
            .map(|namespace| Facts::read(&namespace)))
    }

    /// Adds a fact, unless the box or what it changes is gone; what is known then.
    pub async fn learn(
        &self,
        id: &EnvironmentId,
        fact: &Fact,
    ) -> Result<Option<Facts>, RuntimeError> {
        let namespaces = self.cluster.namespaces().await?;
        for _ in 0..ATTEMPTS {
            let Some(facts) = self.facts(id).await? else {
                return Ok(None);
            };
            if !fact.changes(&facts) {
                return Ok(Some(facts));
            }
            let patch = json!({ "metadata": {
                "resourceVersion": facts.version,
                "annotations": fact.annotations(),
            }});
            match self
                .cluster
                .merge(&namespaces, &namespace_of(id), &patch)
                .await
            {
                Ok(namespace) => return Ok(Some(Facts::read(&namespace))),
                Err(error) if error.is_conflict() => {}
                Err(error) if error.refusal().is_some_and(|(code, _)| code == 404) => {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(RuntimeError::Cluster {
            operation: "note a fact",
            message: "others change the box's namespace all the time".to_owned(),
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn facts(annotations: Value) -> Facts {
        let namespace = json!({ "metadata": {
            "name": "agentbox-x", "annotations": annotations, "resourceVersion": "7",
            "creationTimestamp": "2026-01-02T03:04:05Z",
        }});
        Facts::read(&serde_json::from_value(namespace).unwrap())
    }

    #[test]
    fn each_fact_is_read_as_it_was_written_and_written_once() {
        let at = DateTime::from_timestamp(1_700_000_000, 5_000).unwrap();
        let failures = NAMES.map(|(reason, _)| {
            Fact::Failed(Failure {
                reason,
                message: "why".to_owned(),
            })
        });
        let others = [
            Fact::Generation(3),
            Fact::Started(at),
            Fact::Blocked(blocked("main: pull")),
            Fact::Stopped,
            Fact::Removed,
        ];
        for fact in failures.into_iter().chain(others) {
            assert!(fact.changes(&facts(json!({}))), "{fact:?}");
            let after = facts(fact.annotations());
            assert!(!fact.changes(&after), "{fact:?}: {after:?}");
        }
        assert_eq!(facts(Fact::Started(at).annotations()).started_at, Some(at));
    }

    fn blocked(key: &str) -> BlockedSince {
        BlockedSince {
            key: key.to_owned(),
            since: DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
        }
    }

    #[test]
    fn blocked_since_is_replaced_by_another_failure_only() {
        let held = facts(Fact::Blocked(blocked("boxd: pull")).annotations());
        let later = BlockedSince {
            since: DateTime::from_timestamp(1_800_000_000, 0).unwrap(),
            ..blocked("boxd: pull")
        };
        assert!(!Fact::Blocked(later).changes(&held));
        assert!(Fact::Blocked(blocked("main: pull")).changes(&held));
    }

    #[test]
    fn the_generation_never_falls() {
        let held = facts(json!({ GENERATION: "7" }));
        assert!(!Fact::Generation(6).changes(&held));
        assert!(Fact::Generation(8).changes(&held));
    }
}
