//! The labels and annotations of the driver's sandboxes and containers.
//!
//! * I1. The driver selects by labels under `agentbox.dev/`. A user's label is stored as an
//!   annotation under a prefix of its own, so that no selector finds it.

use std::collections::HashMap;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::units::{Bytes, MilliCpu};
use agentbox_runtime::BoxSpec;

pub const DEPLOYMENT: &str = "agentbox.dev/deployment";
pub const BOX: &str = "agentbox.dev/box";
pub const GENERATION: &str = "agentbox.dev/generation";
const OWNER: &str = "agentbox.dev/owner";
const CPU_MILLI: &str = "agentbox.dev/cpu-milli";
const MEMORY_BYTES: &str = "agentbox.dev/memory-bytes";
const STORAGE_BYTES: &str = "agentbox.dev/storage-bytes";
const USER_PREFIX: &str = "user.agentbox.dev/";

/// The labels of every object of a deployment.
pub fn deployment_labels(deployment: &str) -> HashMap<String, String> {
    HashMap::from([(DEPLOYMENT.to_owned(), deployment.to_owned())])
}

/// The labels of every object of one box.
pub fn box_labels(deployment: &str, id: &EnvironmentId) -> HashMap<String, String> {
    let mut labels = deployment_labels(deployment);
    labels.insert(BOX.to_owned(), id.to_string());
    labels
}

/// All labels of a box's sandbox and container. They are those of its creation: a warm box has no
/// owner, and keeps its labels and annotations when it is claimed.
pub fn labels(deployment: &str, spec: &BoxSpec, generation: i64) -> HashMap<String, String> {
    let mut labels = box_labels(deployment, &spec.id);
    labels.insert(GENERATION.to_owned(), generation.to_string());
    if !spec.warm {
        labels.insert(OWNER.to_owned(), spec.owner.to_string());
    }
    labels
}

/// The reserved resources of a box, and its user's labels.
pub fn annotations(spec: &BoxSpec) -> HashMap<String, String> {
    let mut annotations: HashMap<String, String> = spec
        .labels
        .iter()
        .map(|(key, value)| (format!("{USER_PREFIX}{key}"), value.clone()))
        .collect();
    let reserved = spec.resources;
    for (key, value) in [
        (CPU_MILLI, reserved.cpu.0),
        (MEMORY_BYTES, reserved.memory.0),
        (STORAGE_BYTES, reserved.storage.0),
    ] {
        annotations.insert(key.to_owned(), value.to_string());
    }
    annotations
}

/// The resources that were reserved for a box when it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    pub cpu: MilliCpu,
    pub memory: Bytes,
    pub storage: Bytes,
}

impl Reserved {
    /// Reads a box's annotations; a missing or malformed value counts as zero.
    pub fn read(annotations: &HashMap<String, String>) -> Self {
        let number = |key: &str| {
            annotations
                .get(key)
                .and_then(|v| v.parse().ok())
                .unwrap_or(0)
        };
        Self {
            cpu: MilliCpu(number(CPU_MILLI)),
            memory: Bytes(number(MEMORY_BYTES)),
            storage: Bytes(number(STORAGE_BYTES)),
        }
    }
}
