//! The specification of a box: the complete input of a driver.

use std::collections::BTreeMap;

use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::units::{Bytes, MilliCpu};
use serde::{Deserialize, Serialize};

pub use agentbox_contracts::environment::{SecurityContext, Toleration};

use crate::network_policy::{NetworkPolicy, NetworkPolicyError};
use crate::registry_credential::RegistryCredential;

/// One box, complete: applying the same spec twice changes nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BoxSpec {
    pub id: EnvironmentId,
    /// The box waits for [`crate::Runtime::claim`]: nothing of a user runs in it, it has no `command`,
    /// `use_entrypoint`, `env` and `labels`, and `owner` is that of its image pull alone.
    #[serde(default)]
    pub warm: bool,
    /// `allow_cluster_internal` opens the box to boxes of the same owner only.
    pub owner: UserId,
    /// An image reference: `python:3.11-slim`, or with registry and digest.
    pub image: String,
    /// The main command. `None`: the box idles until it is removed, unless `use_entrypoint`.
    pub command: Option<Vec<String>>,
    /// Without a `command`: whether the image's ENTRYPOINT, with its CMD as arguments, is the main
    /// command. A driver that does not know them before the box exists refuses it in preflight.
    #[serde(default)]
    pub use_entrypoint: bool,
    pub env: BTreeMap<String, String>,
    /// The user's labels. A driver stores them under a prefix of its own, so that they cannot
    /// replace the labels that it selects by.
    pub labels: BTreeMap<String, String>,
    pub resources: Resources,
    pub isolation: Isolation,
    pub node_selector: BTreeMap<String, String>,
    pub tolerations: Vec<Toleration>,
    /// The bearer token that this box's boxd accepts.
    pub boxd_token: String,
    /// The owner's login at the image's registry. A copy of the spec in JSON has none.
    #[serde(skip)]
    pub image_credential: Option<RegistryCredential>,
}

impl BoxSpec {
    /// The box's network policy; the deployment's default when the request has none.
    #[must_use]
    pub fn network_policy(&self, default_allow_internet: bool) -> NetworkPolicy {
        let requested = self.isolation.network_policy.clone();
        requested.unwrap_or_else(|| NetworkPolicy::unspecified(default_allow_internet))
    }
}

/// The isolation that a request asks for, parsed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Isolation {
    /// A Kubernetes RuntimeClass or a CRI runtime handler; absent: the cluster's default.
    pub runtime_class: Option<String>,
    /// Absent: the deployment's default ([`NetworkPolicy::unspecified`]).
    pub network_policy: Option<NetworkPolicy>,
    pub security_context: Option<SecurityContext>,
}

impl Isolation {
    /// Parses a request's `isolation`.
    ///
    /// # Errors
    /// The first rule that its network policy breaks.
    pub fn parse(
        request: &agentbox_contracts::environment::Isolation,
    ) -> Result<Self, NetworkPolicyError> {
        let policy = request.network_policy.as_ref();
        Ok(Self {
            runtime_class: request.runtime_class.clone(),
            network_policy: policy.map(NetworkPolicy::parse).transpose()?,
            security_context: request.security_context.clone(),
        })
    }
}

/// Hard limits of one box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub cpu: MilliCpu,
    pub memory: Bytes,
    /// The limit of the writable layer of the root file system.
    pub storage: Bytes,
    /// Processes and threads together.
    pub pids: u32,
}
