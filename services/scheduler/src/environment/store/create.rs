//! Creating: idempotency, quota, room in the cluster and the row, in one transaction.

use agentbox_contracts::environment::{Environment, EventKind};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::UserId;
use agentbox_contracts::units::{Bytes, MilliCpu};
use agentbox_database::begin;
use agentbox_database::sql::{advisory_lock, bigint, statement as sql, unsigned};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction};
use sha2::{Digest as _, Sha256};

use super::outbox::{Item, to_json};
use super::{COLUMNS, Record, Store, StoreError, record};
use crate::cluster::placement::Room;
use crate::environment::quota::{Quota, Usage};
use crate::environment::request::Quantities;
use crate::trace;

/// Advisory locks: what one owner creates, what one cluster promises. Always in this
/// order.
const OWNER_LOCK: i32 = 1;
const CLUSTER_LOCK: i32 = 2;

/// Whether room was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    Admitted,
    /// Why not, for people.
    Waiting(String),
}

/// An environment about to be.
#[derive(Clone, Debug)]
pub struct Creation {
    /// Pending, without a message.
    pub environment: Environment,
    pub quantities: Quantities,
    pub room: Room,
    pub quota: Quota,
    pub start_deadline: DateTime<Utc>,
    pub idempotency_key: Option<String>,
}

fn body_hash(environment: &Environment) -> Result<String, StoreError> {
    // Maps are sorted, so equal requests are equal bytes.
    let body = serde_json::to_vec(&environment.request)?;
    Ok(hex::encode(Sha256::digest(body)))
}

async fn usage(transaction: &DatabaseTransaction, owner: &UserId) -> Result<Usage, StoreError> {
    let statement = sql(
        "SELECT count(*) AS environments, coalesce(sum(cpu_milli), 0)::bigint AS cpu,
                coalesce(sum(memory_bytes), 0)::bigint AS memory
         FROM environments
         WHERE owner = $1 AND status IN ('pending', 'running', 'terminating')",
        [owner.as_str().into()],
    );
    let Some(row) = transaction.query_one_raw(statement).await? else {
        return Ok(Usage::default());
    };
    Ok(Usage {
        environments: unsigned(&row, "environments")?,
        cpu: MilliCpu(unsigned(&row, "cpu")?),
        memory: Bytes(unsigned(&row, "memory")?),
    })
}

/// Whether `quantities` fit beside what `cluster` has promised. Takes the cluster's lock.
async fn admission(
    transaction: &DatabaseTransaction,
    cluster: &str,
    quantities: Quantities,
    room: Room,
) -> Result<Admission, StoreError> {
    if room.cpu.0 == u64::MAX && room.memory.0 == u64::MAX {
        return Ok(Admission::Admitted);
    }
    advisory_lock(transaction, CLUSTER_LOCK, cluster).await?;
    let statement = sql(
        "SELECT coalesce(sum(cpu_milli), 0)::bigint AS cpu,
                coalesce(sum(memory_bytes), 0)::bigint AS memory
         FROM environments
         WHERE cluster = $1 AND admitted AND status IN ('pending', 'running', 'terminating')",
        [cluster.into()],
    );
    let Some(row) = transaction.query_one_raw(statement).await? else {
        return Ok(Admission::Admitted);
    };
    let (cpu, memory) = (unsigned(&row, "cpu")?, unsigned(&row, "memory")?);
    let short = |what: &str, free: String, asked: String| {
        Ok(Admission::Waiting(format!(
            "waiting for room in cluster `{cluster}`: {free} of {what} free, {asked} asked for"
        )))
    };
    if cpu.saturating_add(quantities.cpu.0) > room.cpu.0 {
        let free = MilliCpu(room.cpu.0.saturating_sub(cpu));
        return short("CPU", free.to_string(), quantities.cpu.to_string());
    }
    if memory.saturating_add(quantities.memory.0) > room.memory.0 {
        let free = Bytes(room.memory.0.saturating_sub(memory));
        return short("memory", free.to_string(), quantities.memory.to_string());
    }
    Ok(Admission::Admitted)
}

impl Store {
    /// The environment that `owner` created with this key, if the key still stands.
    ///
    /// # Errors
    /// `IdempotencyConflict` when it was used with another body.
    #[tracing::instrument(name = "postgres replay", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "SELECT"))]
    pub async fn replay(&self, creation: &Creation) -> Result<Option<Record>, StoreError> {
        replay(&self.database, creation).await
    }

    /// Creates, unless the idempotency key has been used: then what it created.
    ///
    /// # Errors
    /// `QuotaExceeded`, `IdempotencyConflict`, or when the database fails.
    #[tracing::instrument(name = "postgres create", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "INSERT"))]
    pub async fn create(&self, creation: &Creation) -> Result<Record, StoreError> {
        let environment = &creation.environment;
        let transaction = begin(&self.database).await?;
        advisory_lock(&transaction, OWNER_LOCK, environment.owner.as_str()).await?;
        if let Some(replayed) = replay(&transaction, creation).await? {
            transaction.rollback().await?;
            return Ok(replayed);
        }
        let quantities = creation.quantities;
        creation.quota.admit(
            usage(&transaction, &environment.owner).await?,
            quantities.cpu,
            quantities.memory,
        )?;
        let admission = admission(
            &transaction,
            &environment.cluster,
            quantities,
            creation.room,
        )
        .await?;
        let created = insert(&transaction, creation, admission).await?;
        transaction.commit().await?;
        Ok(created)
    }

    /// Sets room aside for a pending environment.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when it is no longer as `before` has it.
    #[tracing::instrument(name = "postgres admit", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "UPDATE"))]
    pub async fn admit(
        &self,
        before: &Record,
        quantities: Quantities,
        room: Room,
    ) -> Result<Admission, StoreError> {
        let environment = &before.environment;
        let transaction = begin(&self.database).await?;
        let admission = admission(&transaction, &environment.cluster, quantities, room).await?;
        if admission == Admission::Admitted {
            let statement = sql(
                "UPDATE environments SET admitted = true, status_message = NULL
                 WHERE id = $1 AND generation = $2 AND status = 'pending'",
                [
                    environment.id.as_str().into(),
                    environment.generation.into(),
                ],
            );
            if transaction.execute_raw(statement).await?.rows_affected() == 0 {
                transaction.rollback().await?;
                return Err(StoreError::Fenced);
            }
        }
        transaction.commit().await?;
        Ok(admission)
    }
}

async fn replay(
    connection: &impl ConnectionTrait,
    creation: &Creation,
) -> Result<Option<Record>, StoreError> {
    let Some(key) = &creation.idempotency_key else {
        return Ok(None);
    };
    let statement = sql(
        "SELECT body_hash, environment_id FROM idempotency
         WHERE owner = $1 AND key = $2 AND expires_at > now()",
        [
            creation.environment.owner.as_str().into(),
            key.as_str().into(),
        ],
    );
    let Some(row) = connection.query_one_raw(statement).await? else {
        return Ok(None);
    };
    if row.try_get::<String>("", "body_hash")? != body_hash(&creation.environment)? {
        return Err(StoreError::Refused(Error::new(
            ErrorCode::IdempotencyConflict,
            "this Idempotency-Key was used with another body",
        )));
    }
    let id: String = row.try_get("", "environment_id")?;
    let statement = sql(
        format!("SELECT {COLUMNS} FROM environments WHERE id = $1"),
        [id.into()],
    );
    connection
        .query_one_raw(statement)
        .await?
        .map(record)
        .transpose()
}

async fn insert(
    transaction: &DatabaseTransaction,
    creation: &Creation,
    admission: Admission,
) -> Result<Record, StoreError> {
    let environment = &creation.environment;
    let message = match &admission {
        Admission::Admitted => None,
        Admission::Waiting(message) => Some(message.clone()),
    };
    let event = agentbox_contracts::environment::EnvironmentEvent {
        environment_id: environment.id.clone(),
        owner: environment.owner.clone(),
        kind: EventKind::Created,
        status: environment.status,
        status_reason: None,
        status_message: message.clone(),
        exit_code: None,
        at: environment.created_at,
    };
    let items = [Item::reconcile(&environment.cluster), Item::Event(event)];
    let statement = sql(
        format!(
            "WITH created AS (
                INSERT INTO environments (id, owner, owner_username, cluster, name, labels,
                    timeout_s, request, cpu_milli, memory_bytes, storage_bytes, status,
                    status_message, created_at, expires_at, endpoint, namespace, generation,
                    start_deadline, admitted, grace_ms)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 'pending', $12, $13, $14,
                    $15, $16, $17, $18, $19, 0)
                RETURNING {COLUMNS}
            ), driven AS (
                INSERT INTO drives (environment_id, cluster, due_at)
                SELECT id, cluster, now() + interval '2 seconds' FROM created
            ), told AS (
                INSERT INTO outbox (environment_id, kind, body, traceparent)
                SELECT created.id, item ->> 'kind', item -> 'body', $21
                FROM created, jsonb_array_elements($20) WITH ORDINALITY AS items (item, n)
                ORDER BY n
            ), remembered AS (
                INSERT INTO idempotency (owner, key, body_hash, environment_id, expires_at)
                SELECT owner, $22, $23, id, now() + interval '24 hours' FROM created
                WHERE $22 IS NOT NULL
                ON CONFLICT (owner, key) DO UPDATE SET body_hash = excluded.body_hash,
                    environment_id = excluded.environment_id, expires_at = excluded.expires_at
            )
            SELECT * FROM created"
        ),
        [
            environment.id.as_str().into(),
            environment.owner.as_str().into(),
            environment.owner_username.clone().into(),
            environment.cluster.clone().into(),
            environment.request.name.clone().into(),
            serde_json::to_value(&environment.request.labels)?.into(),
            bigint(environment.request.timeout_s),
            serde_json::to_value(&environment.request)?.into(),
            bigint(creation.quantities.cpu.0),
            bigint(creation.quantities.memory.0),
            bigint(creation.quantities.storage.0),
            message.into(),
            environment.created_at.into(),
            environment.expires_at.into(),
            environment.endpoint.clone().into(),
            environment.namespace.clone().into(),
            environment.generation.into(),
            creation.start_deadline.into(),
            (admission == Admission::Admitted).into(),
            to_json(&items)?.into(),
            trace::current().into(),
            creation.idempotency_key.clone().into(),
            body_hash(environment)?.into(),
        ],
    );
    let created = transaction.query_one_raw(statement).await?;
    created.map(record).transpose()?.ok_or(StoreError::Fenced)
}
