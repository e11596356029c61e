//! SQL of table `user_deletions`.

use std::time::Duration;

use agentbox_contracts::ids::UserId;
use sea_orm::ConnectionTrait;

use super::Next;
use crate::error::StoreError;
use crate::sql::{seconds, statement};
use crate::user::store::parse_id;

pub struct Deletion {
    pub user: UserId,
    pub was_told: bool,
    /// This one included.
    pub attempts: i32,
}

#[tracing::instrument(name = "user_deletions.insert", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "user_deletions.insert"))]
pub async fn insert(on: &impl ConnectionTrait, user: &UserId) -> Result<(), StoreError> {
    on.execute_raw(statement(
        "INSERT INTO user_deletions (user_id) VALUES ($1)",
        [user.as_str().into()],
    ))
    .await?;
    Ok(())
}

/// The most overdue deletion, hidden from other workers for `lease`.
#[tracing::instrument(name = "user_deletions.claim", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "user_deletions.claim"))]
pub async fn claim(
    on: &impl ConnectionTrait,
    lease: Duration,
) -> Result<Option<Deletion>, StoreError> {
    let row = on
        .query_one_raw(statement(
            "UPDATE user_deletions
             SET attempts = attempts + 1, next_attempt_at = now() + make_interval(secs => $1)
             WHERE user_id = (SELECT user_id FROM user_deletions WHERE next_attempt_at <= now()
                              ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED)
             RETURNING user_id, told_at IS NOT NULL AS was_told, attempts",
            [seconds(lease)],
        ))
        .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    Ok(Some(Deletion {
        user: parse_id(&row.try_get::<String>("", "user_id")?)?,
        was_told: row.try_get("", "was_told")?,
        attempts: row.try_get("", "attempts")?,
    }))
}

#[tracing::instrument(name = "user_deletions.settle", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "user_deletions.settle"))]
pub async fn settle(
    on: &impl ConnectionTrait,
    user: &UserId,
    next: &Next,
) -> Result<(), StoreError> {
    let id = user.as_str().into();
    on.execute_raw(match next {
        Next::Done => statement("DELETE FROM user_deletions WHERE user_id = $1", [id]),
        Next::Retry(after) => statement(
            "UPDATE user_deletions SET next_attempt_at = now() + make_interval(secs => $2)
             WHERE user_id = $1",
            [id, seconds(*after)],
        ),
        Next::Confirm(after) => statement(
            "UPDATE user_deletions
             SET told_at = now(), next_attempt_at = now() + make_interval(secs => $2)
             WHERE user_id = $1",
            [id, seconds(*after)],
        ),
    })
    .await?;
    Ok(())
}
