//! The public API of a running system.

use serde::{Deserialize, Serialize};

/// The addresses on which api-gateway listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GatewayEndpoint {
    /// Shared by all replicas.
    pub url: String,
    /// The address of each replica alone, by index.
    pub replica_urls: Vec<String>,
}
