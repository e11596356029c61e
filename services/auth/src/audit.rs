//! The audit trail: who did what to which identity, when, and with which result.
//!
//! * I1. Append only: the database refuses changes; only the retention removes.
//! * I2. No secret and no text that a stranger typed: ids and words of closed lists.
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
    /// `None`: auth itself, an administrator whom the request does not name, or a user that
    /// does not exist.
    pub actor: Option<&'a UserId>,
    pub action: Action,
    /// The id that the action was about.
    pub target: Option<&'a str>,
    pub ok: bool,
}

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
