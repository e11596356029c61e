//! Who works on which environment now.
//!
//! Fencing makes it correct when two do; a claim makes it cheap, since only one does. A
//! claim that is not renewed runs out, so a killed holder delays its work by no more than
//! [`LEASE`].

use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_database::sql::{seconds, statement as sql};
use sea_orm::ConnectionTrait;

use super::{Store, StoreError};

/// How long a claim lasts without being renewed.
pub const LEASE: Duration = Duration::from_secs(5);

/// The outcome of asking for an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    Ours,
    /// Somebody has it, and was told to go round again.
    Taken,
    /// Nothing is left to do for it.
    Done,
}

/// What a holder learns when it renews.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub generation: i64,
}

impl Store {
    /// Asks for an environment in the name of `holder`, which is unique to this claim.
    ///
    /// # Errors
    /// When the database fails.
    #[tracing::instrument(name = "postgres claim", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE"))]
    pub async fn claim(&self, id: &EnvironmentId, holder: &str) -> Result<Claim, StoreError> {
        let statement = sql(
            "UPDATE drives SET
                holder = CASE WHEN free THEN $2 ELSE drives.holder END,
                until = CASE WHEN free THEN now() + make_interval(secs => $3) ELSE drives.until END,
                due_at = CASE WHEN free THEN now() + make_interval(secs => $3) ELSE due_at END,
                again = NOT free
             FROM (
                SELECT environment_id AS id, holder IS NULL OR until < now() AS free
                FROM drives WHERE environment_id = $1 FOR UPDATE
             ) AS held
             WHERE environment_id = held.id
             RETURNING drives.holder = $2 AS ours",
            [id.as_str().into(), holder.into(), seconds(LEASE)],
        );
        match self.database.query_one_raw(statement).await? {
            None => Ok(Claim::Done),
            Some(row) if row.try_get("", "ours")? => Ok(Claim::Ours),
            Some(_) => Ok(Claim::Taken),
        }
    }

    /// Keeps a claim. `None`: it was lost, or nothing is left to do.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn renew(
        &self,
        id: &EnvironmentId,
        holder: &str,
    ) -> Result<Option<Held>, StoreError> {
        let statement = sql(
            "UPDATE drives SET until = now() + make_interval(secs => $3),
                due_at = now() + make_interval(secs => $3)
             FROM environments
             WHERE environment_id = $1 AND holder = $2 AND environments.id = $1
             RETURNING environments.generation",
            [id.as_str().into(), holder.into(), seconds(LEASE)],
        );
        let row = self.database.query_one_raw(statement).await?;
        Ok(row
            .map(|row| row.try_get("", "generation"))
            .transpose()?
            .map(|generation| Held { generation }))
    }

    /// Gives a claim back, to be looked at again after `due`. True: something happened
    /// meanwhile, and the claim is still ours.
    ///
    /// # Errors
    /// When the database fails.
    #[tracing::instrument(name = "postgres release", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE"))]
    pub async fn release(
        &self,
        id: &EnvironmentId,
        holder: &str,
        due: Option<Duration>,
    ) -> Result<bool, StoreError> {
        let statement = sql(
            "UPDATE drives SET again = false,
                holder = CASE WHEN again THEN holder END,
                until = CASE WHEN again THEN now() + make_interval(secs => $4) END,
                due_at = CASE
                    WHEN again THEN now() + make_interval(secs => $4)
                    ELSE now() + make_interval(secs => $3)
                END
             WHERE environment_id = $1 AND holder = $2
             RETURNING holder IS NOT NULL AS again",
            [
                id.as_str().into(),
                holder.into(),
                due.map(|due| due.as_secs_f64()).into(),
                seconds(LEASE),
            ],
        );
        match self.database.query_one_raw(statement).await? {
            Some(row) => Ok(row.try_get("", "again")?),
            None => Ok(false),
        }
    }

    /// Takes up to `limit` environments of `cluster` that are due, and puts their next
    /// time off so that no other replica takes the same.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn due(&self, cluster: &str, limit: u32) -> Result<Vec<EnvironmentId>, StoreError> {
        let statement = sql(
            "UPDATE drives SET due_at = now() + make_interval(secs => $3)
             WHERE environment_id IN (
                SELECT environment_id FROM drives
                WHERE due_at <= now() AND cluster = $1
                ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
             )
             RETURNING environment_id",
            [cluster.into(), i64::from(limit).into(), seconds(LEASE)],
        );
        self.environment_ids(statement).await
    }
}
