//! Queries of table `user_deletions`.

use std::time::Duration;

use agentbox_contracts::ids::UserId;
use agentbox_database::sql::{from_now, seconds, statement};
use agentbox_database::{Text, span};
use sea_orm::prelude::Expr;
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, FromQueryResult, QueryFilter, Set};
use tracing::Instrument;

use super::Next;
use crate::entity::user_deletions::{ActiveModel, Column, Entity, Model};
use crate::store::StoreError;

/// Claims the most overdue deletion. Raw, because of `SKIP LOCKED` in an `UPDATE`: reading
/// and claiming are one statement, and workers do not wait for each other.
const CLAIM: &str = "
    UPDATE user_deletions
    SET attempts = attempts + 1, next_attempt_at = now() + make_interval(secs => $1)
    WHERE user_id = (SELECT user_id FROM user_deletions WHERE next_attempt_at <= now()
                     ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING *";

/// Records that a user was deleted.
pub async fn insert(on: &impl ConnectionTrait, user: &UserId) -> Result<(), StoreError> {
    let deletion = ActiveModel {
        user_id: Set(Text(user.clone())),
        ..Default::default()
    };
    let insert = Entity::insert(deletion).exec_without_returning(on);
    insert.instrument(span!(INSERT user_deletions)).await?;
    Ok(())
}

/// Claims the most overdue deletion: it is not due for `lease`, and `attempts` includes this
/// attempt. `None`: none is due.
pub async fn claim(
    on: &impl ConnectionTrait,
    lease: Duration,
) -> Result<Option<Model>, StoreError> {
    let claim = Model::find_by_statement(statement(CLAIM, [seconds(lease)])).one(on);
    Ok(claim.instrument(span!(UPDATE user_deletions)).await?)
}

/// Writes the outcome of one attempt.
pub async fn settle(
    on: &impl ConnectionTrait,
    user: &UserId,
    next: &Next,
) -> Result<(), StoreError> {
    let mut update = Entity::update_many().filter(Column::UserId.eq(user.as_str()));
    match next {
        Next::Done => {
            let delete = Entity::delete_by_id(user.clone()).exec(on);
            delete.instrument(span!(DELETE user_deletions)).await?;
            return Ok(());
        }
        Next::Retry(after) => {
            update = update.col_expr(Column::NextAttemptAt, from_now(*after));
        }
        Next::Confirm(after) => {
            update = update
                .col_expr(Column::NextAttemptAt, from_now(*after))
                .col_expr(Column::AcknowledgedAt, Expr::current_timestamp());
        }
    }
    let update = update.exec(on);
    update.instrument(span!(UPDATE user_deletions)).await?;
    Ok(())
}
