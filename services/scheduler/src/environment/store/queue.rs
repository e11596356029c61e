//! The reconcile queue: a row for each environment that needs work, with the time when it is due
//! and the holder of its claim.
//!
//! A claim makes one reconciler at a time work on an environment. Two would be correct too,
//! because of fencing. A claim that is not renewed expires, so a killed holder delays its work by
//! at most [`LEASE`].

use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_database::span;
use agentbox_database::sql::{seconds, statement};
use sea_orm::ConnectionTrait;
use tracing::Instrument as _;

use super::{Store, StoreError};

/// How long a claim lasts without being renewed.
pub const LEASE: Duration = Duration::from_secs(5);

/// The answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    Acquired,
    /// Another holder has it, and reconciles once more after this request.
    HeldElsewhere,
    /// It is not in the queue: nothing is left to do.
    NotQueued,
}

/// What a holder reads when it renews its claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimRenewal {
    /// The environment's generation now.
    pub generation: i64,
}

impl Store {
    /// Claims an environment for `holder`, which is unique to this claim.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn claim(&self, id: &EnvironmentId, holder: &str) -> Result<Claim, StoreError> {
        let claim = statement(
            "UPDATE reconcile_queue AS queued SET
                holder = CASE WHEN free THEN $2 ELSE queued.holder END,
                claim_expires_at = CASE WHEN free
                    THEN now() + make_interval(secs => $3) ELSE queued.claim_expires_at END,
                due_at = CASE WHEN free THEN now() + make_interval(secs => $3) ELSE due_at END,
                requeue = NOT free
             FROM (
                SELECT environment_id AS id, holder IS NULL OR claim_expires_at < now() AS free
                FROM reconcile_queue WHERE environment_id = $1 FOR UPDATE
             ) AS current
             WHERE environment_id = current.id
             RETURNING queued.holder = $2 AS acquired",
            [id.as_str().into(), holder.into(), seconds(LEASE)],
        );
        let claimed = self.database.query_one_raw(claim);
        match claimed.instrument(span!(UPDATE reconcile_queue)).await? {
            None => Ok(Claim::NotQueued),
            Some(row) if row.try_get("", "acquired")? => Ok(Claim::Acquired),
            Some(_) => Ok(Claim::HeldElsewhere),
        }
    }

    /// Makes an environment due now; again after the current reconcile, if there is one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn reconcile_now(&self, id: &EnvironmentId) -> Result<(), StoreError> {
        let now = statement(
            "UPDATE reconcile_queue SET requeue = holder IS NOT NULL, due_at = now()
             WHERE environment_id = $1",
            [id.as_str().into()],
        );
        let now = self.database.execute_raw(now);
        now.instrument(span!(UPDATE reconcile_queue)).await?;
        Ok(())
    }

    /// Renews a claim. `None`: it was lost, or nothing is left to do.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn renew(
        &self,
        id: &EnvironmentId,
        holder: &str,
    ) -> Result<Option<ClaimRenewal>, StoreError> {
        let renew = statement(
            "UPDATE reconcile_queue SET claim_expires_at = now() + make_interval(secs => $3),
                due_at = now() + make_interval(secs => $3)
             FROM environments
             WHERE environment_id = $1 AND holder = $2 AND environments.id = $1
             RETURNING environments.generation",
            [id.as_str().into(), holder.into(), seconds(LEASE)],
        );
        let row = self.database.query_one_raw(renew).await?;
        Ok(row
            .map(|row| row.try_get("", "generation"))
            .transpose()?
            .map(|generation| ClaimRenewal { generation }))
    }

    /// Releases a claim; the environment is due again after `due`. True: it was requeued
    /// meanwhile, and the claim is still held.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn release(
        &self,
        id: &EnvironmentId,
        holder: &str,
        due: Option<Duration>,
    ) -> Result<bool, StoreError> {
        let release = statement(
            "UPDATE reconcile_queue SET requeue = false,
                holder = CASE WHEN requeue THEN holder END,
                claim_expires_at = CASE WHEN requeue THEN now() + make_interval(secs => $4) END,
                due_at = CASE
                    WHEN requeue THEN now() + make_interval(secs => $4)
                    ELSE now() + make_interval(secs => $3)
                END
             WHERE environment_id = $1 AND holder = $2
             RETURNING holder IS NOT NULL AS held",
            [
                id.as_str().into(),
                holder.into(),
                due.map(|due| due.as_secs_f64()).into(),
                seconds(LEASE),
            ],
        );
        let released = self.database.query_one_raw(release);
        match released.instrument(span!(UPDATE reconcile_queue)).await? {
            Some(row) => Ok(row.try_get("", "held")?),
            None => Ok(false),
        }
    }

    /// Takes up to `limit` due environments of `cluster`, and postpones their due time so
    /// that no other replica takes them as well.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn take_due(
        &self,
        cluster: &str,
        limit: u32,
    ) -> Result<Vec<EnvironmentId>, StoreError> {
        let due = statement(
            "UPDATE reconcile_queue SET due_at = now() + make_interval(secs => $3)
             WHERE environment_id IN (
                SELECT environment_id FROM reconcile_queue
                WHERE due_at <= now() AND cluster = $1
                ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
             )
             RETURNING environment_id",
            [cluster.into(), i64::from(limit).into(), seconds(LEASE)],
        );
        self.environment_ids(due).await
    }
}
