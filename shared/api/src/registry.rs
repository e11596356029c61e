//! Credentials of registries.

use agentbox_contracts::registry::StoredCredential;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A login at a registry. No answer contains it.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"username": "ada", "password": "a token of the registry"}))]
#[serde(deny_unknown_fields)]
pub struct SetRegistryCredential {
    /// The user name, 1 to 255 characters without `:` and control characters.
    #[schema(
        example = "ada",
        min_length = 1,
        max_length = 255,
        pattern = r"^[^:\x00-\x1f\x7f-\x9f]*$"
    )]
    pub username: String,
    /// The password, or better a token that can only read: 1 to 8192 characters.
    #[schema(
        example = "a token of the registry",
        format = Password,
        min_length = 1,
        max_length = 8192,
        pattern = r"^[^\x00]*$"
    )]
    pub password: String,
}

/// A registry with a credential of the caller, without the credential itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "registry": "registry.example:5000", "updated_at": "2026-01-22T10:00:00Z"
}))]
pub struct RegistryBody {
    /// The registry's `host` or `host:port`, in lower case.
    #[schema(example = "registry.example:5000")]
    pub registry: String,
    /// When the credential was last set (RFC 3339, UTC).
    #[schema(example = "2026-01-22T10:00:00Z")]
    pub updated_at: DateTime<Utc>,
}

impl From<StoredCredential> for RegistryBody {
    fn from(credential: StoredCredential) -> Self {
        Self {
            registry: credential.registry,
            updated_at: credential.updated_at,
        }
    }
}

/// One page of the registries with a credential of the caller.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "registries": [
        {"registry": "registry.example:5000", "updated_at": "2026-01-22T10:00:00Z"}
    ],
    "total": 1,
    "limit": 100,
    "offset": 0
}))]
pub struct RegistryList {
    /// The registries of this page, by their names.
    pub registries: Vec<RegistryBody>,
    /// The number of registries on all pages.
    #[schema(example = 1)]
    pub total: u64,
    /// The page size that was applied.
    #[schema(example = 100)]
    pub limit: u32,
    /// The number of registries before this page.
    #[schema(example = 0)]
    pub offset: u64,
}
