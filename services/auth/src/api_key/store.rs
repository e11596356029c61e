//! SQL of tables `api_keys` and `api_key_permissions`.

use agentbox_contracts::identity::rpc::CreateKeyRequest;
use agentbox_contracts::identity::{ApiKey, EnvironmentPermission, Scope};
use agentbox_contracts::ids::{ApiKeyId, UserId};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, QueryResult};
use serde_json::{Value, json};

use crate::error::StoreError;
use crate::principal::{Live, live};
use crate::secret::Digest;
use crate::sql::{bigint, count, statement};
use crate::user::store::parse_id;

/// The most rows one page holds.
const MAX_PAGE: u32 = 1_000;

/// A key's permissions in one column, so that a key is one query.
const PERMISSIONS: &str = "COALESCE((SELECT jsonb_agg(jsonb_build_object(
        'environment_id', p.environment_id, 'permission', p.permission) ORDER BY p.position)
    FROM api_key_permissions p WHERE p.key_id = k.id), '[]') AS permissions";

fn permissions(row: &QueryResult) -> Result<Vec<EnvironmentPermission>, StoreError> {
    serde_json::from_value(row.try_get::<Value>("", "permissions")?)
        .map_err(|error| StoreError::corrupt("permission", error))
}

fn read(row: &QueryResult) -> Result<ApiKey, StoreError> {
    Ok(ApiKey {
        id: row
            .try_get::<String>("", "id")?
            .parse()
            .map_err(|error| StoreError::corrupt("key id", error))?,
        owner: parse_id(&row.try_get::<String>("", "owner")?)?,
        description: row.try_get("", "description")?,
        created_at: row.try_get("", "created_at")?,
        expires_at: row.try_get("", "expires_at")?,
        last_used_at: row.try_get("", "last_used_at")?,
        permissions: permissions(row)?,
    })
}

/// How many live keys the owner has; no more come until the transaction ends. `None`: no
/// such user.
#[tracing::instrument(name = "api_keys.count", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "api_keys.count"))]
pub async fn lock_owner_and_count(
    on: &impl ConnectionTrait,
    owner: &UserId,
) -> Result<Option<u64>, StoreError> {
    let owned = on
        .query_one_raw(statement(
            "SELECT 1 FROM users WHERE id = $1 FOR NO KEY UPDATE",
            [owner.as_str().into()],
        ))
        .await?;
    if owned.is_none() {
        return Ok(None);
    }
    let row = on
        .query_one_raw(statement(
            "SELECT count(*) AS total FROM api_keys WHERE owner = $1 AND revoked_at IS NULL
             AND (expires_at IS NULL OR expires_at > now())",
            [owner.as_str().into()],
        ))
        .await?;
    Ok(row
        .map(|row| row.try_get::<i64>("", "total"))
        .transpose()?
        .map(count))
}

#[tracing::instrument(name = "api_keys.insert", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "api_keys.insert"))]
pub async fn insert(
    on: &impl ConnectionTrait,
    id: &ApiKeyId,
    hash: &Digest,
    request: CreateKeyRequest,
    expires_at: Option<DateTime<Utc>>,
) -> Result<ApiKey, StoreError> {
    let row = on
        .query_one_raw(statement(
            "INSERT INTO api_keys (id, owner, hash, description, expires_at)
             VALUES ($1, $2, $3, $4, $5) RETURNING created_at, expires_at",
            [
                id.as_str().into(),
                request.owner.as_str().into(),
                hash.to_vec().into(),
                request.description.clone().into(),
                expires_at.into(),
            ],
        ))
        .await?
        .ok_or_else(|| StoreError::corrupt("API key", "the insert returned no row"))?;
    on.execute_raw(statement(
        "INSERT INTO api_key_permissions (key_id, environment_id, permission, position)
         SELECT $1, p.value ->> 'environment_id', p.value ->> 'permission', p.ordinality
         FROM jsonb_array_elements($2) WITH ORDINALITY AS p",
        [id.as_str().into(), json!(request.permissions).into()],
    ))
    .await?;
    Ok(ApiKey {
        id: id.clone(),
        owner: request.owner,
        description: request.description,
        created_at: row.try_get("", "created_at")?,
        expires_at: row.try_get("", "expires_at")?,
        last_used_at: None,
        permissions: request.permissions,
    })
}

/// Newest first, and how many there are in all; revoked ones are gone, expired ones show.
#[tracing::instrument(name = "api_keys.page", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "api_keys.page"))]
pub async fn page(
    on: &impl ConnectionTrait,
    owner: &UserId,
    limit: u32,
    offset: u64,
) -> Result<(Vec<ApiKey>, u64), StoreError> {
    let sql = format!(
        "SELECT k.id, k.owner, k.description, k.created_at, k.expires_at, k.last_used_at,
                {PERMISSIONS}
         FROM api_keys k WHERE k.owner = $1 AND k.revoked_at IS NULL
         ORDER BY k.created_at DESC, k.id DESC LIMIT $2 OFFSET $3"
    );
    let keys = on
        .query_all_raw(statement(
            &sql,
            [
                owner.as_str().into(),
                i64::from(limit.min(MAX_PAGE)).into(),
                bigint(offset),
            ],
        ))
        .await?
        .iter()
        .map(read)
        .collect::<Result<_, _>>()?;
    let total = on
        .query_one_raw(statement(
            "SELECT count(*) AS total FROM api_keys WHERE owner = $1 AND revoked_at IS NULL",
            [owner.as_str().into()],
        ))
        .await?;
    let total = total
        .map(|row| row.try_get::<i64>("", "total"))
        .transpose()?
        .unwrap_or_default();
    Ok((keys, count(total)))
}

#[tracing::instrument(name = "api_keys.find", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "api_keys.find"))]
pub async fn find(
    on: &impl ConnectionTrait,
    owner: &UserId,
    id: &ApiKeyId,
) -> Result<Option<ApiKey>, StoreError> {
    let sql = format!(
        "SELECT k.id, k.owner, k.description, k.created_at, k.expires_at, k.last_used_at,
                {PERMISSIONS}
         FROM api_keys k WHERE k.id = $1 AND k.owner = $2 AND k.revoked_at IS NULL"
    );
    on.query_one_raw(statement(&sql, [id.as_str().into(), owner.as_str().into()]))
        .await?
        .map(|row| read(&row))
        .transpose()
}

#[tracing::instrument(name = "api_keys.revoke", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "api_keys.revoke"))]
pub async fn revoke(
    on: &impl ConnectionTrait,
    owner: &UserId,
    id: &ApiKeyId,
) -> Result<bool, StoreError> {
    let result = on
        .execute_raw(statement(
            "UPDATE api_keys SET revoked_at = now()
             WHERE id = $1 AND owner = $2 AND revoked_at IS NULL",
            [id.as_str().into(), owner.as_str().into()],
        ))
        .await?;
    Ok(result.rows_affected() > 0)
}

/// A key that has not ended, with what must match for it to be the caller's.
pub struct LiveKey {
    pub live: Live,
    pub hash: Vec<u8>,
    pub scope: Scope,
}

#[tracing::instrument(name = "api_keys.find_live", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "api_keys.find_live"))]
pub async fn find_live(
    on: &impl ConnectionTrait,
    id: &ApiKeyId,
) -> Result<Option<LiveKey>, StoreError> {
    let sql = format!(
        "SELECT u.id AS user_id, u.username, u.role, k.expires_at, k.hash, {PERMISSIONS}
         FROM api_keys k JOIN users u ON u.id = k.owner
         WHERE k.id = $1 AND k.revoked_at IS NULL
           AND (k.expires_at IS NULL OR k.expires_at > now())"
    );
    let Some(row) = on
        .query_one_raw(statement(&sql, [id.as_str().into()]))
        .await?
    else {
        return Ok(None);
    };
    let permissions = permissions(&row)?;
    let scope = if permissions.is_empty() {
        Scope::Full
    } else {
        Scope::Environments(
            permissions
                .into_iter()
                .map(|p| (p.environment_id, p.permission))
                .collect(),
        )
    };
    Ok(Some(LiveKey {
        live: live(&row)?,
        hash: row.try_get("", "hash")?,
        scope,
    }))
}

/// Notes uses of many keys at once; an earlier time never replaces a later one. The rows
/// are taken in the order of their ids, so that two replicas cannot block each other.
#[tracing::instrument(name = "api_keys.note_uses", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "api_keys.note_uses"))]
pub async fn note_uses(
    on: &impl ConnectionTrait,
    uses: impl Iterator<Item = (&ApiKeyId, &DateTime<Utc>)>,
) -> Result<(), StoreError> {
    let uses: Vec<Value> = uses.map(|(id, at)| json!({ "id": id, "at": at })).collect();
    on.execute_raw(statement(
        "WITH used AS MATERIALIZED (
             SELECT k.id, n.at FROM api_keys k
             JOIN jsonb_to_recordset($1) AS n (id text, at timestamptz) ON n.id = k.id
             ORDER BY k.id FOR NO KEY UPDATE OF k)
         UPDATE api_keys k SET last_used_at = GREATEST(k.last_used_at, used.at)
         FROM used WHERE k.id = used.id",
        [Value::Array(uses).into()],
    ))
    .await?;
    Ok(())
}
