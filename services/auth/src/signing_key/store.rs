//! SQL of table `signing_keys`.

use sea_orm::{ConnectionTrait, QueryResult};

use super::rules::Lifetime;
use crate::error::StoreError;
use crate::sql::statement;

pub struct StoredKey {
    pub kid: String,
    /// The private seed, encrypted.
    pub sealed_seed: Vec<u8>,
    pub public_key: Vec<u8>,
    pub lifetime: Lifetime,
}

fn read(row: &QueryResult) -> Result<StoredKey, StoreError> {
    Ok(StoredKey {
        kid: row.try_get("", "kid")?,
        sealed_seed: row.try_get("", "sealed_seed")?,
        public_key: row.try_get("", "public_key")?,
        lifetime: Lifetime {
            created_at: row.try_get("", "created_at")?,
            signs_until: row.try_get("", "signs_until")?,
            not_after: row.try_get("", "not_after")?,
        },
    })
}

/// All keys, newest first: a handful.
#[tracing::instrument(name = "signing_keys.all", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "signing_keys.all"))]
pub async fn all(on: &impl ConnectionTrait) -> Result<Vec<StoredKey>, StoreError> {
    on.query_all_raw(statement(
        "SELECT kid, sealed_seed, public_key, created_at, signs_until, not_after
         FROM signing_keys ORDER BY created_at DESC, kid",
        [],
    ))
    .await?
    .iter()
    .map(read)
    .collect()
}

/// One replica at a time until the transaction ends.
#[tracing::instrument(name = "signing_keys.lock", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "signing_keys.lock"))]
pub async fn lock(on: &impl ConnectionTrait) -> Result<(), StoreError> {
    on.execute_raw(statement(
        "SELECT pg_advisory_xact_lock(hashtext('agentbox.auth.signing-keys'))",
        [],
    ))
    .await?;
    Ok(())
}

#[tracing::instrument(name = "signing_keys.insert", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "signing_keys.insert"))]
pub async fn insert(on: &impl ConnectionTrait, key: &StoredKey) -> Result<(), StoreError> {
    on.execute_raw(statement(
        "INSERT INTO signing_keys (kid, sealed_seed, public_key, created_at, signs_until, not_after)
         VALUES ($1, $2, $3, $4, $5, $6)",
        [
            key.kid.clone().into(),
            key.sealed_seed.clone().into(),
            key.public_key.clone().into(),
            key.lifetime.created_at.into(),
            key.lifetime.signs_until.into(),
            key.lifetime.not_after.into(),
        ],
    ))
    .await?;
    Ok(())
}
