//! The audit trail: who did what, to what, when, from where, and with which outcome.
//!
//! Owns tables `audit_outbox`, `audit_log` and `audit_checkpoints`. An action of auth is written to
//! the outbox in its own transaction. The actions of other services arrive on the bus. One replica
//! chains both in batches ([`writer`]). The entries of `audit_log` form a hash chain ([`chain`]).
//!
//! * I1. Append only: the database refuses to change an entry, and to delete one that no signed
//!   checkpoint covers. Only the retention makes checkpoints.
//! * I2. An entry has ids and values of closed lists, so neither a secret nor a text from a
//!   request is in it. The arguments of commands are, if the operator says so.
//! * I3. An entry is written in the transaction of the action that it records, or is stored by
//!   JetStream before the action begins.
//! * I4. An entry is chained once, however often it is delivered.
//! * I5. The end of the chain is published once an hour, by default, outside of Postgres, so that a
//!   trail whose newest entries were removed is found by [`verify`].

pub mod chain;
pub mod store;
pub mod verify;
pub mod writer;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::audit::rpc::{ChainedEntry, ListAuditReply, ListAuditRequest};
use agentbox_contracts::audit::{AuditEntry, AuditOutcome, Origin};
use agentbox_contracts::error::Error;
use agentbox_contracts::ids::UserId;
use sea_orm::{ConnectionTrait, DatabaseConnection};

use crate::store::{StoreError, snapshot};

pub use agentbox_contracts::audit::AuditAction as Action;

/// The most bytes of entries in one reply: below NATS' limit of 1 MiB for a message.
const MAX_REPLY_BYTES: usize = 900 * 1000;

/// An action of auth.
pub struct Entry<'a> {
    /// The user that acted. `None`: the one that sent the request, or auth itself.
    pub actor: Option<&'a UserId>,
    pub action: Action,
    /// The id that the action was about.
    pub target: Option<&'a str>,
    pub ok: bool,
}

/// Adds an entry to the trail.
///
/// # Errors
/// When the database fails.
pub async fn record(on: &impl ConnectionTrait, entry: Entry<'_>) -> Result<(), StoreError> {
    let mut origin = match agentbox_bus::current_origin() {
        Some(origin) => origin,
        None if entry.action.is_internal() => Origin::default(),
        None => {
            tracing::error!(action = %entry.action, "a request without an origin was recorded");
            Origin::missing()
        }
    };
    if let Some(actor) = entry.actor {
        origin.user = Some(actor.clone());
    }
    let outcome = if entry.ok {
        AuditOutcome::Ok
    } else {
        AuditOutcome::Refused
    };
    let entry = AuditEntry::new(origin, entry.action, entry.target, outcome);
    store::enqueue(on, &entry).await
}

/// Returns a page of the trail, or the first part of it that fits in a message.
///
/// # Errors
/// When the database fails.
pub async fn list(
    database: &DatabaseConnection,
    request: ListAuditRequest,
) -> Result<ListAuditReply, Error> {
    let snapshot = snapshot(database).await?;
    let (rows, total) = store::page(&snapshot, &request).await?;
    drop(snapshot);
    let page = rows.len();
    let mut entries: Vec<ChainedEntry> = Vec::with_capacity(page);
    let (mut bytes, mut read) = (0, 0);
    for row in rows {
        // The hash and the names of the fields.
        bytes += row.entry.len() + 160;
        if bytes > MAX_REPLY_BYTES && !entries.is_empty() {
            break;
        }
        read += 1;
        match row.decode() {
            Ok(entry) => entries.push(entry),
            // A newer replica has written it. The others are still listed.
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "an audit entry of a newer version was not listed");
            }
        }
    }
    Ok(ListAuditReply {
        has_more: read < page,
        entries,
        total,
    })
}
