//! Claims of warm boxes by new environments.
//!
//! * I1. A box is taken and its environment written in one transaction. The row of the box is locked
//!   and deleted, and creates skip locked rows, so that no box is taken twice and no create waits for
//!   another one's box. Only when every box is locked, a create waits for the oldest: its row may be
//!   locked for its next observation, which ends at once.
//! * I2. A box is taken only if its cluster reported in the last [`ALIVE_WITHIN`] that it runs.

use std::net::SocketAddr;
use std::time::Duration;

use agentbox_contracts::environment::EventKind;
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::pool::{MissReason, PoolUse};
use agentbox_database::secret::MasterSecret;
use agentbox_database::sql::{advisory_lock, seconds, statement};
use agentbox_database::{begin, span};
use chrono::{DateTime, Utc};
use sea_orm::sea_query::{Expr, Query};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DatabaseTransaction, Iterable as _};
use tracing::Instrument as _;

use super::create::{OWNER_LOCK, insert, replay, usage};
use super::outbox::{OutboxMessage, insert_outbox_rows};
use super::pools::PoolRow;
use super::{Record, Reservation, Store, StoreError, build, is_unchanged};
use crate::environment::creation::Creation;
use crate::environment::entity::{Column, Entity};
use crate::environment::record::CorruptRow;
use crate::environment::warm_claim::WarmClaim;

/// How long after its last observation a box may be claimed. Three times the interval of
/// observations.
pub const ALIVE_WITHIN: Duration = Duration::from_secs(10);
/// How soon an environment whose claim failed is started when its command is lost.
const START_WITHIN: Duration = Duration::from_secs(2);

/// The outcome of a create that matches a pool.
#[derive(Debug)]
pub enum ClaimOutcome {
    /// The environment has claimed a box, which is to be configured.
    Claimed(Box<Record>),
    /// The environment that was created with the idempotency key before.
    Replayed(Box<Record>),
    /// The pool has no box that can be claimed, for this reason.
    Missed(MissReason),
}

/// The boxes of a pool that a create can claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoxNeed {
    Any,
    /// Those whose boxd is root, so that the claim can give them another user.
    Root,
}

/// The boxes of which a create takes one.
#[derive(Clone, Copy)]
struct WantedBox<'create> {
    pool: &'create PoolRow,
    clusters: &'create [String],
    need: BoxNeed,
}

/// A box that was taken from its pool.
struct TakenBox {
    id: EnvironmentId,
    cluster: String,
    address: SocketAddr,
}

impl Store {
    /// Creates the environment of `creation` in a ready box of `pool` in one of `clusters` that is one of
    /// `need`. Without an idempotency key it is on the disk only with the next write: a user is answered after
    /// that.
    ///
    /// # Errors
    /// `QuotaExceeded`, `IdempotencyConflict`, or when the database fails.
    pub async fn create_in_warm_box(
        &self,
        creation: &Creation,
        pool: &PoolRow,
        clusters: &[String],
        need: BoxNeed,
    ) -> Result<ClaimOutcome, StoreError> {
        let wanted = WantedBox {
            pool,
            clusters,
            need,
        };
        create_in_warm_box(&self.database, &self.secret, creation, wanted)
            .instrument(span!(INSERT environments))
            .await
    }

    /// Gives up the claim of `before`, whose box is removed: it is started in a new one, with a new
    /// generation.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when the row is no longer as `before` has it.
    pub async fn abandon_claim(
        &self,
        before: &Record,
        now: DateTime<Utc>,
    ) -> Result<Record, StoreError> {
        let mut missed = before.clone();
        if let Some(pool) = &before.environment.pool {
            missed.environment.pool = Some(PoolUse::miss(&pool.name, MissReason::ClaimFailed));
        }
        let pool = missed.environment.pool.as_ref();
        let span = span!(UPDATE environments);
        let mut update = Query::update();
        update
            .table(Entity)
            .value(Column::Pool, pool.map(serde_json::to_value).transpose()?)
            .value(Column::Claim, None::<String>)
            .value(Column::ClaimAddress, None::<String>)
            .value(Column::Generation, before.environment.generation + 1)
            .and_where(is_unchanged(before))
            .and_where(Expr::cust("claim = 'pending'"))
            .returning(Query::returning().columns(Column::iter()));
        let (update, mut params) = build(&update);
        let messages = [
            OutboxMessage::reconcile(&before.environment.cluster),
            OutboxMessage::Event(missed.event(EventKind::Updated, &missed.state(), now)),
        ];
        // In the span, because the outbox rows continue its trace.
        let outbox_rows =
            span.in_scope(|| insert_outbox_rows("changed", &messages, &mut params))?;
        let pool_name = params.push(pool.map(|pool| pool.name.clone()));
        let outcome = params.push(MissReason::ClaimFailed.as_str());
        let within = params.push(seconds(START_WITHIN));
        let text = format!(
            "WITH changed AS ({update}), outbox_rows AS ({outbox_rows}), requeued AS (
                UPDATE reconcile_queue SET requeue = holder IS NOT NULL,
                    due_at = now() + make_interval(secs => {within})
                FROM changed WHERE environment_id = changed.id
             ), pool_request AS (
                INSERT INTO pool_requests (pool, outcome)
                SELECT {pool_name}, {outcome} FROM changed WHERE {pool_name}::text IS NOT NULL
             )
             SELECT * FROM changed"
        );
        self.write(text, params).instrument(span).await
    }

    /// Records that the cluster has recorded the claim of `before`.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] as in [`Self::abandon_claim`].
    pub async fn mark_claim_recorded(&self, before: &Record) -> Result<Record, StoreError> {
        let mut update = Query::update();
        update
            .table(Entity)
            .value(Column::Claim, None::<String>)
            .and_where(is_unchanged(before))
            .and_where(Expr::cust_with_values(
                "claim = $1",
                [WarmClaim::Unrecorded.as_str()],
            ))
            .returning(Query::returning().columns(Column::iter()));
        let (text, params) = build(&update);
        self.write(text, params)
            .instrument(span!(UPDATE environments))
            .await
    }
}

/// [`Store::create_in_warm_box`], without its span.
async fn create_in_warm_box(
    database: &DatabaseConnection,
    secret: &MasterSecret,
    creation: &Creation,
    wanted: WantedBox<'_>,
) -> Result<ClaimOutcome, StoreError> {
    let owner = &creation.environment.owner;
    let transaction = begin(database).await?;
    // An answer to a repeated key may be sent before the claim has ended.
    match creation.idempotency_key {
        Some(_) => advisory_lock(&transaction, OWNER_LOCK, owner.as_str()).await?,
        None => lock_and_commit_early(&transaction, owner).await?,
    }
    if let Some(replayed) = replay(&transaction, secret, creation).await? {
        transaction.rollback().await?;
        return Ok(ClaimOutcome::Replayed(Box::new(replayed)));
    }
    let used = usage(&transaction, owner).await?;
    creation.quota.check(used, creation.quantities)?;
    let mut taken = take_box(&transaction, wanted, Locked::Skip).await?;
    if taken.is_none() {
        taken = take_box(&transaction, wanted, Locked::Wait).await?;
    }
    let Some(taken) = taken else {
        let reason = miss_reason(&transaction, wanted).await?;
        transaction.rollback().await?;
        return Ok(ClaimOutcome::Missed(reason));
    };
    let mut claimed = creation.in_warm_box(taken.id, taken.cluster, taken.address);
    claimed.environment.pool = Some(PoolUse::hit(&wanted.pool.name));
    let created = insert(&transaction, secret, &claimed, Reservation::Reserved).await?;
    transaction.commit().await?;
    Ok(ClaimOutcome::Claimed(Box::new(created)))
}

/// Takes the lock of `owner`, and lets the commit return before the transaction is on the disk, so that the
/// owner's next create does not wait for the disk too. The write that ends the claim waits for both.
async fn lock_and_commit_early(
    transaction: &DatabaseTransaction,
    owner: &UserId,
) -> Result<(), StoreError> {
    let lock = statement(
        "SELECT set_config('synchronous_commit', 'off', true),
            pg_advisory_xact_lock($1, hashtext($2))",
        [OWNER_LOCK.into(), owner.as_str().into()],
    );
    transaction.query_one_raw(lock).await?;
    Ok(())
}

/// What is done about a box whose row another transaction has locked.
#[derive(Clone, Copy)]
enum Locked {
    Skip,
    Wait,
}

/// Takes the oldest box of `pool` that is ready and alive (I1, I2).
async fn take_box(
    transaction: &DatabaseTransaction,
    wanted: WantedBox<'_>,
    locked: Locked,
) -> Result<Option<TakenBox>, StoreError> {
    let WantedBox {
        pool,
        clusters,
        need,
    } = wanted;
    let lock = match locked {
        Locked::Skip => "SKIP LOCKED",
        Locked::Wait => "",
    };
    let text = format!(
        "WITH chosen AS MATERIALIZED (
            SELECT warm_boxes.id FROM warm_boxes
            JOIN pools ON pools.name = warm_boxes.pool AND pools.revision = warm_boxes.revision
            WHERE warm_boxes.pool = $1 AND warm_boxes.revision = $2
                AND warm_boxes.status = 'ready'
                AND warm_boxes.seen_at > now() - make_interval(secs => $3)
                AND warm_boxes.cluster IN (SELECT jsonb_array_elements_text($4))
                AND (warm_boxes.is_root OR NOT $5)
            ORDER BY warm_boxes.created_at LIMIT 1
            FOR UPDATE OF warm_boxes {lock}
         )
         DELETE FROM warm_boxes USING chosen WHERE warm_boxes.id = chosen.id
         RETURNING warm_boxes.id, warm_boxes.cluster, warm_boxes.address"
    );
    let take = statement(
        text,
        [
            pool.name.as_str().into(),
            pool.revision.into(),
            seconds(ALIVE_WITHIN),
            serde_json::to_value(clusters)?.into(),
            (need == BoxNeed::Root).into(),
        ],
    );
    let Some(row) = transaction.query_one_raw(take).await? else {
        return Ok(None);
    };
    let (id, address): (String, Option<String>) =
        (row.try_get("", "id")?, row.try_get("", "address")?);
    let corrupt = |column, problem: String| CorruptRow {
        id: id.clone(),
        column,
        problem,
    };
    let address = address.unwrap_or_default();
    Ok(Some(TakenBox {
        cluster: row.try_get("", "cluster")?,
        address: address
            .parse()
            .map_err(|_| corrupt("address", format!("`{address}` is not an address")))?,
        id: id
            .parse()
            .map_err(|_| corrupt("id", format!("`{id}` is not an id")))?,
    }))
}

/// Why no box was taken: all ready boxes are ones that the claim cannot give the user, or there is none.
async fn miss_reason(
    transaction: &DatabaseTransaction,
    wanted: WantedBox<'_>,
) -> Result<MissReason, StoreError> {
    let WantedBox { pool, need, .. } = wanted;
    if need == BoxNeed::Any {
        return Ok(MissReason::Empty);
    }
    let others = statement(
        "SELECT 1 FROM warm_boxes
         WHERE pool = $1 AND revision = $2 AND status = 'ready' AND NOT is_root LIMIT 1",
        [pool.name.as_str().into(), pool.revision.into()],
    );
    let others = transaction.query_one_raw(others).await?;
    Ok(match others {
        Some(_) => MissReason::SecurityContext,
        None => MissReason::Empty,
    })
}
