//! Queries of table `tickets`.

use agentbox_contracts::identity::{TicketAction, TicketResource};
use agentbox_contracts::ids::{ApiKeyId, EnvironmentId, LoginId, UserId};
use agentbox_database::secret::Digest;
use agentbox_database::sql::statement;
use agentbox_database::{Text, span};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr, EntityTrait, FromQueryResult, Set};
use tracing::Instrument;

use super::rules::Issuer;
use crate::entity::tickets::{ActiveModel, Entity};
use crate::principal::ActiveCredential;
use crate::store::StoreError;

/// Redeems a ticket and reads its user and its issuer's expiry. Raw, because it is one
/// statement over four tables. Of two concurrent requests, the second finds `used_at` set.
const REDEEM: &str = "
    UPDATE tickets t SET used_at = now()
    FROM users u
    WHERE t.hash = $1 AND t.environment = $2 AND t.action = $3
      AND t.resource IS NOT DISTINCT FROM $4
      AND t.used_at IS NULL AND t.expires_at > now() AND u.id = t.user_id
      AND (EXISTS (SELECT 1 FROM logins l WHERE l.id = t.login_id
                   AND l.revoked_at IS NULL AND l.expires_at > now())
        OR EXISTS (SELECT 1 FROM api_keys k WHERE k.id = t.key_id
                   AND k.revoked_at IS NULL
                   AND (k.expires_at IS NULL OR k.expires_at > now())))
    RETURNING u.id AS user_id, u.username, u.role, u.limits, u.email, u.created_at,
        t.login_id, t.key_id,
        COALESCE((SELECT l.expires_at FROM logins l WHERE l.id = t.login_id),
                 (SELECT k.expires_at FROM api_keys k WHERE k.id = t.key_id)) AS expires_at";

pub struct NewTicket {
    pub hash: Digest,
    pub user: UserId,
    pub issuer: Issuer,
    pub environment: EnvironmentId,
    pub action: TicketAction,
    pub resource: Option<TicketResource>,
    pub expires_at: DateTime<Utc>,
}

/// The value of the column `resource`.
fn bytes(resource: Option<&TicketResource>) -> Option<Vec<u8>> {
    resource.map(|resource| resource.as_bytes().to_vec())
}

/// Inserts a ticket.
///
/// # Errors
/// A foreign key violation when the user or the issuer was deleted; a check violation when the
/// resource is not one of the action.
pub async fn insert(on: &impl ConnectionTrait, ticket: &NewTicket) -> Result<(), StoreError> {
    let (login, key) = match ticket.issuer.clone() {
        Issuer::Login(id) => (Some(Text(id)), None),
        Issuer::ApiKey(id) => (None, Some(Text(id))),
    };
    let ticket = ActiveModel {
        hash: Set(ticket.hash.to_vec()),
        user_id: Set(Text(ticket.user.clone())),
        login_id: Set(login),
        key_id: Set(key),
        environment: Set(Text(ticket.environment.clone())),
        action: Set(Text(ticket.action)),
        resource: Set(bytes(ticket.resource.as_ref())),
        expires_at: Set(ticket.expires_at),
        ..Default::default()
    };
    let insert = Entity::insert(ticket).exec_without_returning(on);
    insert.instrument(span!(INSERT tickets)).await?;
    Ok(())
}

#[derive(FromQueryResult)]
struct Redeemed {
    #[sea_orm(nested)]
    credential: ActiveCredential,
    login_id: Option<Text<LoginId>>,
    key_id: Option<Text<ApiKeyId>>,
}

/// Marks a ticket as used. `None` when it is unknown, expired or used, when it is for another
/// environment, action or resource, or when its issuer has expired or was revoked.
pub async fn redeem(
    on: &impl ConnectionTrait,
    hash: &Digest,
    environment: &EnvironmentId,
    action: TicketAction,
    resource: Option<&TicketResource>,
) -> Result<Option<(ActiveCredential, Issuer)>, StoreError> {
    let values = [
        hash.to_vec().into(),
        environment.as_str().into(),
        Text(action).into(),
        bytes(resource).into(),
    ];
    let redeem = Redeemed::find_by_statement(statement(REDEEM, values)).one(on);
    let Some(redeemed) = redeem.instrument(span!(UPDATE tickets)).await? else {
        return Ok(None);
    };
    let issuer = match (redeemed.login_id, redeemed.key_id) {
        (Some(Text(id)), _) => Issuer::Login(id),
        (None, Some(Text(id))) => Issuer::ApiKey(id),
        (None, None) => return Err(DbErr::Type("a ticket without an issuer".to_owned()).into()),
    };
    Ok(Some((redeemed.credential, issuer)))
}
