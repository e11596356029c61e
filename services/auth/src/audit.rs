//! The audit trail: actor, action, target, time and result of each change to an identity.
//!
//! * I1. Append only: the database refuses updates, and only the retention deletes entries.
//! * I2. An entry has ids and values of closed lists, so neither a secret nor a text from a
//!   request is in it.
//! * I3. An entry is written in the transaction of the action that it records.

use agentbox_contracts::ids::UserId;
use agentbox_database::{Text, span};
use sea_orm::{ConnectionTrait, EntityTrait, Set};
use tracing::Instrument;

use crate::entity::audit::{ActiveModel, Entity, Outcome};
use crate::store::StoreError;

pub use crate::entity::audit::Action;

/// One line of the trail.
pub struct Entry<'a> {
    /// The user that acted. `None`: auth itself, or a login as a user that does not exist.
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
    let entry = ActiveModel {
        actor: Set(entry.actor.cloned().map(Text)),
        action: Set(entry.action),
        target: Set(entry.target.map(ToOwned::to_owned)),
        result: Set(if entry.ok {
            Outcome::Ok
        } else {
            Outcome::Refused
        }),
        ..Default::default()
    };
    let insert = Entity::insert(entry).exec_without_returning(on);
    insert.instrument(span!(INSERT audit)).await?;
    Ok(())
}
