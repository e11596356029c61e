//! API keys.

use agentbox_contracts::identity::{ApiKey, Permission};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyPermission {
    #[schema(example = "env-0123456789abcdef")]
    pub environment_id: String,
    /// `read`, `write` or `admin`; each includes the ones before it.
    #[schema(schema_with = crate::schema::permission)]
    pub permission: Permission,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateApiKey {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = crate::schema::key_description)]
    pub description: Option<String>,
    /// Days; absent or null: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = crate::schema::key_days)]
    pub expires_in: Option<u32>,
    /// The environments that it reaches; without them it acts as its owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 100)]
    pub permissions: Option<Vec<KeyPermission>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiKeyBody {
    pub id: String,
    pub description: Option<String>,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub last_used_at: Option<DateTime<Utc>>,
    pub permissions: Vec<KeyPermission>,
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
        }
    }
}

/// The only answer that holds the key itself.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedApiKey {
    pub id: String,
    pub key: String,
    pub description: Option<String>,
    pub created_at: DateTime<Utc>,
    pub expires_at: Option<DateTime<Utc>>,
    pub permissions: Vec<KeyPermission>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ApiKeyList {
    pub api_keys: Vec<ApiKeyBody>,
    pub total: u64,
    pub limit: u32,
    pub offset: u64,
}
