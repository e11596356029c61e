//! Queries of table `users`.

use agentbox_contracts::identity::{Role, User};
use agentbox_contracts::ids::UserId;
use agentbox_contracts::limits::UserLimits;
use agentbox_database::{Text, span};
use sea_orm::prelude::Expr;
use sea_orm::sea_query::{ExprTrait, Func};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DbErr, EntityTrait, NotSet, PaginatorTrait,
    QueryFilter, QueryOrder, QuerySelect, SelectExt, Set,
};
use tracing::Instrument;

use crate::entity::logins;
use crate::entity::users::{ActiveModel, Column, Entity, Model};
use crate::store::{StoreError, page_limit, page_offset};

pub struct NewUser {
    pub username: String,
    pub email: String,
    pub role: Role,
    pub password_hash: String,
}

/// The row of a user, with the hash of its password.
pub async fn find(on: &impl ConnectionTrait, id: &UserId) -> Result<Option<Model>, StoreError> {
    let find = Entity::find_by_id(id.clone()).one(on);
    Ok(find.instrument(span!(SELECT users)).await?)
}

/// Finds a user by name, in any case: no two usernames differ in case only.
pub async fn find_by_username(
    on: &impl ConnectionTrait,
    username: &str,
) -> Result<Option<Model>, StoreError> {
    let lowercase = Func::lower(Expr::col(Column::Username));
    let find = Entity::find()
        .filter(Expr::expr(lowercase).eq(Func::lower(username)))
        .one(on);
    Ok(find.instrument(span!(SELECT users)).await?)
}

/// A page of users, newest first, and the number of all users.
pub async fn page(
    on: &impl ConnectionTrait,
    limit: u32,
    offset: u64,
) -> Result<(Vec<User>, u64), StoreError> {
    let page = async {
        let users = Entity::find()
            .order_by_desc(Column::CreatedAt)
            .order_by_desc(Column::Id)
            .limit(page_limit(limit))
            .offset(page_offset(offset))
            .all(on)
            .await?;
        let total = Entity::find().count(on).await?;
        Ok::<_, DbErr>((users, total))
    };
    let (users, total) = page.instrument(span!(SELECT users)).await?;
    Ok((users.into_iter().map(User::from).collect(), total))
}

/// Inserts a user.
///
/// # Errors
/// A unique violation when the username or the email is taken.
pub async fn insert(on: &impl ConnectionTrait, new: NewUser) -> Result<User, StoreError> {
    let user = ActiveModel {
        id: Set(Text(UserId::random())),
        username: Set(new.username),
        email: Set(new.email),
        role: Set(Text(new.role)),
        password_hash: Set(new.password_hash),
        ..Default::default()
    };
    Ok(user
        .insert(on)
        .instrument(span!(INSERT users))
        .await?
        .into())
}

/// Changes the email, the role or the limits; an argument that is `None` changes nothing. Returns
/// `None` when there is no such user.
///
/// # Errors
/// A unique violation when the email is taken.
pub async fn update(
    on: &impl ConnectionTrait,
    id: &UserId,
    email: Option<String>,
    role: Option<Role>,
    limits: Option<&UserLimits>,
) -> Result<Option<User>, StoreError> {
    let limits = limits.map(serde_json::to_value).transpose();
    let limits = limits.map_err(|error| DbErr::Json(error.to_string()))?;
    let changes = ActiveModel {
        id: Set(Text(id.clone())),
        email: email.map_or(NotSet, Set),
        role: role.map_or(NotSet, |role| Set(Text(role))),
        limits: limits.map_or(NotSet, Set),
        ..Default::default()
    };
    match changes.update(on).instrument(span!(UPDATE users)).await {
        Ok(user) => Ok(Some(user.into())),
        Err(DbErr::RecordNotUpdated | DbErr::RecordNotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sets the password and revokes every login of the user. With `version`, only if the password
/// still has that version. False: nothing was changed.
pub async fn set_password(
    on: &impl ConnectionTrait,
    id: &UserId,
    hash: &str,
    version: Option<i64>,
) -> Result<bool, StoreError> {
    let mut update = Entity::update_many()
        .col_expr(Column::PasswordHash, Expr::value(hash))
        .col_expr(
            Column::PasswordVersion,
            Expr::col(Column::PasswordVersion).add(1),
        )
        .filter(Column::Id.eq(id.as_str()));
    if let Some(version) = version {
        update = update.filter(Column::PasswordVersion.eq(version));
    }
    let updated = update.exec(on).instrument(span!(UPDATE users)).await?;
    if updated.rows_affected == 0 {
        return Ok(false);
    }
    let revoke = logins::Entity::update_many()
        .col_expr(logins::Column::RevokedAt, Expr::current_timestamp())
        .filter(logins::Column::UserId.eq(id.as_str()))
        .filter(logins::Column::RevokedAt.is_null())
        .exec(on);
    revoke.instrument(span!(UPDATE logins)).await?;
    Ok(true)
}

/// Counts the administrators besides `id`. Locks the rows of all administrators until the
/// transaction ends, so that two transactions cannot remove the last two of them.
pub async fn lock_other_admins(on: &impl ConnectionTrait, id: &UserId) -> Result<u64, StoreError> {
    let admins = Entity::find()
        .select_only()
        .column(Column::Id)
        .filter(Column::Role.eq(Text(Role::Admin)))
        .order_by_asc(Column::Id)
        .lock_exclusive()
        .into_tuple::<Text<UserId>>()
        .all(on);
    let admins = admins.instrument(span!(SELECT users)).await?;
    let others = admins.iter().filter(|Text(admin)| admin != id).count();
    Ok(others as u64)
}

/// Deletes a user. False: there is no such user.
pub async fn delete(on: &impl ConnectionTrait, id: &UserId) -> Result<bool, StoreError> {
    let delete = Entity::delete_by_id(id.clone()).exec(on);
    let deleted = delete.instrument(span!(DELETE users)).await?;
    Ok(deleted.rows_affected > 0)
}

/// Whether there is no user.
pub async fn is_empty(on: &impl ConnectionTrait) -> Result<bool, StoreError> {
    let exists = Entity::find().exists(on);
    Ok(!exists.instrument(span!(SELECT users)).await?)
}
