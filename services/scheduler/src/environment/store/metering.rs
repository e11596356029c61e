//! The metered use of environments.
//!
//! * I1. What is added to `usage_hours` moves the row of `usage_meters` in the same transaction, whose
//!   rows it has locked before it reads them. So nothing is metered twice, whatever was killed.
//! * I2. Rows of `usage_meters` are locked first, in the order of their ids: two transactions do not
//!   wait for each other.

use std::net::SocketAddr;

use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::metering::{
    MAX_METERED_GROUPS, METERING_RETENTION_DAYS, MeteredGroup, MeteredUsage,
};
use agentbox_database::sql::{statement, unsigned};
use agentbox_database::{begin, span};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait as _, DbErr, QueryResult};
use serde_json::json;
use tracing::Instrument as _;

use super::{Params, Store, StoreError, UnreadableRows, environment_id};
use crate::environment::record::CorruptRow;

/// Rows that one statement deletes at most.
const DELETE_BATCH: i64 = 5_000;

/// A running box whose counters can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningBox {
    pub id: EnvironmentId,
    pub cluster: String,
    pub address: SocketAddr,
}

/// The counters of a box since it started or was claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageSample {
    pub id: EnvironmentId,
    pub cpu_ns: u64,
    pub egress_bytes: u64,
}

/// The columns of a sum over `usage_hours`.
const SUMS: &str = "count(DISTINCT environment_id) AS environments,
    coalesce(sum(running_seconds), 0) AS running_seconds,
    coalesce(sum(cpu_seconds), 0) AS cpu_seconds,
    coalesce(sum(reserved_cpu_seconds), 0) AS reserved_cpu_seconds,
    coalesce(sum(memory_byte_seconds), 0) AS memory_byte_seconds,
    coalesce(sum(storage_byte_seconds), 0) AS storage_byte_seconds,
    least(coalesce(sum(egress_bytes), 0), 9223372036854775807)::bigint AS egress_bytes";

/// A row for each environment that runs, or has run and was never metered.
const START_METERS: &str = "
    INSERT INTO usage_meters (environment_id, metered_at)
    SELECT id, started_at FROM environments
    WHERE started_at IS NOT NULL
        AND NOT EXISTS (SELECT FROM usage_meters WHERE environment_id = id)
    ORDER BY id
    ON CONFLICT (environment_id) DO NOTHING";

const LOCK_DUE_METERS: &str = "
    SELECT FROM usage_meters JOIN environments ON id = environment_id
    WHERE metered_at < coalesce(ended_at, now())
    ORDER BY environment_id FOR UPDATE OF usage_meters";

/// Adds the time since the last run, divided at each full hour.
const METER_TIME: &str = "
    WITH due AS (
        SELECT id, owner, labels, cpu_milli, memory_bytes, storage_bytes,
            metered_at AS begun, coalesce(ended_at, now()) AS ended
        FROM usage_meters JOIN environments ON id = environment_id
        WHERE metered_at < coalesce(ended_at, now())
    ), pieces AS (
        SELECT due.*, hours.begins_at, extract(epoch FROM
            least(ended, hours.begins_at + interval '1 hour') - greatest(begun, hours.begins_at)
        )::double precision AS seconds
        FROM due, generate_series(
            date_trunc('hour', begun, 'UTC'), ended, interval '1 hour'
        ) AS hours (begins_at)
    ), added AS (
        INSERT INTO usage_hours AS metered (environment_id, begins_at, owner, labels,
            running_seconds, reserved_cpu_seconds, memory_byte_seconds, storage_byte_seconds)
        SELECT id, begins_at, owner, labels, seconds, seconds * cpu_milli / 1000,
            seconds * memory_bytes, seconds * storage_bytes
        FROM pieces WHERE seconds > 0
        ON CONFLICT (environment_id, begins_at) DO UPDATE SET labels = excluded.labels,
            running_seconds = metered.running_seconds + excluded.running_seconds,
            reserved_cpu_seconds = metered.reserved_cpu_seconds + excluded.reserved_cpu_seconds,
            memory_byte_seconds = metered.memory_byte_seconds + excluded.memory_byte_seconds,
            storage_byte_seconds = metered.storage_byte_seconds + excluded.storage_byte_seconds
    )
    UPDATE usage_meters SET metered_at = due.ended FROM due WHERE environment_id = due.id";

const START_SAMPLED_METERS: &str = "
    INSERT INTO usage_meters (environment_id, metered_at)
    SELECT id, started_at FROM environments
    WHERE started_at IS NOT NULL AND id IN (
        SELECT sample ->> 'id' FROM jsonb_array_elements($1) AS samples (sample))
    ORDER BY id
    ON CONFLICT (environment_id) DO NOTHING";

const LOCK_SAMPLED_METERS: &str = "
    SELECT FROM usage_meters
    WHERE environment_id IN (SELECT sample ->> 'id' FROM jsonb_array_elements($1) AS samples (sample))
    ORDER BY environment_id FOR UPDATE";

/// Adds what the counters have grown by. A counter never begins again, because a box is never started a
/// second time: a smaller one was read before the last one, or could not be read, and adds nothing.
const METER_SAMPLES: &str = "
    WITH samples AS (
        SELECT * FROM jsonb_to_recordset($1) AS sample (id text, cpu_ns bigint, egress_bytes bigint)
    ), grown AS (
        SELECT environments.id, owner, labels,
            greatest(samples.cpu_ns - meters.cpu_ns, 0) AS cpu_ns,
            greatest(samples.egress_bytes - meters.egress_bytes, 0) AS egress_bytes
        FROM samples
        JOIN environments ON environments.id = samples.id
        JOIN usage_meters AS meters ON meters.environment_id = samples.id
    ), added AS (
        INSERT INTO usage_hours AS metered
            (environment_id, begins_at, owner, labels, cpu_seconds, egress_bytes)
        SELECT id, date_trunc('hour', now(), 'UTC'), owner, labels,
            cpu_ns / 1e9::double precision, egress_bytes
        FROM grown
        ON CONFLICT (environment_id, begins_at) DO UPDATE SET labels = excluded.labels,
            cpu_seconds = metered.cpu_seconds + excluded.cpu_seconds,
            egress_bytes = metered.egress_bytes + excluded.egress_bytes
    )
    UPDATE usage_meters SET cpu_ns = greatest(usage_meters.cpu_ns, samples.cpu_ns),
        egress_bytes = greatest(usage_meters.egress_bytes, samples.egress_bytes)
    FROM samples WHERE environment_id = samples.id";

fn metered_usage(row: &QueryResult) -> Result<MeteredUsage, DbErr> {
    Ok(MeteredUsage {
        environments: unsigned(row, "environments")?,
        running_seconds: row.try_get("", "running_seconds")?,
        cpu_seconds: row.try_get("", "cpu_seconds")?,
        reserved_cpu_seconds: row.try_get("", "reserved_cpu_seconds")?,
        memory_byte_seconds: row.try_get("", "memory_byte_seconds")?,
        storage_byte_seconds: row.try_get("", "storage_byte_seconds")?,
        egress_bytes: unsigned(row, "egress_bytes")?,
    })
}

impl Store {
    /// Meters the time that environments have run since they were metered last.
    ///
    /// # Errors
    /// When the database fails: the next call meters it.
    pub async fn meter_time(&self) -> Result<(), StoreError> {
        let metering = async {
            let transaction = begin(&self.database).await?;
            for text in [START_METERS, LOCK_DUE_METERS, METER_TIME] {
                transaction.execute_raw(statement(text, [])).await?;
            }
            transaction.commit().await?;
            Ok(())
        };
        metering.instrument(span!(INSERT usage_hours)).await
    }

    /// Meters what the counters of boxes have grown by since the last sample of each.
    ///
    /// # Errors
    /// When the database fails: the next sample has it.
    pub async fn record_samples(&self, samples: &[UsageSample]) -> Result<(), StoreError> {
        let bounded = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let samples: Vec<_> = samples
            .iter()
            .map(|sample| {
                json!({
                    "id": sample.id,
                    "cpu_ns": bounded(sample.cpu_ns),
                    "egress_bytes": bounded(sample.egress_bytes),
                })
            })
            .collect();
        let samples = serde_json::Value::Array(samples);
        let metering = async {
            let transaction = begin(&self.database).await?;
            for text in [START_SAMPLED_METERS, LOCK_SAMPLED_METERS, METER_SAMPLES] {
                let values = [samples.clone().into()];
                transaction.execute_raw(statement(text, values)).await?;
            }
            transaction.commit().await?;
            Ok(())
        };
        metering.instrument(span!(INSERT usage_hours)).await
    }

    /// The boxes that run. Skips rows that cannot be read.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn running_boxes(&self) -> Result<Vec<RunningBox>, StoreError> {
        self.running_boxes_where("true").await
    }

    /// As [`Self::running_boxes`], of the environments that match `condition`.
    pub(super) async fn running_boxes_where(
        &self,
        condition: &str,
    ) -> Result<Vec<RunningBox>, StoreError> {
        let running = statement(
            format!(
                "SELECT id, cluster, address FROM environments
                 WHERE status = 'running' AND address IS NOT NULL AND {condition}"
            ),
            [],
        );
        let mut unreadable = UnreadableRows::default();
        let mut boxes = Vec::new();
        for row in self.database.query_all_raw(running).await? {
            let (id, address): (String, String) =
                (row.try_get("", "id")?, row.try_get("", "address")?);
            let address =
                unreadable.skip(address.parse::<SocketAddr>().map_err(|error| CorruptRow {
                    id: id.clone(),
                    column: "address",
                    problem: format!("{error}"),
                }));
            let id = unreadable.skip(environment_id(&id));
            if let (Some(id), Some(address)) = (id, address) {
                boxes.push(RunningBox {
                    id,
                    cluster: row.try_get("", "cluster")?,
                    address,
                });
            }
        }
        unreadable.report();
        Ok(boxes)
    }

    /// The use of a user's environments in the hours from that of `since` until `until`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn metered_usage(
        &self,
        owner: &UserId,
        since: DateTime<Utc>,
        until: DateTime<Utc>,
    ) -> Result<MeteredUsage, StoreError> {
        let mut params = Params::default();
        let hours = hours_of(owner, since, until, &mut params);
        let sum = statement(format!("SELECT {SUMS} {hours}"), params.0);
        let sum = self.database.query_one_raw(sum);
        let row = sum.instrument(span!(SELECT usage_hours)).await?;
        let usage = row.map(|row| metered_usage(&row)).transpose()?;
        Ok(usage.unwrap_or_default())
    }

    /// [`Self::metered_usage`] by the values of the label `key`, most CPU time first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn metered_groups(
        &self,
        owner: &UserId,
        since: DateTime<Utc>,
        until: DateTime<Utc>,
        key: &str,
    ) -> Result<Vec<MeteredGroup>, StoreError> {
        let mut params = Params::default();
        let hours = hours_of(owner, since, until, &mut params);
        let key = params.push(key);
        let limit = params.push(i64::from(MAX_METERED_GROUPS));
        let groups = statement(
            format!(
                "SELECT labels ->> {key}::text AS value, {SUMS} {hours}
                 GROUP BY 1 ORDER BY sum(cpu_seconds) DESC, 1 LIMIT {limit}"
            ),
            params.0,
        );
        let groups = self.database.query_all_raw(groups);
        let rows = groups.instrument(span!(SELECT usage_hours)).await?;
        let group = |row: QueryResult| {
            Ok(MeteredGroup {
                value: row.try_get("", "value")?,
                usage: metered_usage(&row)?,
            })
        };
        rows.into_iter().map(group).collect()
    }

    /// Deletes metered hours past their retention. Returns the number of deleted rows.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn purge_metered_hours(&self) -> Result<u64, StoreError> {
        let delete = statement(
            "DELETE FROM usage_hours WHERE (environment_id, begins_at) IN (
                SELECT environment_id, begins_at FROM usage_hours
                WHERE begins_at < now() - make_interval(days => $1) LIMIT $2)",
            [
                i32::try_from(METERING_RETENTION_DAYS)
                    .unwrap_or(i32::MAX)
                    .into(),
                DELETE_BATCH.into(),
            ],
        );
        Ok(self.database.execute_raw(delete).await?.rows_affected())
    }
}

/// The FROM and WHERE of the metered hours of a period.
fn hours_of(
    owner: &UserId,
    since: DateTime<Utc>,
    until: DateTime<Utc>,
    params: &mut Params,
) -> String {
    let owner = params.push(owner.as_str());
    let since = params.push(since);
    let until = params.push(until);
    format!(
        "FROM usage_hours WHERE owner = {owner}
            AND begins_at >= date_trunc('hour', {since}::timestamptz, 'UTC')
            AND begins_at < {until}"
    )
}
