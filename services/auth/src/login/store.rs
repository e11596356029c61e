//! SQL of table `logins`.

use agentbox_contracts::ids::{LoginId, UserId};
use chrono::{DateTime, Utc};
use sea_orm::ConnectionTrait;

use crate::error::StoreError;
use crate::principal::{Live, live};
use crate::sql::statement;
use crate::user::store::Account;

pub struct NewLogin {
    pub id: LoginId,
    pub issued_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

/// Whether it was recorded: not if the account's password has changed since it was read.
/// The lock makes a change that is under way decide first.
#[tracing::instrument(name = "logins.insert", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "logins.insert"))]
pub async fn insert(
    on: &impl ConnectionTrait,
    login: &NewLogin,
    account: &Account,
) -> Result<bool, StoreError> {
    let result = on
        .execute_raw(statement(
            "INSERT INTO logins (id, user_id, issued_at, expires_at)
             SELECT $1, u.id, $2, $3 FROM users u
             WHERE u.id = $4 AND u.password_version = $5 FOR SHARE",
            [
                login.id.as_str().into(),
                login.issued_at.into(),
                login.expires_at.into(),
                account.user.id.as_str().into(),
                account.password_version.into(),
            ],
        ))
        .await?;
    Ok(result.rows_affected() > 0)
}

/// The login and its user, as they are now; `None` once either has ended.
#[tracing::instrument(name = "logins.find_live", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "logins.find_live"))]
pub async fn find_live(
    on: &impl ConnectionTrait,
    user: &UserId,
    id: &LoginId,
) -> Result<Option<Live>, StoreError> {
    on.query_one_raw(statement(
        "SELECT u.id AS user_id, u.username, u.role, l.expires_at
         FROM logins l JOIN users u ON u.id = l.user_id
         WHERE l.id = $1 AND l.user_id = $2 AND l.revoked_at IS NULL AND l.expires_at > now()",
        [id.as_str().into(), user.as_str().into()],
    ))
    .await?
    .map(|row| live(&row))
    .transpose()
}

#[tracing::instrument(name = "logins.revoke", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "logins.revoke"))]
pub async fn revoke(
    on: &impl ConnectionTrait,
    user: &UserId,
    id: &LoginId,
) -> Result<(), StoreError> {
    on.execute_raw(statement(
        "UPDATE logins SET revoked_at = now() WHERE id = $1 AND user_id = $2 AND revoked_at IS NULL",
        [id.as_str().into(), user.as_str().into()],
    ))
    .await?;
    Ok(())
}

#[tracing::instrument(name = "logins.revoke_all", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "logins.revoke_all"))]
pub async fn revoke_all(on: &impl ConnectionTrait, user: &UserId) -> Result<(), StoreError> {
    on.execute_raw(statement(
        "UPDATE logins SET revoked_at = now() WHERE user_id = $1 AND revoked_at IS NULL",
        [user.as_str().into()],
    ))
    .await?;
    Ok(())
}
