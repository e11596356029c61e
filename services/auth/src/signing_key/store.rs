//! Queries of table `signing_keys`.

use agentbox_database::span;
use agentbox_database::sql::advisory_lock;
use sea_orm::{ConnectionTrait, DatabaseTransaction, EntityTrait, IntoActiveModel, QueryOrder};
use tracing::Instrument;

use super::rules::Lifetime;
use crate::entity::signing_keys::{Column, Entity, Model};
use crate::store::{ADVISORY_LOCK, StoreError};

impl From<&Model> for Lifetime {
    fn from(key: &Model) -> Self {
        Self {
            created_at: key.created_at,
            signs_until: key.signs_until,
            not_after: key.not_after,
        }
    }
}

/// All keys, newest first. There are few.
pub async fn all(on: &impl ConnectionTrait) -> Result<Vec<Model>, StoreError> {
    let all = Entity::find()
        .order_by_desc(Column::CreatedAt)
        .order_by_asc(Column::Kid)
        .all(on);
    Ok(all.instrument(span!(SELECT signing_keys)).await?)
}

/// Lets one replica at a time rotate, until the transaction ends.
pub async fn lock(transaction: &DatabaseTransaction) -> Result<(), StoreError> {
    let lock = advisory_lock(transaction, ADVISORY_LOCK, "signing-keys");
    Ok(lock.instrument(span!(SELECT signing_keys)).await?)
}

pub async fn insert(on: &impl ConnectionTrait, key: &Model) -> Result<(), StoreError> {
    let insert = Entity::insert(key.clone().into_active_model()).exec_without_returning(on);
    insert.instrument(span!(INSERT signing_keys)).await?;
    Ok(())
}
