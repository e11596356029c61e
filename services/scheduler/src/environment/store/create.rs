//! Creating: idempotency key, quota, capacity and the row, in one transaction.

use std::time::Duration;

use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::environment::{Environment, Status};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::UserId;
use agentbox_contracts::units::{Bytes, MilliCpu};
use agentbox_database::secret::{MasterSecret, Purpose};
use agentbox_database::sql::{advisory_lock, seconds, statement, unsigned};
use agentbox_database::{begin, span};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::{Expr, Query};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, DatabaseConnection, DatabaseTransaction, EntityTrait as _,
    Iterable as _, QueryFilter as _, QueryTrait as _,
};
use tracing::Instrument as _;

use super::messages::{audit_message, creation_messages};
use super::outbox::insert_outbox_rows;
use super::pools::outcome;
use super::variables::stored_request;
use super::{Record, Store, StoreError, build, get, is_unchanged, write};
use crate::cluster::placement::Allocatable;
use crate::environment::creation::Creation;
use crate::environment::entity::{self, Column, Entity};
use crate::environment::quota::Usage;
use crate::environment::request::Quantities;

/// The advisory lock of the creates and credentials of one owner. Taken before [`CLUSTER_LOCK`],
/// always.
pub(super) const OWNER_LOCK: i32 = 1;
/// The advisory lock of the reservations in one cluster.
const CLUSTER_LOCK: i32 = 2;
/// How soon a new environment is reconciled when its command is lost.
const RECONCILE_WITHIN: Duration = Duration::from_secs(2);
/// How soon a claim is completed when the request that made it was killed. Longer than that request
/// takes.
const CLAIM_WITHIN: Duration = Duration::from_secs(5);

/// Whether capacity was reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reservation {
    Reserved,
    /// The reason, for users, why it was not.
    Waiting(String),
}

/// The number for a `bigint` column. A larger one is clamped; no accepted quantity is as large.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A keyed hash, because a body has secrets, which a plain hash would let a reader of the table
/// guess.
fn body_hash(secret: &MasterSecret, environment: &Environment) -> Result<String, StoreError> {
    // The maps are sorted, so equal requests have equal bytes.
    let body = serde_json::to_vec(&environment.request)?;
    Ok(hex::encode(secret.digest(Purpose::RequestBody, &body)))
}

/// What the environments of `owner` that have not ended have reserved.
pub(super) async fn usage(
    transaction: &DatabaseTransaction,
    owner: &UserId,
) -> Result<Usage, StoreError> {
    let usage = statement(
        "SELECT count(*) AS environments, coalesce(sum(cpu_milli), 0)::bigint AS cpu,
                coalesce(sum(memory_bytes), 0)::bigint AS memory,
                least(coalesce(sum(storage_bytes), 0), 9223372036854775807)::bigint AS storage
         FROM environments
         WHERE owner = $1 AND status IN ('pending', 'running', 'terminating')",
        [owner.as_str().into()],
    );
    let Some(row) = transaction.query_one_raw(usage).await? else {
        return Ok(Usage::default());
    };
    Ok(Usage {
        environments: unsigned(&row, "environments")?,
        cpu: MilliCpu(unsigned(&row, "cpu")?),
        memory: Bytes(unsigned(&row, "memory")?),
        storage: Bytes(unsigned(&row, "storage")?),
    })
}

/// Whether `quantities` fit beside the reservations in `cluster`: of environments, and of warm boxes.
/// Takes the cluster's lock.
pub(super) async fn check_capacity(
    transaction: &DatabaseTransaction,
    cluster: &str,
    quantities: Quantities,
    allocatable: Allocatable,
) -> Result<Reservation, StoreError> {
    if allocatable == Allocatable::UNLIMITED {
        return Ok(Reservation::Reserved);
    }
    advisory_lock(transaction, CLUSTER_LOCK, cluster).await?;
    let reserved = statement(
        "SELECT coalesce(sum(cpu_milli), 0)::bigint AS cpu,
                coalesce(sum(memory_bytes), 0)::bigint AS memory,
                least(coalesce(sum(storage_bytes), 0), 9223372036854775807)::bigint AS storage
         FROM (
            SELECT cpu_milli, memory_bytes, storage_bytes FROM environments
            WHERE cluster = $1 AND capacity_reserved
                AND status IN ('pending', 'running', 'terminating')
            UNION ALL
            SELECT cpu_milli, memory_bytes, storage_bytes FROM warm_boxes WHERE cluster = $1
         ) AS reserved",
        [cluster.into()],
    );
    let Some(row) = transaction.query_one_raw(reserved).await? else {
        return Ok(Reservation::Reserved);
    };
    let (cpu, memory) = (unsigned(&row, "cpu")?, unsigned(&row, "memory")?);
    let waiting = |resource: &str, available: String, requested: String| {
        Ok(Reservation::Waiting(format!(
            "waiting for capacity in cluster `{cluster}`: {available} of {resource} available, \
             {requested} requested"
        )))
    };
    if cpu.saturating_add(quantities.cpu.0) > allocatable.cpu.0 {
        let available = MilliCpu(allocatable.cpu.0.saturating_sub(cpu));
        return waiting("CPU", available.to_string(), quantities.cpu.to_string());
    }
    if memory.saturating_add(quantities.memory.0) > allocatable.memory.0 {
        let available = Bytes(allocatable.memory.0.saturating_sub(memory));
        return waiting(
            "memory",
            available.to_string(),
            quantities.memory.to_string(),
        );
    }
    let storage = unsigned(&row, "storage")?;
    if storage.saturating_add(quantities.storage.0) > allocatable.storage.0 {
        let available = Bytes(allocatable.storage.0.saturating_sub(storage));
        return waiting(
            "storage",
            available.to_string(),
            quantities.storage.to_string(),
        );
    }
    Ok(Reservation::Reserved)
}

impl Store {
    /// The environment that the owner of `creation` created with its idempotency key, while the
    /// key is kept.
    ///
    /// # Errors
    /// `IdempotencyConflict` when it was used with another body.
    pub async fn replay(&self, creation: &Creation) -> Result<Option<Record>, StoreError> {
        replay(&self.database, &self.secret, creation)
            .instrument(span!(SELECT environments))
            .await
    }

    /// Creates an environment, or returns the one that was created with its idempotency key.
    ///
    /// # Errors
    /// `QuotaExceeded`, `IdempotencyConflict`, or when the database fails.
    pub async fn create(&self, creation: &Creation) -> Result<Record, StoreError> {
        create(&self.database, &self.secret, creation)
            .instrument(span!(INSERT environments))
            .await
    }

    /// Reserves capacity for a pending environment.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when it is no longer as `before` has it.
    pub async fn reserve_capacity(
        &self,
        before: &Record,
        allocatable: Allocatable,
    ) -> Result<Reservation, StoreError> {
        reserve_capacity(&self.database, before, allocatable)
            .instrument(span!(UPDATE environments))
            .await
    }
}

/// [`Store::create`], without its span.
async fn create(
    database: &DatabaseConnection,
    secret: &MasterSecret,
    creation: &Creation,
) -> Result<Record, StoreError> {
    let environment = &creation.environment;
    let transaction = begin(database).await?;
    advisory_lock(&transaction, OWNER_LOCK, environment.owner.as_str()).await?;
    if let Some(replayed) = replay(&transaction, secret, creation).await? {
        transaction.rollback().await?;
        return Ok(replayed);
    }
    let quantities = creation.quantities;
    let used = usage(&transaction, &environment.owner).await?;
    creation.quota.check(used, quantities)?;
    let reservation = check_capacity(
        &transaction,
        &environment.cluster,
        quantities,
        creation.allocatable,
    )
    .await?;
    let created = insert(&transaction, secret, creation, reservation).await?;
    transaction.commit().await?;
    Ok(created)
}

/// [`Store::reserve_capacity`], without its span.
async fn reserve_capacity(
    database: &DatabaseConnection,
    before: &Record,
    allocatable: Allocatable,
) -> Result<Reservation, StoreError> {
    let cluster = &before.environment.cluster;
    let transaction = begin(database).await?;
    let reservation = check_capacity(&transaction, cluster, before.quantities, allocatable).await?;
    if reservation == Reservation::Reserved {
        let reserved = Entity::update_many()
            .col_expr(Column::CapacityReserved, Expr::value(true))
            .col_expr(Column::StatusMessage, Expr::value(None::<String>))
            .filter(is_unchanged(before))
            .filter(Column::Status.eq(Status::Pending.as_str()))
            .exec(&transaction)
            .await?;
        if reserved.rows_affected == 0 {
            transaction.rollback().await?;
            return Err(StoreError::Fenced);
        }
    }
    transaction.commit().await?;
    Ok(reservation)
}

/// [`Store::replay`], without its span: on a connection or in a transaction.
pub(super) async fn replay(
    connection: &impl ConnectionTrait,
    secret: &MasterSecret,
    creation: &Creation,
) -> Result<Option<Record>, StoreError> {
    let Some(key) = &creation.idempotency_key else {
        return Ok(None);
    };
    let used = statement(
        "SELECT body_hash, environment_id FROM idempotency
         WHERE owner = $1 AND key = $2 AND expires_at > now()",
        [
            creation.environment.owner.as_str().into(),
            key.as_str().into(),
        ],
    );
    let Some(row) = connection.query_one_raw(used).await? else {
        return Ok(None);
    };
    if row.try_get::<String>("", "body_hash")? != body_hash(secret, &creation.environment)? {
        return Err(StoreError::Refused(Error::new(
            ErrorCode::IdempotencyConflict,
            "this Idempotency-Key was used with another body; use a new key",
        )));
    }
    let id: String = row.try_get("", "environment_id")?;
    get(connection, &id).await
}

/// Inserts the environment, its place in the reconcile queue, its outbox rows and its idempotency key, in
/// one statement.
pub(super) async fn insert(
    transaction: &DatabaseTransaction,
    secret: &MasterSecret,
    creation: &Creation,
    reservation: Reservation,
) -> Result<Record, StoreError> {
    let environment = &creation.environment;
    let request = &environment.request;
    let capacity_reserved = reservation == Reservation::Reserved;
    let status_message = match reservation {
        Reservation::Reserved => None,
        Reservation::Waiting(message) => Some(message),
    };
    let (stored_request, sealed_variables) = stored_request(secret, environment)?;
    let claim = creation.claim;
    let mut messages = creation_messages(environment, status_message.clone(), claim.is_some());
    messages.extend(audit_message(
        AuditAction::CreateEnvironment,
        environment.id.as_str(),
    ));
    let row = entity::ActiveModel {
        id: Set(environment.id.to_string()),
        owner: Set(environment.owner.to_string()),
        owner_username: Set(environment.owner_username.clone()),
        cluster: Set(environment.cluster.clone()),
        name: Set(request.name.clone()),
        labels: Set(serde_json::to_value(&request.labels)?),
        timeout_s: Set(signed(request.timeout_s)),
        idle_timeout_s: Set(request.idle_timeout_s.map(signed)),
        request: Set(stored_request),
        sealed_variables: Set(sealed_variables),
        cpu_milli: Set(signed(creation.quantities.cpu.0)),
        memory_bytes: Set(signed(creation.quantities.memory.0)),
        storage_bytes: Set(signed(creation.quantities.storage.0)),
        status: Set(environment.status.as_str().to_owned()),
        status_message: Set(status_message),
        created_at: Set(environment.created_at),
        expires_at: Set(environment.expires_at),
        endpoint: Set(environment.endpoint.clone()),
        namespace: Set(environment.namespace.clone()),
        generation: Set(environment.generation),
        start_deadline: Set(creation.start_deadline),
        capacity_reserved: Set(capacity_reserved),
        grace_ms: Set(0),
        pool: Set(environment
            .pool
            .as_ref()
            .map(serde_json::to_value)
            .transpose()?),
        claim: Set(claim.map(|claim| claim.as_str().to_owned())),
        claim_address: Set(claim
            .and_then(|claim| claim.address())
            .map(|address| address.to_string())),
        ..Default::default()
    };
    let mut insert = Entity::insert(row).into_query();
    insert.returning(Query::returning().columns(Column::iter()));
    let (insert, mut params) = build(&insert);
    let outbox_rows = insert_outbox_rows("created", &messages, &mut params)?;
    let key = params.push(creation.idempotency_key.clone());
    let body_hash = params.push(body_hash(secret, environment)?);
    let within = match claim {
        Some(_) => CLAIM_WITHIN,
        None => RECONCILE_WITHIN,
    };
    let within = params.push(seconds(within));
    let pool = environment.pool.as_ref();
    let pool_name = params.push(pool.map(|pool| pool.name.clone()));
    let outcome = params.push(pool.map(|pool| outcome(pool).to_owned()));
    let text = format!(
        "WITH created AS ({insert}), queued AS (
            INSERT INTO reconcile_queue (environment_id, cluster, due_at)
            SELECT id, cluster, now() + make_interval(secs => {within}) FROM created
         ), pool_request AS (
            INSERT INTO pool_requests (pool, outcome)
            SELECT {pool_name}, {outcome} FROM created WHERE {pool_name}::text IS NOT NULL
         ), outbox_rows AS ({outbox_rows}), idempotency_row AS (
            INSERT INTO idempotency (owner, key, body_hash, environment_id, expires_at)
            SELECT owner, {key}, {body_hash}, id, now() + interval '24 hours' FROM created
            WHERE {key} IS NOT NULL
            ON CONFLICT (owner, key) DO UPDATE SET body_hash = excluded.body_hash,
                environment_id = excluded.environment_id, expires_at = excluded.expires_at
         )
         SELECT * FROM created"
    );
    write(transaction, text, params).await
}
