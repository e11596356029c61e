//! Queries of tables `audit_outbox`, `audit_log` and `audit_checkpoints`.
//!
//! They are SQL text: the statements are batches, and the log has no row that is ever changed.

use std::collections::BTreeSet;
use std::time::Duration;

use agentbox_contracts::audit::AuditEntry;
use agentbox_contracts::audit::rpc::{ChainedEntry, ListAuditRequest};
use agentbox_contracts::ids::{AuditId, UserId};
use agentbox_database::span;
use agentbox_database::sql::{advisory_lock, bigint, seconds, statement, unsigned};
use sea_orm::prelude::DateTimeUtc;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, FromQueryResult, QueryResult,
    Value,
};
use serde::Deserialize;
use serde_json::json;
use tracing::Instrument;

use super::chain::{ChainKey, Hash, Link};
use crate::store::{ADVISORY_LOCK, StoreError, begin, commit, page_limit, page_offset};

/// The most entries of the outbox that one batch chains, and rows that one page of the
/// verification reads.
pub const BATCH: usize = 1_000;
/// The most entries that a list counts: a year of commands would take longer than a statement may.
const MAX_COUNTED: u64 = 100_000;
/// The most entries that one transaction deletes.
pub const PRUNED_AT_ONCE: u64 = 5_000;

/// One row of the log.
#[derive(Clone, Debug, PartialEq, FromQueryResult)]
pub struct ChainRow {
    pub sequence: i64,
    pub id: String,
    pub at: DateTimeUtc,
    pub actor: Option<String>,
    pub action: String,
    pub target: Option<String>,
    /// The text that the hash covers. The columns above repeat parts of it, for filters.
    pub entry: String,
    pub hash: Vec<u8>,
}

impl ChainRow {
    /// # Errors
    /// When the text is not an entry.
    pub fn decode(self) -> Result<ChainedEntry, StoreError> {
        Ok(ChainedEntry {
            sequence: u64::try_from(self.sequence).unwrap_or(0),
            hash: hex::encode(&self.hash),
            entry: decode(&self.entry)?,
        })
    }
}

/// A signed place in the chain. The entries up to it may be deleted.
pub struct Checkpoint {
    pub link: Link,
    pub signature: Vec<u8>,
}

fn corrupt(error: &serde_json::Error) -> DbErr {
    DbErr::Custom(format!("an audit entry is not valid JSON: {error}"))
}

/// The fields of an entry that are columns of the log. Every version can read them, so that entries
/// of a newer replica are chained too.
#[derive(Deserialize)]
pub struct Columns {
    pub id: AuditId,
    pub at: DateTimeUtc,
    pub user: Option<UserId>,
    pub action: String,
    pub target: Option<String>,
}

impl Columns {
    /// # Errors
    /// When the text is not an entry.
    pub fn read(text: &str) -> Result<Self, DbErr> {
        serde_json::from_str(text).map_err(|error| corrupt(&error))
    }
}

fn encode(entry: &AuditEntry) -> Result<String, DbErr> {
    serde_json::to_string(entry).map_err(|error| corrupt(&error))
}

fn decode(text: &str) -> Result<AuditEntry, DbErr> {
    serde_json::from_str(text).map_err(|error| corrupt(&error))
}

fn link(row: &QueryResult) -> Result<Link, DbErr> {
    let hash: Vec<u8> = row.try_get("", "hash")?;
    let hash: Hash = hash
        .try_into()
        .map_err(|_| DbErr::Custom("an audit hash does not have 32 bytes".to_owned()))?;
    Ok(Link {
        sequence: unsigned(row, "sequence")?,
        hash,
    })
}

/// Adds an entry to the outbox.
pub async fn enqueue(on: &impl ConnectionTrait, entry: &AuditEntry) -> Result<(), StoreError> {
    let insert = statement(
        "INSERT INTO audit_outbox (entry) VALUES ($1)",
        [encode(entry)?.into()],
    );
    let insert = on.execute_raw(insert);
    insert.instrument(span!(INSERT audit_outbox)).await?;
    Ok(())
}

/// The result of [`append`].
pub struct Appended {
    /// The end of the chain.
    pub head: Link,
    pub entries: usize,
    /// The outbox may have more entries.
    pub has_more: bool,
}

/// Whether the outbox has an entry.
pub async fn has_outbox_entries(on: &impl ConnectionTrait) -> Result<bool, StoreError> {
    // By the index, which soon skips the deleted rows that are not vacuumed yet.
    let any = statement(
        "SELECT number FROM audit_outbox ORDER BY number LIMIT 1",
        [],
    );
    Ok(on.query_one_raw(any).await?.is_some())
}

/// Chains the entries of the outbox, then `queued`, in one transaction. Leaves out those that are
/// in the log already. No span of its own: the entries are of several traces.
///
/// # Errors
/// When the database fails: nothing is chained then.
pub async fn append(
    database: &DatabaseConnection,
    queued: &[&AuditEntry],
) -> Result<Appended, StoreError> {
    let transaction = begin(database).await?;
    let appended = append_in(&transaction, queued).await?;
    commit(transaction).await?;
    Ok(appended)
}

async fn append_in(
    transaction: &DatabaseTransaction,
    queued: &[&AuditEntry],
) -> Result<Appended, StoreError> {
    // Two writers may overlap for a moment.
    advisory_lock(transaction, ADVISORY_LOCK, "audit-chain").await?;
    let (numbers, mut texts) = oldest_outbox_entries(transaction).await?;
    let mut known = known_ids(transaction, queued).await?;
    for entry in queued {
        texts.push(encode(entry)?);
    }
    let mut head = head(transaction).await?;
    let mut rows = Vec::with_capacity(texts.len());
    for text in texts {
        let entry = Columns::read(&text)?;
        if !known.insert(entry.id.to_string()) {
            continue;
        }
        head = head.next(&text);
        rows.push(json!({
            "sequence": head.sequence,
            "id": entry.id,
            "at": entry.at,
            "actor": entry.user,
            "action": entry.action,
            "target": entry.target,
            "entry": text,
            "hash": hex::encode(head.hash),
        }));
    }
    let appended = Appended {
        head,
        entries: rows.len(),
        has_more: numbers.len() >= BATCH,
    };
    if !rows.is_empty() {
        let insert = statement(
            "INSERT INTO audit_log (sequence, id, at, actor, action, target, entry, hash)
             SELECT (item ->> 'sequence')::bigint, item ->> 'id', (item ->> 'at')::timestamptz,
                item ->> 'actor', item ->> 'action', item ->> 'target', item ->> 'entry',
                decode(item ->> 'hash', 'hex')
             FROM jsonb_array_elements($1) AS items (item)",
            [serde_json::Value::Array(rows).into()],
        );
        transaction.execute_raw(insert).await?;
    }
    if !numbers.is_empty() {
        let delete = statement(
            "DELETE FROM audit_outbox
             WHERE number IN (SELECT value::bigint FROM jsonb_array_elements_text($1) AS n (value))",
            [json!(numbers).into()],
        );
        transaction.execute_raw(delete).await?;
    }
    Ok(appended)
}

/// The numbers and texts of the oldest entries in the outbox.
async fn oldest_outbox_entries(
    on: &impl ConnectionTrait,
) -> Result<(Vec<i64>, Vec<String>), DbErr> {
    let oldest = statement(
        "SELECT number, entry FROM audit_outbox ORDER BY number LIMIT $1",
        [bigint(BATCH as u64)],
    );
    let (mut numbers, mut texts) = (Vec::new(), Vec::new());
    for row in on.query_all_raw(oldest).await? {
        numbers.push(row.try_get("", "number")?);
        texts.push(row.try_get("", "entry")?);
    }
    Ok((numbers, texts))
}

/// The ids of those entries that are in the log.
async fn known_ids(
    on: &impl ConnectionTrait,
    entries: &[&AuditEntry],
) -> Result<BTreeSet<String>, DbErr> {
    if entries.is_empty() {
        return Ok(BTreeSet::new());
    }
    let ids: Vec<&str> = entries.iter().map(|entry| entry.id.as_str()).collect();
    let known = statement(
        "SELECT id FROM audit_log WHERE id IN (SELECT jsonb_array_elements_text($1))",
        [json!(ids).into()],
    );
    let rows = on.query_all_raw(known).await?;
    rows.iter()
        .map(|row| row.try_get::<String>("", "id"))
        .collect()
}

/// The end of the chain.
async fn head(on: &impl ConnectionTrait) -> Result<Link, DbErr> {
    let newest = statement(
        "SELECT sequence, hash FROM (
            SELECT sequence, hash FROM audit_log UNION ALL
            SELECT sequence, hash FROM audit_checkpoints
         ) AS links ORDER BY sequence DESC LIMIT 1",
        [],
    );
    let row = on.query_one_raw(newest).await?;
    row.as_ref().map_or(Ok(Link::GENESIS), link)
}

/// A page of the log, newest first, and the number of all entries that match, at most
/// [`MAX_COUNTED`]: no page begins after them.
pub async fn page(
    on: &impl ConnectionTrait,
    request: &ListAuditRequest,
) -> Result<(Vec<ChainRow>, u64), StoreError> {
    let mut values: Vec<Value> = Vec::new();
    let mut matches = String::from("true");
    let mut filter = |condition: &str, value: Option<Value>| {
        if let Some(value) = value {
            values.push(value);
            matches.push_str(&format!(" AND {condition} ${}", values.len()));
        }
    };
    filter(
        "actor =",
        request.user.as_ref().map(|user| user.as_str().into()),
    );
    filter(
        "action =",
        request.action.map(|action| action.as_str().into()),
    );
    filter("target =", request.target.as_deref().map(Into::into));
    // Every entry is later, and Postgres has no time before 4713 BC.
    let bound = |at: DateTimeUtc| Value::from(at.max(DateTimeUtc::UNIX_EPOCH));
    filter("at >=", request.since.map(bound));
    filter("at <", request.until.map(bound));
    let count = statement(
        format!(
            "SELECT count(*) AS total
             FROM (SELECT FROM audit_log WHERE {matches} LIMIT {MAX_COUNTED}) AS counted"
        ),
        values.clone(),
    );
    let (limit, offset) = (values.len() + 1, values.len() + 2);
    values.push(bigint(page_limit(request.limit)));
    values.push(bigint(page_offset(request.offset)));
    let page = statement(
        format!(
            "SELECT sequence, id, at, actor, action, target, entry, hash FROM audit_log
             WHERE {matches} ORDER BY sequence DESC LIMIT ${limit} OFFSET ${offset}"
        ),
        values,
    );
    let read = async {
        let total = on.query_one_raw(count).await?;
        let total = total.map_or(Ok(0), |row| unsigned(&row, "total"))?;
        // A large offset would read and drop all rows before it.
        if request.offset >= total {
            return Ok::<_, DbErr>((Vec::new(), total));
        }
        Ok((rows(on.query_all_raw(page).await?)?, total))
    };
    Ok(read.instrument(span!(SELECT audit_log)).await?)
}

fn rows(results: Vec<QueryResult>) -> Result<Vec<ChainRow>, DbErr> {
    let rows = results.iter();
    rows.map(|row| ChainRow::from_query_result(row, ""))
        .collect()
}

/// The next rows after `sequence`, oldest first.
pub async fn rows_after(
    on: &impl ConnectionTrait,
    sequence: u64,
) -> Result<Vec<ChainRow>, StoreError> {
    let next = statement(
        "SELECT sequence, id, at, actor, action, target, entry, hash FROM audit_log
         WHERE sequence > $1 ORDER BY sequence LIMIT $2",
        [bigint(sequence), bigint(BATCH as u64)],
    );
    let read = async { rows(on.query_all_raw(next).await?) };
    Ok(read.instrument(span!(SELECT audit_log)).await?)
}

/// All checkpoints, oldest first. There is at most one for each day.
pub async fn checkpoints(on: &impl ConnectionTrait) -> Result<Vec<Checkpoint>, StoreError> {
    let all = statement(
        "SELECT sequence, hash, signature FROM audit_checkpoints ORDER BY sequence",
        [],
    );
    let read = async {
        let rows = on.query_all_raw(all).await?;
        let checkpoint = |row: &QueryResult| {
            Ok::<_, DbErr>(Checkpoint {
                link: link(row)?,
                signature: row.try_get("", "signature")?,
            })
        };
        rows.iter().map(checkpoint).collect::<Result<Vec<_>, _>>()
    };
    Ok(read.instrument(span!(SELECT audit_checkpoints)).await?)
}

/// Keeps the retention from deleting entries until the transaction ends.
pub async fn lock_retention(transaction: &DatabaseTransaction) -> Result<(), StoreError> {
    Ok(advisory_lock(transaction, ADVISORY_LOCK, "audit-retention").await?)
}

/// Deletes entries that are older than `retention`, and first leaves a signed checkpoint. Returns
/// the number of deleted entries: [`PRUNED_AT_ONCE`] if there may be more.
///
/// # Errors
/// When the database fails.
pub async fn prune(
    database: &DatabaseConnection,
    key: &ChainKey,
    retention: Duration,
) -> Result<u64, StoreError> {
    let transaction = begin(database).await?;
    let pruned = async {
        lock_retention(&transaction).await?;
        if let Some(link) = expired(&transaction, retention).await? {
            let insert = statement(
                "INSERT INTO audit_checkpoints (sequence, hash, signature) VALUES ($1, $2, $3)
                 ON CONFLICT (sequence) DO NOTHING",
                [
                    bigint(link.sequence),
                    link.hash.to_vec().into(),
                    key.sign(&link).to_vec().into(),
                ],
            );
            transaction.execute_raw(insert).await?;
        }
        let delete = statement(
            "DELETE FROM audit_log WHERE sequence IN (
                SELECT sequence FROM audit_log
                WHERE sequence <= (SELECT max(sequence) FROM audit_checkpoints)
                ORDER BY sequence LIMIT $1)",
            [bigint(PRUNED_AT_ONCE)],
        );
        Ok::<_, StoreError>(transaction.execute_raw(delete).await?.rows_affected())
    };
    let pruned = pruned.instrument(span!(DELETE audit_log)).await?;
    commit(transaction).await?;
    Ok(pruned)
}

/// The last entry to delete: it and all before it are older than `retention`. `None` when there is none,
/// and when a checkpoint is younger than a day: one a day is enough.
async fn expired(on: &impl ConnectionTrait, retention: Duration) -> Result<Option<Link>, DbErr> {
    let expired = statement(
        "SELECT sequence, hash FROM audit_log
         WHERE sequence < coalesce(
                (SELECT min(sequence) FROM audit_log
                 WHERE at >= now() - make_interval(secs => $1)), 9223372036854775807)
            AND NOT EXISTS (SELECT FROM audit_checkpoints
                WHERE at > now() - make_interval(secs => least($1, 86400)))
         ORDER BY sequence DESC LIMIT 1",
        [seconds(retention)],
    );
    let row = on.query_one_raw(expired).await?;
    row.as_ref().map(link).transpose()
}
