//! The labels and annotations of our sandboxes and containers.
//!
//! * I1. What we select by is under `agentbox.dev/`; a user's label is stored under a
//!   prefix of its own and as an annotation, so it can never be selected by.

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

/// What every one of this deployment's objects carries.
pub fn of_deployment(deployment: &str) -> HashMap<String, String> {
    HashMap::from([(DEPLOYMENT.to_owned(), deployment.to_owned())])
}

/// What every object of one box carries.
pub fn of_box(deployment: &str, id: &EnvironmentId) -> HashMap<String, String> {
    let mut labels = of_deployment(deployment);
    labels.insert(BOX.to_owned(), id.to_string());
    labels
}

/// A box's labels, complete.
pub fn labels(deployment: &str, spec: &BoxSpec, generation: i64) -> HashMap<String, String> {
    let mut labels = of_box(deployment, &spec.id);
    labels.insert(GENERATION.to_owned(), generation.to_string());
    labels.insert(OWNER.to_owned(), spec.owner.to_string());
    labels
}

/// What is promised to a box, and its user's labels.
pub fn annotations(spec: &BoxSpec) -> HashMap<String, String> {
    let mut annotations: HashMap<String, String> = spec
        .labels
        .iter()
        .map(|(key, value)| (format!("{USER_PREFIX}{key}"), value.clone()))
        .collect();
    let promised = spec.resources;
    for (key, value) in [
        (CPU_MILLI, promised.cpu.0),
        (MEMORY_BYTES, promised.memory.0),
        (STORAGE_BYTES, promised.storage.0),
    ] {
        annotations.insert(key.to_owned(), value.to_string());
    }
    annotations
}

/// What was promised to a box when it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promised {
    pub cpu: MilliCpu,
    pub memory: Bytes,
    pub storage: Bytes,
}

impl Promised {
    /// What is missing or unreadable counts as nothing.
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
