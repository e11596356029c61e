//! The trail of what was done to identities: who, what, when, with which result.
//!
//! * I1. Append only: the database refuses changes; only the retention removes.
//! * I2. No secret and no text that a stranger typed: ids and closed words.
//! * I3. Written in the transaction of what it tells.

use agentbox_contracts::ids::UserId;
use sea_orm::ConnectionTrait;

use crate::error::StoreError;
use crate::sql::statement;

#[derive(Clone, Copy, Debug)]
pub enum Action {
    BootstrapAdmin,
    Login,
    Logout,
    ChangePassword,
    CreateUser,
    PatchUser,
    DeleteUser,
    CreateKey,
    RevokeKey,
    IssueTicket,
    CreateSigningKey,
}

impl Action {
    const fn as_str(self) -> &'static str {
        match self {
            Self::BootstrapAdmin => "bootstrap-admin",
            Self::Login => "login",
            Self::Logout => "logout",
            Self::ChangePassword => "change-password",
            Self::CreateUser => "create-user",
            Self::PatchUser => "patch-user",
            Self::DeleteUser => "delete-user",
            Self::CreateKey => "create-key",
            Self::RevokeKey => "revoke-key",
            Self::IssueTicket => "issue-ticket",
            Self::CreateSigningKey => "create-signing-key",
        }
    }
}

/// One line of the trail.
pub struct Entry<'a> {
    /// `None`: auth itself, an administrator whom the request does not name, or nobody
    /// that exists.
    pub actor: Option<&'a UserId>,
    pub action: Action,
    /// The id of what was acted upon.
    pub target: Option<&'a str>,
    pub ok: bool,
}

#[tracing::instrument(name = "audit.record", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "audit.record"))]
pub async fn record(on: &impl ConnectionTrait, entry: Entry<'_>) -> Result<(), StoreError> {
    let result = if entry.ok { "ok" } else { "refused" };
    on.execute_raw(statement(
        "INSERT INTO audit (actor, action, target, result) VALUES ($1, $2, $3, $4)",
        [
            entry.actor.map(|id| id.as_str().to_owned()).into(),
            entry.action.as_str().into(),
            entry.target.map(ToOwned::to_owned).into(),
            result.into(),
        ],
    ))
    .await?;
    Ok(())
}
