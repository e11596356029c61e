//! The boxes of warm pools, which no environment has claimed.
//!
//! A row is also a place in a queue: it is due when the box must be started, observed or removed.
//!
//! * I1. A row is written before its box is created, and deleted after its box is removed or by the
//!   claim that takes the box. A box without a row is an orphan.
//! * I2. A draining box stays draining: it is never claimed again.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::pool::PoolSpec;
use agentbox_database::sql::{seconds, statement};
use agentbox_database::{begin, span};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait as _, QueryResult, Statement};
use tracing::Instrument as _;

use super::create::{check_capacity, signed};
use super::pools::PoolRow;
use super::unreadable::UnreadableRows;
use super::{Reservation, Store, StoreError};
use crate::cluster::placement::Allocatable;
use crate::environment::record::CorruptRow;
use crate::environment::request::Quantities;

/// How long a box that was taken from the queue is left alone, unless the lease is renewed.
pub const LEASE: Duration = Duration::from_secs(10);
/// The same of a box that is ready, which is only observed. Short, because the boxes that a killed
/// replica observes are not claimed until another one has seen them.
const OBSERVE_LEASE: Duration = Duration::from_secs(6);
/// How soon a box that was started or seen alive is observed again.
const OBSERVE_INTERVAL: Duration = Duration::from_secs(3);

/// The status of a warm box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarmStatus {
    Starting,
    Ready,
    /// It is being removed.
    Draining,
}

impl WarmStatus {
    /// The value of the column `status`.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "starting" => Some(Self::Starting),
            "ready" => Some(Self::Ready),
            "draining" => Some(Self::Draining),
            _ => None,
        }
    }
}

/// What is done about due boxes. Those that are ready are taken apart from the others, because
/// observing them must not wait for a box that is slow to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarmWork {
    /// Boxes that are ready.
    Observe,
    /// Boxes that are starting or draining.
    StartOrRemove,
}

/// A box of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct WarmBox {
    pub id: EnvironmentId,
    pub pool: String,
    pub revision: i64,
    pub cluster: String,
    /// The definition of its pool when it was started.
    pub spec: PoolSpec,
    pub status: WarmStatus,
    pub image_digest: Option<String>,
    pub created_at: DateTime<Utc>,
}

const COLUMNS: &str = "id, pool, revision, cluster, spec, status, image_digest, created_at";

fn warm_box(row: &QueryResult) -> Result<WarmBox, StoreError> {
    let id: String = row.try_get("", "id")?;
    let corrupt = |column, problem: String| CorruptRow {
        id: id.clone(),
        column,
        problem,
    };
    let spec: serde_json::Value = row.try_get("", "spec")?;
    let spec = serde_json::from_value(spec).map_err(|e| corrupt("spec", e.to_string()))?;
    let status: String = row.try_get("", "status")?;
    let status = WarmStatus::parse(&status)
        .ok_or_else(|| corrupt("status", format!("`{status}` is not a status")))?;
    Ok(WarmBox {
        id: id
            .parse()
            .map_err(|_| corrupt("id", format!("`{id}` is not an id")))?,
        pool: row.try_get("", "pool")?,
        revision: row.try_get("", "revision")?,
        cluster: row.try_get("", "cluster")?,
        spec,
        status,
        image_digest: row.try_get("", "image_digest")?,
        created_at: row.try_get("", "created_at")?,
    })
}

impl Store {
    /// Every warm box, the oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn warm_boxes(&self) -> Result<Vec<WarmBox>, StoreError> {
        let select = format!("SELECT {COLUMNS} FROM warm_boxes ORDER BY created_at, id");
        self.read_warm_boxes(statement(select, [])).await
    }

    /// Takes up to `limit` boxes of `cluster` that are due for `work`, and postpones their due time so
    /// that no other replica takes them as well.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn take_due_warm_boxes(
        &self,
        cluster: &str,
        work: WarmWork,
        limit: u32,
    ) -> Result<Vec<WarmBox>, StoreError> {
        let lease = match work {
            WarmWork::Observe => OBSERVE_LEASE,
            WarmWork::StartOrRemove => LEASE,
        };
        let due = statement(
            format!(
                "UPDATE warm_boxes SET due_at = now() + make_interval(secs => $3)
                 WHERE id IN (
                    SELECT id FROM warm_boxes WHERE due_at <= now() AND cluster = $1
                        AND (status = 'ready') = $4
                    ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
                 )
                 RETURNING {COLUMNS}"
            ),
            [
                cluster.into(),
                i64::from(limit).into(),
                seconds(lease),
                (work == WarmWork::Observe).into(),
            ],
        );
        self.read_warm_boxes(due).await
    }

    /// Runs `statement`. Skips rows that cannot be read.
    async fn read_warm_boxes(&self, statement: Statement) -> Result<Vec<WarmBox>, StoreError> {
        let rows = self.database.query_all_raw(statement).await?;
        let mut boxes = Vec::with_capacity(rows.len());
        let mut unreadable = UnreadableRows::default();
        for row in &rows {
            match warm_box(row) {
                Ok(warm) => boxes.push(warm),
                Err(StoreError::Corrupt(row)) => {
                    let _ = unreadable.skip::<()>(Err(row));
                }
                Err(error) => return Err(error),
            }
        }
        unreadable.report();
        Ok(boxes)
    }

    /// Adds a box to `pool`, in `cluster`, and reserves its capacity. `Waiting`: there is none.
    /// Adds nothing when the pool was changed meanwhile.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn add_warm_box(
        &self,
        id: &EnvironmentId,
        pool: &PoolRow,
        cluster: &str,
        quantities: Quantities,
        allocatable: Allocatable,
    ) -> Result<Reservation, StoreError> {
        let add = async {
            let transaction = begin(&self.database).await?;
            let reservation =
                check_capacity(&transaction, cluster, quantities, allocatable).await?;
            if reservation != Reservation::Reserved {
                transaction.rollback().await?;
                return Ok(reservation);
            }
            let insert = statement(
                "INSERT INTO warm_boxes (id, pool, revision, cluster, spec, cpu_milli,
                    memory_bytes, storage_bytes, status)
                 SELECT $1, name, revision, $4, spec, $5, $6, $7, 'starting' FROM pools
                 WHERE name = $2 AND revision = $3",
                [
                    id.as_str().into(),
                    pool.name.as_str().into(),
                    pool.revision.into(),
                    cluster.into(),
                    signed(quantities.cpu.0).into(),
                    signed(quantities.memory.0).into(),
                    signed(quantities.storage.0).into(),
                ],
            );
            transaction.execute_raw(insert).await?;
            transaction.commit().await?;
            Ok::<_, StoreError>(Reservation::Reserved)
        };
        add.instrument(span!(INSERT warm_boxes)).await
    }

    /// Records that a starting box runs, and whether its boxd is known to be root. False: it is no longer starting.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn mark_warm_box_ready(
        &self,
        id: &EnvironmentId,
        address: SocketAddr,
        image_digest: Option<&str>,
        is_root: bool,
    ) -> Result<bool, StoreError> {
        let ready = statement(
            "UPDATE warm_boxes SET status = 'ready', address = $2, image_digest = $3,
                is_root = $5, seen_at = now(), due_at = now() + make_interval(secs => $4)
             WHERE id = $1 AND status = 'starting'",
            [
                id.as_str().into(),
                address.to_string().into(),
                image_digest.map(ToOwned::to_owned).into(),
                seconds(OBSERVE_INTERVAL),
                is_root.into(),
            ],
        );
        let ready = self.database.execute_raw(ready);
        let ready = ready.instrument(span!(UPDATE warm_boxes)).await?;
        Ok(ready.rows_affected() > 0)
    }

    /// Records that a ready box was seen alive.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn mark_warm_box_seen(&self, id: &EnvironmentId) -> Result<(), StoreError> {
        let seen = statement(
            "UPDATE warm_boxes SET seen_at = now(), due_at = now() + make_interval(secs => $2)
             WHERE id = $1 AND status = 'ready'",
            [id.as_str().into(), seconds(OBSERVE_INTERVAL)],
        );
        self.database.execute_raw(seen).await?;
        Ok(())
    }

    /// Makes a box due now, because its cluster reports a change of it. It is not claimed before it
    /// was seen alive again.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn recheck_warm_box(&self, id: &EnvironmentId) -> Result<(), StoreError> {
        let recheck = statement(
            "UPDATE warm_boxes SET seen_at = NULL, due_at = now()
             WHERE id = $1 AND status = 'ready'",
            [id.as_str().into()],
        );
        self.database.execute_raw(recheck).await?;
        Ok(())
    }

    /// Renews the lease of a box that was taken from the queue. Does nothing when its status has
    /// changed since.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn renew_warm_box(&self, warm: &WarmBox) -> Result<(), StoreError> {
        let renew = statement(
            "UPDATE warm_boxes SET due_at = now() + make_interval(secs => $3)
             WHERE id = $1 AND status = $2",
            [
                warm.id.as_str().into(),
                warm.status.as_str().into(),
                seconds(LEASE),
            ],
        );
        self.database.execute_raw(renew).await?;
        Ok(())
    }

    /// Makes a box due after `after`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn postpone_warm_box(
        &self,
        id: &EnvironmentId,
        after: Duration,
    ) -> Result<(), StoreError> {
        let postpone = statement(
            "UPDATE warm_boxes SET due_at = now() + make_interval(secs => $2) WHERE id = $1",
            [id.as_str().into(), seconds(after)],
        );
        self.database.execute_raw(postpone).await?;
        Ok(())
    }

    /// Lets boxes be removed. Those that were claimed meanwhile are not changed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn drain_warm_boxes(&self, ids: &[EnvironmentId]) -> Result<u64, StoreError> {
        let drain = statement(
            "UPDATE warm_boxes SET status = 'draining', due_at = now()
             WHERE id IN (SELECT jsonb_array_elements_text($1)) AND status <> 'draining'",
            [serde_json::to_value(ids)?.into()],
        );
        let drained = self.database.execute_raw(drain);
        let drained = drained.instrument(span!(UPDATE warm_boxes)).await?;
        Ok(drained.rows_affected())
    }

    /// Deletes the row of a box that is removed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete_warm_box(&self, id: &EnvironmentId) -> Result<(), StoreError> {
        let delete = statement(
            "DELETE FROM warm_boxes WHERE id = $1 AND status = 'draining'",
            [id.as_str().into()],
        );
        self.database.execute_raw(delete).await?;
        Ok(())
    }
}
