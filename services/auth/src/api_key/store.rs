//! Queries of tables `api_keys` and `api_key_permissions`.

use agentbox_contracts::identity::rpc::CreateKeyRequest;
use agentbox_contracts::identity::{ApiKey, Credential, EnvironmentPermission, Principal, Scope};
use agentbox_contracts::ids::{ApiKeyId, UserId};
use agentbox_database::secret::Digest;
use agentbox_database::sql::statement;
use agentbox_database::{Text, span};
use chrono::{DateTime, Utc};
use sea_orm::prelude::Expr;
use sea_orm::sea_query::{ExprTrait, LockType};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, Condition, ConnectionTrait, DbErr, EntityTrait, FromQueryResult,
    LoaderTrait, PaginatorTrait, QueryFilter, QueryOrder, QuerySelect, Select, Set,
};
use serde_json::{Value, json};
use tracing::Instrument;

use crate::entity::api_keys::{ActiveModel, Column, Entity, Model};
use crate::entity::{api_key_permissions as permissions, users};
use crate::principal::ActiveCredential;
use crate::store::{StoreError, page_limit, page_offset};

/// Reads a key with its user and its permissions. Raw, because every request with a key
/// waits for it: one round trip and one row, however many permissions the key has.
const FIND_ACTIVE: &str = "
    SELECT u.id AS user_id, u.username, u.role, u.limits, u.email, u.created_at,
           k.expires_at, k.hash, k.management,
           COALESCE((SELECT jsonb_agg(jsonb_build_object('environment_id', p.environment_id,
                                                         'permission', p.permission))
                     FROM api_key_permissions p WHERE p.key_id = k.id), '[]') AS permissions
    FROM api_keys k JOIN users u ON u.id = k.owner
    WHERE k.id = $1 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())";

/// Writes the last uses of many keys; an earlier time never replaces a later one. Raw,
/// because one statement updates each row to a value of its own. It locks the rows in the
/// order of their ids, so that two replicas cannot block each other.
const RECORD_USES: &str = "
    WITH used AS MATERIALIZED (
        SELECT k.id, n.at FROM api_keys k
        JOIN jsonb_to_recordset($1) AS n (id text, at timestamptz) ON n.id = k.id
        ORDER BY k.id FOR NO KEY UPDATE OF k)
    UPDATE api_keys k SET last_used_at = GREATEST(k.last_used_at, used.at)
    FROM used WHERE k.id = used.id";

/// Revokes a key and the keys that it made, theirs included. It locks the rows in the order of their
/// ids, as [`RECORD_USES`] does.
const REVOKE: &str = "
    WITH RECURSIVE made AS (
        SELECT id FROM api_keys WHERE id = $1 AND owner = $2 AND revoked_at IS NULL
        UNION SELECT k.id FROM api_keys k JOIN made ON k.created_by = made.id),
    ended AS MATERIALIZED (
        SELECT k.id FROM api_keys k JOIN made ON made.id = k.id
        WHERE k.revoked_at IS NULL ORDER BY k.id FOR NO KEY UPDATE OF k)
    UPDATE api_keys k SET revoked_at = now() FROM ended WHERE k.id = ended.id";

/// Revokes all keys of a user; locks the rows as [`REVOKE`] does.
const REVOKE_ALL: &str = "
    WITH ended AS MATERIALIZED (
        SELECT id FROM api_keys WHERE owner = $1 AND revoked_at IS NULL
        ORDER BY id FOR NO KEY UPDATE)
    UPDATE api_keys k SET revoked_at = now() FROM ended WHERE k.id = ended.id";

/// Finds a key among another key and the keys that made it, their makers included.
const FIND_MAKER: &str = "
    WITH RECURSIVE makers AS (
        SELECT id, created_by FROM api_keys WHERE id = $1
        UNION SELECT k.id, k.created_by FROM api_keys k JOIN makers ON k.id = makers.created_by)
    SELECT id FROM makers WHERE id = $2";

fn api_key(key: Model, permissions: Vec<EnvironmentPermission>) -> ApiKey {
    ApiKey {
        id: key.id.0,
        owner: key.owner.0,
        description: key.description,
        created_at: key.created_at,
        expires_at: key.expires_at,
        last_used_at: key.last_used_at,
        permissions,
        management: key.management,
    }
}

/// The keys of `owner` that were not revoked, expired ones included.
fn keys_of(owner: &UserId) -> Select<Entity> {
    Entity::find()
        .filter(Column::Owner.eq(owner.as_str()))
        .filter(Column::RevokedAt.is_null())
}

/// Locks the owner of keys, so that no other transaction adds or revokes one until this one ends.
/// False: there is no such user.
pub async fn lock_owner(on: &impl ConnectionTrait, owner: &UserId) -> Result<bool, StoreError> {
    let lock = users::Entity::find_by_id(owner.clone())
        .select_only()
        .column(users::Column::Id)
        .lock(LockType::NoKeyUpdate)
        .into_tuple::<Text<UserId>>()
        .one(on);
    Ok(lock.instrument(span!(SELECT users)).await?.is_some())
}

/// Counts the active keys of `owner`.
pub async fn count_active(on: &impl ConnectionTrait, owner: &UserId) -> Result<u64, StoreError> {
    let not_expired = Condition::any()
        .add(Column::ExpiresAt.is_null())
        .add(Column::ExpiresAt.into_expr().gt(Expr::current_timestamp()));
    let count = keys_of(owner).filter(not_expired).count(on);
    Ok(count.instrument(span!(SELECT api_keys)).await?)
}

/// Inserts a key and its permissions.
pub async fn insert(
    on: &impl ConnectionTrait,
    id: &ApiKeyId,
    hash: &Digest,
    request: CreateKeyRequest,
    expires_at: Option<DateTime<Utc>>,
) -> Result<ApiKey, StoreError> {
    let created_by = match request.creator {
        Some(Credential::ApiKey { id }) => Some(Text(id)),
        _ => None,
    };
    let key = ActiveModel {
        id: Set(Text(id.clone())),
        owner: Set(Text(request.owner)),
        hash: Set(hash.to_vec()),
        description: Set(request.description),
        expires_at: Set(expires_at),
        management: Set(request.management),
        created_by: Set(created_by),
        ..Default::default()
    };
    let key = key.insert(on).instrument(span!(INSERT api_keys)).await?;
    let rows = request
        .permissions
        .iter()
        .zip(1..)
        .map(|(given, position)| permissions::ActiveModel {
            key_id: Set(Text(id.clone())),
            environment_id: Set(Text(given.environment_id.clone())),
            permission: Set(Text(given.permission)),
            position: Set(position),
        });
    if !request.permissions.is_empty() {
        let insert = permissions::Entity::insert_many(rows).exec_without_returning(on);
        insert.instrument(span!(INSERT api_key_permissions)).await?;
    }
    Ok(api_key(key, request.permissions))
}

/// A page of the owner's keys, newest first, and the total of all pages.
pub async fn page(
    on: &impl ConnectionTrait,
    owner: &UserId,
    limit: u32,
    offset: u64,
) -> Result<(Vec<ApiKey>, u64), StoreError> {
    let page = async {
        let keys = keys_of(owner)
            .order_by_desc(Column::CreatedAt)
            .order_by_desc(Column::Id)
            .limit(page_limit(limit))
            .offset(page_offset(offset))
            .all(on)
            .await?;
        let by_position = permissions::Entity::find().order_by_asc(permissions::Column::Position);
        let permissions = keys.load_many(by_position, on).await?;
        let total = keys_of(owner).count(on).await?;
        Ok::<_, DbErr>((keys, permissions, total))
    };
    let (keys, permissions, total) = page.instrument(span!(SELECT api_keys)).await?;
    let keys = keys.into_iter().zip(permissions);
    let keys = keys.map(|(key, given)| api_key(key, given.into_iter().map(Into::into).collect()));
    Ok((keys.collect(), total))
}

/// A key of `owner`, with its permissions. `None` when there is none or it was revoked.
pub async fn find(
    on: &impl ConnectionTrait,
    owner: &UserId,
    id: &ApiKeyId,
) -> Result<Option<ApiKey>, StoreError> {
    let find = keys_of(owner)
        .filter(Column::Id.eq(id.as_str()))
        .find_with_related(permissions::Entity)
        .order_by_asc(permissions::Column::Position)
        .all(on);
    let found = find.instrument(span!(SELECT api_keys)).await?;
    let key = found.into_iter().next();
    Ok(key.map(|(key, given)| api_key(key, given.into_iter().map(Into::into).collect())))
}

/// Revokes a key, and the keys that it made. False: `owner` has no such key, or it was revoked
/// before. The caller has locked the owner, so that the key makes no further key meanwhile.
pub async fn revoke(
    on: &impl ConnectionTrait,
    owner: &UserId,
    id: &ApiKeyId,
) -> Result<bool, StoreError> {
    let values = [id.as_str().into(), owner.as_str().into()];
    let revoke = on.execute_raw(statement(REVOKE, values));
    let revoked = revoke.instrument(span!(UPDATE api_keys)).await?;
    Ok(revoked.rows_affected() > 0)
}

/// Revokes every key of `owner`, whom the caller has locked.
pub async fn revoke_all(on: &impl ConnectionTrait, owner: &UserId) -> Result<(), StoreError> {
    let revoke = on.execute_raw(statement(REVOKE_ALL, [owner.as_str().into()]));
    revoke.instrument(span!(UPDATE api_keys)).await?;
    Ok(())
}

/// Whether `maker` is the key `id`, or made it, or made a key that made it.
pub async fn is_made_by(
    on: &impl ConnectionTrait,
    id: &ApiKeyId,
    maker: &ApiKeyId,
) -> Result<bool, StoreError> {
    let values = [id.as_str().into(), maker.as_str().into()];
    let find = on.query_one_raw(statement(FIND_MAKER, values));
    Ok(find.instrument(span!(SELECT api_keys)).await?.is_some())
}

/// A key that is neither expired nor revoked, with the stored hash of its text.
pub struct ActiveKey {
    pub credential: ActiveCredential,
    pub hash: Vec<u8>,
    pub scope: Scope,
    pub management: bool,
}

impl ActiveKey {
    /// The principal of the key, whose id is `id`.
    #[must_use]
    pub fn principal(self, id: ApiKeyId) -> Principal {
        let credential = Credential::ApiKey { id };
        Principal {
            management: self.management,
            ..self.credential.principal(credential, self.scope)
        }
    }
}

#[derive(FromQueryResult)]
struct ActiveKeyRow {
    #[sea_orm(nested)]
    credential: ActiveCredential,
    hash: Vec<u8>,
    management: bool,
    permissions: Value,
}

/// Finds a key that is neither expired nor revoked.
pub async fn find_active(
    on: &impl ConnectionTrait,
    id: &ApiKeyId,
) -> Result<Option<ActiveKey>, StoreError> {
    let find =
        ActiveKeyRow::find_by_statement(statement(FIND_ACTIVE, [id.as_str().into()])).one(on);
    let Some(key) = find.instrument(span!(SELECT api_keys)).await? else {
        return Ok(None);
    };
    let permissions: Vec<EnvironmentPermission> =
        serde_json::from_value(key.permissions).map_err(|error| DbErr::Json(error.to_string()))?;
    let scope = if permissions.is_empty() {
        Scope::Full
    } else {
        let permissions = permissions.into_iter();
        Scope::Environments(
            permissions
                .map(|p| (p.environment_id, p.permission))
                .collect(),
        )
    };
    Ok(Some(ActiveKey {
        credential: key.credential,
        hash: key.hash,
        scope,
        management: key.management,
    }))
}

/// Writes when keys were last used.
pub async fn record_uses(
    on: &impl ConnectionTrait,
    uses: impl Iterator<Item = (&ApiKeyId, &DateTime<Utc>)>,
) -> Result<(), StoreError> {
    let uses: Vec<Value> = uses.map(|(id, at)| json!({ "id": id, "at": at })).collect();
    let record = on.execute_raw(statement(RECORD_USES, [Value::Array(uses).into()]));
    record.instrument(span!(UPDATE api_keys)).await?;
    Ok(())
}
