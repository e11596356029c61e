//! Queries of table `logins`.

use agentbox_contracts::ids::{LoginId, UserId};
use agentbox_database::span;
use agentbox_database::sql::statement;
use chrono::{DateTime, Utc};
use sea_orm::prelude::Expr;
use sea_orm::sea_query::ExprTrait;
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, QuerySelect};
use tracing::Instrument;

use crate::entity::logins::{Column, Entity};
use crate::entity::users;
use crate::principal::ActiveCredential;
use crate::store::StoreError;

/// Inserts a login unless the password has changed since it was verified. Raw, because the
/// check and the insert are one statement. `FOR SHARE` waits for a concurrent change.
const INSERT_IF_PASSWORD_IS_UNCHANGED: &str = "
    INSERT INTO logins (id, user_id, issued_at, expires_at)
    SELECT $1, u.id, $2, $3 FROM users u
    WHERE u.id = $4 AND u.password_version = $5 FOR SHARE";

pub struct NewLogin {
    pub id: LoginId,
    pub issued_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

/// Records a login. False: the password of `user` has changed since the row was read.
pub async fn insert(
    on: &impl ConnectionTrait,
    login: &NewLogin,
    user: &users::Model,
) -> Result<bool, StoreError> {
    let values = [
        login.id.as_str().into(),
        login.issued_at.into(),
        login.expires_at.into(),
        user.id.clone().into(),
        user.password_version.into(),
    ];
    let insert = on.execute_raw(statement(INSERT_IF_PASSWORD_IS_UNCHANGED, values));
    let inserted = insert.instrument(span!(INSERT logins)).await?;
    Ok(inserted.rows_affected() > 0)
}

/// The login and its user, as they are now. `None` when the login has expired or was
/// revoked, or is another user's.
pub async fn find_active(
    on: &impl ConnectionTrait,
    user: &UserId,
    id: &LoginId,
) -> Result<Option<ActiveCredential>, StoreError> {
    let find = Entity::find_by_id(id.clone())
        .select_only()
        .column(Column::UserId)
        .column(Column::ExpiresAt)
        .column(users::Column::Username)
        .column(users::Column::Role)
        .column(users::Column::Limits)
        .column(users::Column::Email)
        .column(users::Column::CreatedAt)
        .inner_join(users::Entity)
        .filter(Column::UserId.eq(user.as_str()))
        .filter(Column::RevokedAt.is_null())
        .filter(Column::ExpiresAt.into_expr().gt(Expr::current_timestamp()))
        .into_model::<ActiveCredential>()
        .one(on);
    Ok(find.instrument(span!(SELECT logins)).await?)
}

/// Revokes a login. Does nothing when it is another user's or has been revoked already.
pub async fn revoke(
    on: &impl ConnectionTrait,
    user: &UserId,
    id: &LoginId,
) -> Result<(), StoreError> {
    let revoke = Entity::update_many()
        .col_expr(Column::RevokedAt, Expr::current_timestamp())
        .filter(Column::Id.eq(id.as_str()))
        .filter(Column::UserId.eq(user.as_str()))
        .filter(Column::RevokedAt.is_null())
        .exec(on);
    revoke.instrument(span!(UPDATE logins)).await?;
    Ok(())
}
