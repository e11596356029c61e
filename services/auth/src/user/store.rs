//! SQL of table `users`.

use agentbox_contracts::identity::{Role, User};
use agentbox_contracts::ids::UserId;
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, FromQueryResult};

use crate::error::StoreError;
use crate::sql::{bigint, count, statement};

/// The most rows one page holds.
const MAX_PAGE: u32 = 1_000;

#[derive(FromQueryResult)]
struct Row {
    id: String,
    username: String,
    email: String,
    role: String,
    created_at: DateTime<Utc>,
}

impl TryFrom<Row> for User {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse_id(&row.id)?,
            role: parse_role(&row.role)?,
            username: row.username,
            email: row.email,
            created_at: row.created_at,
        })
    }
}

pub fn parse_id(text: &str) -> Result<UserId, StoreError> {
    text.parse()
        .map_err(|error| StoreError::corrupt("user id", error))
}

pub fn parse_role(text: &str) -> Result<Role, StoreError> {
    text.parse().map_err(|_| StoreError::corrupt("role", text))
}

/// A user with what verifies its password.
pub struct Account {
    pub user: User,
    pub password_hash: String,
    pub password_version: i64,
}

pub struct NewUser {
    pub username: String,
    pub email: String,
    pub role: Role,
    pub password_hash: String,
}

#[tracing::instrument(name = "users.find", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "users.find"))]
pub async fn find(on: &impl ConnectionTrait, id: &UserId) -> Result<Option<User>, StoreError> {
    Row::find_by_statement(statement(
        "SELECT id, username, email, role, created_at FROM users WHERE id = $1",
        [id.as_str().into()],
    ))
    .one(on)
    .await?
    .map(User::try_from)
    .transpose()
}

#[tracing::instrument(name = "users.find_account", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "users.find_account"))]
pub async fn find_account(
    on: &impl ConnectionTrait,
    id: &UserId,
) -> Result<Option<Account>, StoreError> {
    account(on, "id = $1", id.as_str()).await
}

/// Usernames are one whatever their case.
#[tracing::instrument(name = "users.find_by_username", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "users.find_by_username"))]
pub async fn find_account_by_username(
    on: &impl ConnectionTrait,
    username: &str,
) -> Result<Option<Account>, StoreError> {
    account(on, "lower(username) = lower($1)", username).await
}

async fn account(
    on: &impl ConnectionTrait,
    condition: &'static str,
    value: &str,
) -> Result<Option<Account>, StoreError> {
    let sql = format!(
        "SELECT id, username, email, role, created_at, password_hash, password_version
         FROM users WHERE {condition}"
    );
    let Some(row) = on.query_one_raw(statement(&sql, [value.into()])).await? else {
        return Ok(None);
    };
    Ok(Some(Account {
        user: Row::from_query_result(&row, "")?.try_into()?,
        password_hash: row.try_get("", "password_hash")?,
        password_version: row.try_get("", "password_version")?,
    }))
}

/// Newest first, and how many there are in all.
#[tracing::instrument(name = "users.page", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "users.page"))]
pub async fn page(
    on: &impl ConnectionTrait,
    limit: u32,
    offset: u64,
) -> Result<(Vec<User>, u64), StoreError> {
    let rows = Row::find_by_statement(statement(
        "SELECT id, username, email, role, created_at FROM users
         ORDER BY created_at DESC, id DESC LIMIT $1 OFFSET $2",
        [i64::from(limit.min(MAX_PAGE)).into(), bigint(offset)],
    ))
    .all(on)
    .await?;
    let users = rows
        .into_iter()
        .map(User::try_from)
        .collect::<Result<_, _>>()?;
    let total = on
        .query_one_raw(statement("SELECT count(*) AS total FROM users", []))
        .await?;
    let total = total
        .map(|row| row.try_get::<i64>("", "total"))
        .transpose()?
        .unwrap_or_default();
    Ok((users, count(total)))
}

#[tracing::instrument(name = "users.insert", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "users.insert"))]
pub async fn insert(on: &impl ConnectionTrait, new: &NewUser) -> Result<User, StoreError> {
    Row::find_by_statement(statement(
        "INSERT INTO users (id, username, email, role, password_hash)
         VALUES ($1, $2, $3, $4, $5)
         RETURNING id, username, email, role, created_at",
        [
            UserId::random().as_str().into(),
            new.username.clone().into(),
            new.email.clone().into(),
            new.role.as_str().into(),
            new.password_hash.clone().into(),
        ],
    ))
    .one(on)
    .await?
    .ok_or_else(|| StoreError::corrupt("user", "the insert returned no row"))?
    .try_into()
}

/// `None` leaves a column as it is; no row, no user.
#[tracing::instrument(name = "users.update", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "users.update"))]
pub async fn update(
    on: &impl ConnectionTrait,
    id: &UserId,
    email: Option<String>,
    role: Option<Role>,
) -> Result<Option<User>, StoreError> {
    Row::find_by_statement(statement(
        "UPDATE users SET email = COALESCE($2, email), role = COALESCE($3, role)
         WHERE id = $1 RETURNING id, username, email, role, created_at",
        [
            id.as_str().into(),
            email.into(),
            role.map(|role| role.as_str().to_owned()).into(),
        ],
    ))
    .one(on)
    .await?
    .map(User::try_from)
    .transpose()
}

/// With `version`, only if the password is still that one. Whether it was changed.
#[tracing::instrument(name = "users.set_password", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "users.set_password"))]
pub async fn set_password(
    on: &impl ConnectionTrait,
    id: &UserId,
    hash: &str,
    version: Option<i64>,
) -> Result<bool, StoreError> {
    let result = on
        .execute_raw(statement(
            "UPDATE users SET password_hash = $2, password_version = password_version + 1
             WHERE id = $1 AND password_version = COALESCE($3, password_version)",
            [id.as_str().into(), hash.into(), version.into()],
        ))
        .await?;
    Ok(result.rows_affected() > 0)
}

/// Holds every administrator's row until the transaction ends, so that two removals
/// cannot each count on the other's; answers how many there are besides `id`.
#[tracing::instrument(name = "users.lock_admins", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "users.lock_admins"))]
pub async fn lock_other_admins(on: &impl ConnectionTrait, id: &UserId) -> Result<u64, StoreError> {
    let rows = on
        .query_all_raw(statement(
            "SELECT id FROM users WHERE role = 'admin' ORDER BY id FOR UPDATE",
            [],
        ))
        .await?;
    let mut others = 0;
    for row in rows {
        others += u64::from(row.try_get::<String>("", "id")? != id.as_str());
    }
    Ok(others)
}

#[tracing::instrument(name = "users.delete", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "users.delete"))]
pub async fn delete(on: &impl ConnectionTrait, id: &UserId) -> Result<bool, StoreError> {
    let result = on
        .execute_raw(statement(
            "DELETE FROM users WHERE id = $1",
            [id.as_str().into()],
        ))
        .await?;
    Ok(result.rows_affected() > 0)
}

#[tracing::instrument(name = "users.is_empty", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "users.is_empty"))]
pub async fn is_empty(on: &impl ConnectionTrait) -> Result<bool, StoreError> {
    Ok(on
        .query_one_raw(statement("SELECT 1 FROM users LIMIT 1", []))
        .await?
        .is_none())
}

/// Replicas that start together take turns; held until the transaction ends.
#[tracing::instrument(name = "users.lock_bootstrap", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "users.lock_bootstrap"))]
pub async fn lock_bootstrap(on: &impl ConnectionTrait) -> Result<(), StoreError> {
    on.execute_raw(statement(
        "SELECT pg_advisory_xact_lock(hashtext('agentbox.auth.bootstrap'))",
        [],
    ))
    .await?;
    Ok(())
}
