//! API keys.

use agentbox_contracts::identity::{ApiKey, Permission};
use agentbox_contracts::ids::{ApiKeyId, EnvironmentId};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The permission of an API key on one environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"environment_id": "env-0123456789abcdef", "permission": "write"}))]
#[serde(deny_unknown_fields)]
pub struct KeyPermission {
    /// The environment.
    #[schema(value_type = EnvironmentId)]
    pub environment_id: String,
    /// The highest permission on it: each of `read`, `write` and `admin` includes the ones
    /// before it.
    pub permission: Permission,
}

/// An API key to create.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "description": "nightly build",
    "expires_in": 90,
    "permissions": [{"environment_id": "env-0123456789abcdef", "permission": "write"}]
}))]
#[serde(deny_unknown_fields)]
pub struct CreateApiKey {
    /// A note for people, at most 256 characters. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "nightly build", max_length = 256, pattern = r"^[^\x00]*$")]
    pub description: Option<String>,
    /// Days until the key expires, 1 to 3650. Default: it never expires. A key that a key creates
    /// expires no later than its creator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 90, minimum = 1, maximum = 3650)]
    pub expires_in: Option<u32>,
    /// The environments that the key is limited to, 1 to 100. Default: no limit, the key may do
    /// what its owner may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(
        example = json!([{"environment_id": "env-0123456789abcdef", "permission": "write"}]),
        max_items = 100
    )]
    pub permissions: Option<Vec<KeyPermission>>,
    /// Whether the key may do what needs a login otherwise: revoke keys that it did not create, and
    /// manage users if its owner is an administrator. Not with `permissions`. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(default = false, example = false)]
    pub management: Option<bool>,
}

/// An API key, without the key itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": "key-0123456789abcdef",
    "description": "nightly build",
    "created_at": "2026-01-22T10:00:00Z",
    "expires_at": "2026-04-22T10:00:00Z",
    "last_used_at": null,
    "permissions": [{"environment_id": "env-0123456789abcdef", "permission": "write"}],
    "management": false
}))]
pub struct ApiKeyBody {
    /// The id to get or revoke the key by.
    #[schema(value_type = ApiKeyId)]
    pub id: String,
    /// The note that was given at creation, or null.
    #[schema(example = "nightly build")]
    pub description: Option<String>,
    /// When the key was created (RFC 3339, UTC).
    #[schema(example = "2026-01-22T10:00:00Z")]
    pub created_at: DateTime<Utc>,
    /// When the key expires (RFC 3339, UTC), or null if never.
    #[schema(example = "2026-04-22T10:00:00Z")]
    pub expires_at: Option<DateTime<Utc>>,
    /// When the key was last used (RFC 3339, UTC), or null if never. It may lag by a minute.
    #[schema(example = "2026-01-22T12:34:00Z")]
    pub last_used_at: Option<DateTime<Utc>>,
    /// The environments that the key is limited to. Empty: no limit.
    #[schema(example = json!([{"environment_id": "env-0123456789abcdef", "permission": "write"}]))]
    pub permissions: Vec<KeyPermission>,
    /// Whether the key may do what needs a login otherwise: revoke keys that it did not create, and
    /// manage users if its owner is an administrator.
    #[serde(default)]
    #[schema(example = false)]
    pub management: bool,
}

impl From<ApiKey> for ApiKeyBody {
    fn from(key: ApiKey) -> Self {
        Self {
            id: key.id.to_string(),
            description: key.description,
            created_at: key.created_at,
            expires_at: key.expires_at,
            last_used_at: key.last_used_at,
            permissions: key
                .permissions
                .into_iter()
                .map(|granted| KeyPermission {
                    environment_id: granted.environment_id.to_string(),
                    permission: granted.permission,
                })
                .collect(),
            management: key.management,
        }
    }
}

/// A new API key. No other answer contains the key itself.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "id": "key-0123456789abcdef",
    "key": "agentbox_0123456789abcdef_0123456789abcdef0123456789abcdef0123456789abcdef",
    "description": "nightly build",
    "created_at": "2026-01-22T10:00:00Z",
    "expires_at": "2026-04-22T10:00:00Z",
    "permissions": [{"environment_id": "env-0123456789abcdef", "permission": "write"}],
    "management": false
}))]
pub struct CreatedApiKey {
    /// The id to get or revoke the key by.
    #[schema(value_type = ApiKeyId)]
    pub id: String,
    /// The key. Send it as `Authorization: Bearer <key>`. Store it now: it is not shown again.
    #[schema(
        example = "agentbox_0123456789abcdef_0123456789abcdef0123456789abcdef0123456789abcdef"
    )]
    pub key: String,
    /// The note that was given, or null.
    #[schema(example = "nightly build")]
    pub description: Option<String>,
    /// When the key was created (RFC 3339, UTC).
    #[schema(example = "2026-01-22T10:00:00Z")]
    pub created_at: DateTime<Utc>,
    /// When the key expires (RFC 3339, UTC), or null if never.
    #[schema(example = "2026-04-22T10:00:00Z")]
    pub expires_at: Option<DateTime<Utc>>,
    /// The environments that the key is limited to. Empty: no limit.
    #[schema(example = json!([{"environment_id": "env-0123456789abcdef", "permission": "write"}]))]
    pub permissions: Vec<KeyPermission>,
    /// Whether the key may do what needs a login otherwise: revoke keys that it did not create, and
    /// manage users if its owner is an administrator.
    #[serde(default)]
    #[schema(example = false)]
    pub management: bool,
}

/// One page of the caller's API keys.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "api_keys": [{
        "id": "key-0123456789abcdef",
        "description": "nightly build",
        "created_at": "2026-01-22T10:00:00Z",
        "expires_at": null,
        "last_used_at": "2026-01-22T12:34:00Z",
        "permissions": [],
        "management": false
    }],
    "total": 1,
    "limit": 100,
    "offset": 0
}))]
pub struct ApiKeyList {
    /// The keys of this page.
    pub api_keys: Vec<ApiKeyBody>,
    /// The number of keys on all pages.
    #[schema(example = 1)]
    pub total: u64,
    /// The page size that was applied.
    #[schema(example = 100)]
    pub limit: u32,
    /// The number of keys before this page.
    #[schema(example = 0)]
    pub offset: u64,
}
