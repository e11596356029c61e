//! The part of a principal that the stores read for every kind of credential.

use agentbox_contracts::ErrorChain;
use agentbox_contracts::identity::{Credential, Principal, Profile, Role, Scope};
use agentbox_contracts::ids::UserId;
use agentbox_contracts::limits::UserLimits;
use agentbox_database::Text;
use sea_orm::FromQueryResult;
use sea_orm::prelude::{DateTimeUtc, Json};

/// A credential that is neither expired nor revoked, and the current data of its user.
#[derive(FromQueryResult)]
pub struct ActiveCredential {
    pub user_id: Text<UserId>,
    pub username: String,
    pub role: Text<Role>,
    /// When the credential expires.
    pub expires_at: Option<DateTimeUtc>,
    pub limits: Json,
    pub email: String,
    /// When the user was created.
    pub created_at: DateTimeUtc,
}

/// The limits of a user in the database. Those that this version cannot read are the limits of the
/// deployment.
#[must_use]
pub fn stored_limits(user: &UserId, limits: Json) -> UserLimits {
    serde_json::from_value(limits).unwrap_or_else(|error| {
        tracing::error!(error = %ErrorChain(&error), enduser.id = %user, "limits of a user not read");
        UserLimits::default()
    })
}

impl ActiveCredential {
    #[must_use]
    pub fn principal(self, credential: Credential, scope: Scope) -> Principal {
        Principal {
            limits: stored_limits(&self.user_id.0, self.limits),
            user: self.user_id.0,
            username: self.username,
            role: self.role.0,
            credential,
            scope,
            expires_at: self.expires_at,
            management: false,
            profile: Some(Profile {
                email: self.email,
                created_at: self.created_at,
            }),
        }
    }
}
