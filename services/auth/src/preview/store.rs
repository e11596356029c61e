//! Queries of table `previews`. They find no expired row.

use agentbox_contracts::ids::{EnvironmentId, PreviewId};
use agentbox_database::secret::Digest;
use agentbox_database::span;
use agentbox_database::sql::statement;
use sea_orm::prelude::Expr;
use sea_orm::sea_query::ExprTrait;
use sea_orm::{
    ColumnTrait, ConnectionTrait, EntityTrait, IntoActiveModel, PaginatorTrait, QueryFilter,
    QueryOrder, QuerySelect, Select,
};
use tracing::Instrument;

use crate::entity::previews::{Column, Entity, Model};
use crate::store::{StoreError, page_limit, page_offset};

/// Replaces the link by a cookie. Of two concurrent requests, the second finds no link.
const USE_LINK: &str = "
    UPDATE previews SET link_hash = NULL, cookie_hash = $3
    WHERE id = $1 AND link_hash = $2 AND expires_at > now()";

fn of(environment: &EnvironmentId) -> Select<Entity> {
    Entity::find()
        .filter(Column::Environment.eq(environment.as_str()))
        .filter(Column::ExpiresAt.into_expr().gt(Expr::current_timestamp()))
}

/// Counts the previews of an environment.
pub async fn count(
    on: &impl ConnectionTrait,
    environment: &EnvironmentId,
) -> Result<u64, StoreError> {
    let count = of(environment).count(on);
    Ok(count.instrument(span!(SELECT previews)).await?)
}

/// Inserts a preview.
///
/// # Errors
/// A foreign key violation when the user or the credential was deleted.
pub async fn insert(on: &impl ConnectionTrait, row: Model) -> Result<(), StoreError> {
    let row = row.into_active_model();
    let insert = Entity::insert(row).exec_without_returning(on);
    insert.instrument(span!(INSERT previews)).await?;
    Ok(())
}

/// A page of an environment's previews, newest first, and the total of all pages.
pub async fn page(
    on: &impl ConnectionTrait,
    environment: &EnvironmentId,
    limit: u32,
    offset: u64,
) -> Result<(Vec<Model>, u64), StoreError> {
    let rows = of(environment)
        .order_by_desc(Column::CreatedAt)
        .order_by_desc(Column::Id)
        .limit(page_limit(limit))
        .offset(page_offset(offset))
        .all(on);
    let rows = rows.instrument(span!(SELECT previews)).await?;
    let total = count(on, environment).await?;
    Ok((rows, total))
}

/// Finds a preview.
pub async fn find(on: &impl ConnectionTrait, id: &PreviewId) -> Result<Option<Model>, StoreError> {
    let find = Entity::find_by_id(id.clone())
        .filter(Column::ExpiresAt.into_expr().gt(Expr::current_timestamp()))
        .one(on);
    Ok(find.instrument(span!(SELECT previews)).await?)
}

/// Deletes a preview. False: the environment has no such preview.
pub async fn delete(
    on: &impl ConnectionTrait,
    environment: &EnvironmentId,
    id: &PreviewId,
) -> Result<bool, StoreError> {
    let delete = Entity::delete_many()
        .filter(Column::Id.eq(id.as_str()))
        .filter(Column::Environment.eq(environment.as_str()))
        .exec(on);
    let deleted = delete.instrument(span!(DELETE previews)).await?;
    Ok(deleted.rows_affected > 0)
}

/// Uses the link up. False: it was used before, or is another one.
pub async fn use_link(
    on: &impl ConnectionTrait,
    id: &PreviewId,
    link: &Digest,
    cookie: &Digest,
) -> Result<bool, StoreError> {
    let values = [
        id.as_str().into(),
        link.to_vec().into(),
        cookie.to_vec().into(),
    ];
    let update = on.execute_raw(statement(USE_LINK, values));
    let updated = update.instrument(span!(UPDATE previews)).await?;
    Ok(updated.rows_affected() > 0)
}
