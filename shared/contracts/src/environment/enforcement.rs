//! How a cluster enforces the limits of environments that share machines.

use serde::{Deserialize, Serialize};

/// How a cluster enforces a limit: `enforced` by the kernel for each environment; `measured`, and an
/// environment over its limit is ended; `delegated` to the cluster, which does not report whether
/// it enforces the limit; `absent`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = "enforced"))]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    Enforced,
    Measured,
    Delegated,
    #[default]
    Absent,
}

/// How a cluster enforces each limit of an environment that depends on its configuration. Its CPU,
/// memory and processes are always limited by the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(example = json!({
    "storage": "measured",
    "image_volumes": "absent",
    "user_namespaces": "absent",
    "bandwidth": "enforced",
    "connections": "enforced",
    "block_io": "absent"
})))]
pub struct LimitEnforcement {
    /// The writable disk space of an environment.
    pub storage: Enforcement,
    /// The directories of an image's `VOLUME`, as a part of that space.
    pub image_volumes: Enforcement,
    /// User ids of its own, and with them the kernel's limits for each user.
    pub user_namespaces: Enforcement,
    /// The network bandwidth of an environment.
    pub bandwidth: Enforcement,
    /// The entries of an environment in its machine's connection table.
    pub connections: Enforcement,
    /// The disk bandwidth of an environment.
    pub block_io: Enforcement,
}

impl Enforcement {
    /// `present` if the limit is configured, otherwise [`Self::Absent`].
    #[must_use]
    pub fn when(is_configured: bool, present: Self) -> Self {
        if is_configured { present } else { Self::Absent }
    }
}
