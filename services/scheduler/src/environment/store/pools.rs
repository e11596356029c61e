//! Warm pools: their definitions and their states.
//!
//! * I1. A change of a pool's boxes raises its revision. A box of another revision is never claimed.
//! * I2. A change that was asked for and its audit entry are written in one statement.

use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::environment::ResourceRequest;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::{EnvironmentId, RANDOM_LEN};
use agentbox_contracts::pool::{
    MAX_POOLS, MissReason, Pool, PoolSource, PoolSpec, PoolStatus, PoolUse,
};
use agentbox_database::sql::{advisory_lock, bigint, seconds, statement, unsigned};
use agentbox_database::{begin, span};
use agentbox_runtime::image_reference::complete;
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction, QueryResult};
use tracing::Instrument as _;

use super::claims::ALIVE_WITHIN;
use super::messages::audit_message;
use super::outbox::insert_outbox_rows;
use super::{Params, Store, StoreError};
use crate::environment::record::CorruptRow;

/// The advisory lock of the changes of pools. All pools share one, because their number is bounded.
const POOLS_LOCK: i32 = 3;
/// The outcome of a request that got a box. Other outcomes are the reasons of misses.
pub(super) const CLAIMED: &str = "claimed";

const COLUMNS: &str = "name, spec, source, revision, target, failures, retry_at, last_error,
    created_at, updated_at";

/// A pool, with the columns that only the scheduler reads.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolRow {
    pub name: String,
    pub spec: PoolSpec,
    pub source: PoolSource,
    pub revision: i64,
    pub target: u32,
    pub failures: u32,
    pub retry_at: Option<DateTime<Utc>>,
    pub last_error: Option<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// The outcome of a request, as the column `outcome` has it.
pub(super) fn outcome(pool: &PoolUse) -> &'static str {
    pool.reason.map_or(CLAIMED, MissReason::as_str)
}

/// The id by which the outbox orders the rows about pools. It names no environment.
fn outbox_id() -> EnvironmentId {
    EnvironmentId::from_hash([0; RANDOM_LEN])
}

fn pool_row(row: &QueryResult) -> Result<PoolRow, StoreError> {
    let name: String = row.try_get("", "name")?;
    let corrupt = |column, problem: String| CorruptRow {
        id: name.clone(),
        column,
        problem,
    };
    let spec: serde_json::Value = row.try_get("", "spec")?;
    let spec = serde_json::from_value(spec).map_err(|e| corrupt("spec", e.to_string()))?;
    let source: String = row.try_get("", "source")?;
    let source = source
        .parse::<PoolSource>()
        .map_err(|_| corrupt("source", format!("`{source}` is not a source")))?;
    let count =
        |column| unsigned(row, column).map(|count| u32::try_from(count).unwrap_or(u32::MAX));
    Ok(PoolRow {
        spec,
        source,
        revision: row.try_get("", "revision")?,
        target: count("target")?,
        failures: count("failures")?,
        retry_at: row.try_get("", "retry_at")?,
        last_error: row.try_get("", "last_error")?,
        created_at: row.try_get("", "created_at")?,
        updated_at: row.try_get("", "updated_at")?,
        name,
    })
}

/// The spec with these resources, in their canonical form: the same size in another notation is the same
/// box.
fn with_resources(spec: &PoolSpec, resources: ResourceRequest) -> PoolSpec {
    PoolSpec {
        resources,
        ..spec.clone()
    }
}

impl Store {
    /// The pools whose boxes run `image`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pools_of_image(&self, image: &str) -> Result<Vec<PoolRow>, StoreError> {
        let select = statement(
            format!("SELECT {COLUMNS} FROM pools WHERE image = $1 ORDER BY name"),
            [complete(image).into()],
        );
        let rows = self.database.query_all_raw(select);
        let rows = rows.instrument(span!(SELECT pools)).await?;
        rows.iter().map(pool_row).collect()
    }

    /// Every pool, by name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pools(&self) -> Result<Vec<PoolRow>, StoreError> {
        let select = statement(format!("SELECT {COLUMNS} FROM pools ORDER BY name"), []);
        let rows = self.database.query_all_raw(select).await?;
        rows.iter().map(pool_row).collect()
    }

    /// One pool with its status; `None` when there is none with this name.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pool(&self, name: &str) -> Result<Option<Pool>, StoreError> {
        let select = statement(
            format!("SELECT {COLUMNS} FROM pools WHERE name = $1"),
            [name.into()],
        );
        let row = self.database.query_one_raw(select);
        match row.instrument(span!(SELECT pools)).await? {
            Some(row) => Ok(Some(self.with_status(pool_row(&row)?).await?)),
            None => Ok(None),
        }
    }

    /// One page of pools by name, and the number of all.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_pools(
        &self,
        limit: u32,
        offset: u64,
    ) -> Result<(Vec<Pool>, u64), StoreError> {
        let count = statement("SELECT count(*) AS pools FROM pools", []);
        let total = match self.database.query_one_raw(count).await? {
            Some(row) => unsigned(&row, "pools")?,
            None => 0,
        };
        let page = statement(
            format!("SELECT {COLUMNS} FROM pools ORDER BY name LIMIT $1 OFFSET $2"),
            [i64::from(limit).into(), bigint(offset)],
        );
        let rows = self.database.query_all_raw(page);
        let rows = rows.instrument(span!(SELECT pools)).await?;
        let mut pools = Vec::with_capacity(rows.len());
        for row in &rows {
            pools.push(self.with_status(pool_row(row)?).await?);
        }
        Ok((pools, total))
    }

    async fn with_status(&self, row: PoolRow) -> Result<Pool, StoreError> {
        let boxes = statement(
            "SELECT count(*) FILTER (WHERE status = 'ready'
                        AND seen_at > now() - make_interval(secs => $2)) AS ready,
                    count(*) FILTER (WHERE status = 'starting') AS starting,
                    count(*) FILTER (WHERE status = 'draining') AS draining
             FROM warm_boxes WHERE pool = $1",
            [row.name.as_str().into(), seconds(ALIVE_WITHIN)],
        );
        let mut status = PoolStatus {
            target: row.target,
            failures: row.failures,
            retry_at: row.retry_at,
            last_error: row.last_error,
            ..PoolStatus::default()
        };
        if let Some(boxes) = self.database.query_one_raw(boxes).await? {
            status.ready = unsigned(&boxes, "ready")?;
            status.starting = unsigned(&boxes, "starting")?;
            status.draining = unsigned(&boxes, "draining")?;
        }
        let outcomes = statement(
            "SELECT outcome, sum(requests)::bigint AS requests FROM (
                SELECT outcome, requests FROM pool_totals WHERE pool = $1
                UNION ALL
                SELECT outcome, count(*) AS requests FROM pool_requests
                WHERE pool = $1 GROUP BY outcome
             ) AS counted GROUP BY outcome",
            [row.name.as_str().into()],
        );
        for counted in self.database.query_all_raw(outcomes).await? {
            let outcome: String = counted.try_get("", "outcome")?;
            let requests = unsigned(&counted, "requests")?;
            if outcome == CLAIMED {
                status.hits = requests;
            } else if let Ok(reason) = outcome.parse::<MissReason>() {
                status.misses_by_reason.insert(reason, requests);
            }
        }
        // A claim that failed was counted when it took its box.
        let failed = status.misses_by_reason.get(&MissReason::ClaimFailed);
        status.hits = status.hits.saturating_sub(failed.copied().unwrap_or(0));
        Ok(Pool {
            name: row.name,
            spec: row.spec,
            source: row.source,
            created_at: row.created_at,
            updated_at: row.updated_at,
            status,
        })
    }

    /// Defines a pool, or replaces its definition. `resources` are those of `spec` in their canonical
    /// form. Returns whether it is new, and the id whose outbox rows are to be published.
    ///
    /// # Errors
    /// `Conflict` when a request would change a pool of the configuration; `QuotaExceeded` when there
    /// are too many; or when the database fails.
    pub async fn set_pool(
        &self,
        name: &str,
        spec: &PoolSpec,
        resources: ResourceRequest,
        source: PoolSource,
    ) -> Result<(bool, EnvironmentId), StoreError> {
        let spec = with_resources(spec, resources);
        let set = async {
            let transaction = begin(&self.database).await?;
            advisory_lock(&transaction, POOLS_LOCK, "").await?;
            let before = find(&transaction, name).await?;
            check_change(&transaction, before.as_ref(), source).await?;
            write_pool(&transaction, name, &spec, source, before.as_ref()).await?;
            transaction.commit().await?;
            Ok::<_, StoreError>((before.is_none(), outbox_id()))
        };
        set.instrument(span!(INSERT pools)).await
    }

    /// Deletes a pool. Returns the id whose outbox rows are to be published; `None` when there was no
    /// such pool.
    ///
    /// # Errors
    /// `Conflict` when a request would delete a pool of the configuration; or when the database fails.
    pub async fn delete_pool(
        &self,
        name: &str,
        source: PoolSource,
    ) -> Result<Option<EnvironmentId>, StoreError> {
        let id = outbox_id();
        let delete = async {
            let transaction = begin(&self.database).await?;
            advisory_lock(&transaction, POOLS_LOCK, "").await?;
            let Some(before) = find(&transaction, name).await? else {
                transaction.rollback().await?;
                return Ok(None);
            };
            check_change(&transaction, Some(&before), source).await?;
            let mut params = Params::default();
            let name = params.push(name);
            let id_value = params.push(id.as_str());
            let messages: Vec<_> = audit_message(AuditAction::DeletePool, &before.name)
                .into_iter()
                .collect();
            let outbox_rows = insert_outbox_rows("deleted", &messages, &mut params)?;
            let text = format!(
                "WITH deleted AS (
                    DELETE FROM pools WHERE name = {name} RETURNING {id_value}::text AS id
                 ), outbox_rows AS ({outbox_rows}), requests AS (
                    DELETE FROM pool_requests WHERE pool = {name}
                 ), totals AS (
                    DELETE FROM pool_totals WHERE pool = {name}
                 )
                 SELECT id FROM deleted"
            );
            transaction.query_one_raw(statement(text, params.0)).await?;
            transaction.commit().await?;
            Ok::<_, StoreError>(Some(id.clone()))
        };
        delete.instrument(span!(DELETE pools)).await
    }
}

async fn find(
    connection: &impl ConnectionTrait,
    name: &str,
) -> Result<Option<PoolRow>, StoreError> {
    let select = statement(
        format!("SELECT {COLUMNS} FROM pools WHERE name = $1"),
        [name.into()],
    );
    let row = connection.query_one_raw(select).await?;
    row.as_ref().map(pool_row).transpose()
}

/// Whether `source` may change the pool `before`, or add one.
async fn check_change(
    transaction: &DatabaseTransaction,
    before: Option<&PoolRow>,
    source: PoolSource,
) -> Result<(), StoreError> {
    if let Some(before) = before {
        return match (source, before.source) {
            (PoolSource::Api, PoolSource::Configuration) => Err(StoreError::Refused(Error::new(
                ErrorCode::Conflict,
                format!(
                    "the pool `{}` is defined by the deployment's configuration; change it there",
                    before.name
                ),
            ))),
            _ => Ok(()),
        };
    }
    let count = statement("SELECT count(*) AS pools FROM pools", []);
    let pools = match transaction.query_one_raw(count).await? {
        Some(row) => unsigned(&row, "pools")?,
        None => 0,
    };
    if pools >= MAX_POOLS {
        return Err(StoreError::Refused(Error::new(
            ErrorCode::QuotaExceeded,
            format!("there are {MAX_POOLS} pools, the most that a deployment may have; delete one"),
        )));
    }
    Ok(())
}

async fn write_pool(
    transaction: &DatabaseTransaction,
    name: &str,
    spec: &PoolSpec,
    source: PoolSource,
    before: Option<&PoolRow>,
) -> Result<(), StoreError> {
    let same_boxes = before.is_some_and(|before| before.spec.has_same_boxes(spec));
    if same_boxes && before.is_some_and(|before| before.spec == *spec && before.source == source) {
        return Ok(());
    }
    let mut params = Params::default();
    let name_value = params.push(name);
    let image = params.push(complete(&spec.image));
    let spec_value = params.push(serde_json::to_value(spec)?);
    let source = params.push(source.as_str());
    let target = params.push(i64::from(spec.min_ready));
    let id = params.push(outbox_id().as_str());
    let revision = if same_boxes {
        "pools.revision"
    } else {
        // Never a revision again: a box of a deleted pool of the same name may still exist.
        "excluded.revision"
    };
    let messages: Vec<_> = audit_message(AuditAction::SetPool, name)
        .into_iter()
        .collect();
    let outbox_rows = insert_outbox_rows("stored", &messages, &mut params)?;
    let text = format!(
        "WITH stored AS (
            INSERT INTO pools (name, image, spec, source, revision, target, created_at, updated_at)
            VALUES ({name_value}, {image}, {spec_value}, {source},
                (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, {target}, now(), now())
            ON CONFLICT (name) DO UPDATE SET image = excluded.image, spec = excluded.spec,
                source = excluded.source, revision = {revision}, updated_at = excluded.updated_at,
                failures = 0, retry_at = NULL, last_error = NULL
            RETURNING {id}::text AS id
         ), outbox_rows AS ({outbox_rows})
         SELECT id FROM stored"
    );
    transaction.query_one_raw(statement(text, params.0)).await?;
    Ok(())
}
