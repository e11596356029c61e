//! The size of a pool: the requests that decide it, and the starts that failed.
//!
//! * I1. A request is a row of its own until it is counted, so that creates do not wait for a counter.

use std::time::Duration;

use agentbox_contracts::pool::MissReason;
use agentbox_database::sql::{seconds, statement, unsigned};
use sea_orm::ConnectionTrait as _;

use super::pools::{CLAIMED, PoolRow};
use super::{Store, StoreError};

/// How long requests are kept one by one: the period that decides how many boxes a pool keeps.
const DEMAND_PERIOD: Duration = Duration::from_secs(300);
/// The longest pause between starts that fail, in seconds.
const MAX_START_PAUSE_S: f64 = 300.0;

impl Store {
    /// The requests that a box of the pool could have served, in each of the last minutes.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pool_demand(&self, pool: &str) -> Result<Vec<u64>, StoreError> {
        let demand = statement(
            "SELECT count(*) AS requests FROM pool_requests
             WHERE pool = $1 AND requested_at > now() - make_interval(secs => $2)
                AND outcome IN ($3, $4)
             GROUP BY floor(extract(epoch FROM now() - requested_at) / 60)",
            [
                pool.into(),
                seconds(DEMAND_PERIOD),
                CLAIMED.into(),
                MissReason::Empty.as_str().into(),
            ],
        );
        let rows = self.database.query_all_raw(demand).await?;
        let counts = rows.iter().map(|row| unsigned(row, "requests"));
        Ok(counts.collect::<Result<_, _>>()?)
    }

    /// Adds the requests that no longer decide the size of a pool to its totals.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn count_pool_requests(&self) -> Result<(), StoreError> {
        let count = statement(
            "WITH counted AS (
                DELETE FROM pool_requests
                WHERE requested_at < now() - make_interval(secs => $1)
                RETURNING pool, outcome
             )
             INSERT INTO pool_totals (pool, outcome, requests)
             SELECT pool, outcome, count(*) FROM counted
             WHERE pool IN (SELECT name FROM pools) GROUP BY pool, outcome
             ON CONFLICT (pool, outcome) DO UPDATE
                SET requests = pool_totals.requests + excluded.requests",
            [seconds(DEMAND_PERIOD)],
        );
        self.database.execute_raw(count).await?;
        Ok(())
    }

    /// Records how many boxes a pool keeps ready.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_pool_target(&self, pool: &PoolRow, target: u32) -> Result<(), StoreError> {
        if pool.target == target {
            return Ok(());
        }
        let set = statement(
            "UPDATE pools SET target = $3 WHERE name = $1 AND revision = $2",
            [
                pool.name.as_str().into(),
                pool.revision.into(),
                i64::from(target).into(),
            ],
        );
        self.database.execute_raw(set).await?;
        Ok(())
    }

    /// Records that a box of a pool was not started, and postpones the next start: by 2, 4, 8 seconds
    /// and so on, at most five minutes.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pool_start_failed(
        &self,
        pool: &str,
        revision: i64,
        message: &str,
    ) -> Result<(), StoreError> {
        let failed = statement(
            "UPDATE pools SET failures = failures + 1, last_error = $3,
                retry_at = now() + make_interval(
                    secs => least(power(2::float8, least(failures + 1, 16)::float8), $4))
             WHERE name = $1 AND revision = $2",
            [
                pool.into(),
                revision.into(),
                message.into(),
                MAX_START_PAUSE_S.into(),
            ],
        );
        self.database.execute_raw(failed).await?;
        Ok(())
    }

    /// Records that a box of a pool was started.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pool_started(&self, pool: &str, revision: i64) -> Result<(), StoreError> {
        let started = statement(
            "UPDATE pools SET failures = 0, retry_at = NULL, last_error = NULL
             WHERE name = $1 AND revision = $2 AND last_error IS NOT NULL",
            [pool.into(), revision.into()],
        );
        self.database.execute_raw(started).await?;
        Ok(())
    }
}
