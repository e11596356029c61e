//! A caller as a store finds it: the part of a principal that all credentials share.

use agentbox_contracts::identity::{Credential, Principal, Role, Scope};
use agentbox_contracts::ids::UserId;
use chrono::{DateTime, Utc};
use sea_orm::QueryResult;

use crate::error::StoreError;
use crate::user::store::{parse_id, parse_role};

/// A credential that has not ended, and its user as it is now.
pub struct Live {
    pub user: UserId,
    pub username: String,
    pub role: Role,
    /// When the credential ends by itself.
    pub expires_at: Option<DateTime<Utc>>,
}

impl Live {
    #[must_use]
    pub fn principal(self, credential: Credential, scope: Scope) -> Principal {
        Principal {
            user: self.user,
            username: self.username,
            role: self.role,
            credential,
            scope,
            expires_at: self.expires_at,
        }
    }
}

/// Reads columns `user_id`, `username`, `role` and `expires_at`.
pub fn live(row: &QueryResult) -> Result<Live, StoreError> {
    Ok(Live {
        user: parse_id(&row.try_get::<String>("", "user_id")?)?,
        username: row.try_get("", "username")?,
        role: parse_role(&row.try_get::<String>("", "role")?)?,
        expires_at: row.try_get("", "expires_at")?,
    })
}
