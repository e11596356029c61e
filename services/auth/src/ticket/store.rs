//! SQL of table `tickets`.

use agentbox_contracts::identity::TicketAction;
use agentbox_contracts::ids::{EnvironmentId, UserId};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, QueryResult};

use super::rules::Issuer;
use crate::error::StoreError;
use crate::principal::{Live, live};
use crate::secret::Digest;
use crate::sql::statement;

pub struct NewTicket {
    pub hash: Digest,
    pub user: UserId,
    pub issuer: Issuer,
    pub environment: EnvironmentId,
    pub action: TicketAction,
    pub expires_at: DateTime<Utc>,
}

const fn action_text(action: TicketAction) -> &'static str {
    match action {
        TicketAction::Logs => "logs",
        TicketAction::Attach => "attach",
    }
}

#[tracing::instrument(name = "tickets.insert", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "tickets.insert"))]
pub async fn insert(on: &impl ConnectionTrait, ticket: &NewTicket) -> Result<(), StoreError> {
    let (login, key) = match &ticket.issuer {
        Issuer::Login(id) => (Some(id.as_str().to_owned()), None),
        Issuer::ApiKey(id) => (None, Some(id.as_str().to_owned())),
    };
    on.execute_raw(statement(
        "INSERT INTO tickets (hash, user_id, login_id, key_id, environment, action, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        [
            ticket.hash.to_vec().into(),
            ticket.user.as_str().into(),
            login.into(),
            key.into(),
            ticket.environment.as_str().into(),
            action_text(ticket.action).into(),
            ticket.expires_at.into(),
        ],
    ))
    .await?;
    Ok(())
}

/// Uses the ticket up in the statement that reads it: of two at once, the second finds
/// `used_at` set. The credential it was made with must not have ended.
#[tracing::instrument(name = "tickets.redeem", skip_all, fields(otel.kind = "client", db.system.name = "postgresql", db.operation.name = "tickets.redeem"))]
pub async fn redeem(
    on: &impl ConnectionTrait,
    hash: &Digest,
    environment: &EnvironmentId,
    action: TicketAction,
) -> Result<Option<(Live, Issuer)>, StoreError> {
    let row = on
        .query_one_raw(statement(
            "UPDATE tickets t SET used_at = now()
             FROM users u
             WHERE t.hash = $1 AND t.environment = $2 AND t.action = $3
               AND t.used_at IS NULL AND t.expires_at > now() AND u.id = t.user_id
               AND (EXISTS (SELECT 1 FROM logins l WHERE l.id = t.login_id
                            AND l.revoked_at IS NULL AND l.expires_at > now())
                 OR EXISTS (SELECT 1 FROM api_keys k WHERE k.id = t.key_id
                            AND k.revoked_at IS NULL
                            AND (k.expires_at IS NULL OR k.expires_at > now())))
             RETURNING u.id AS user_id, u.username, u.role, t.login_id, t.key_id,
                 COALESCE((SELECT l.expires_at FROM logins l WHERE l.id = t.login_id),
                          (SELECT k.expires_at FROM api_keys k WHERE k.id = t.key_id))
                 AS expires_at",
            [
                hash.to_vec().into(),
                environment.as_str().into(),
                action_text(action).into(),
            ],
        ))
        .await?;
    row.map(|row| Ok((live(&row)?, issuer(&row)?))).transpose()
}

fn issuer(row: &QueryResult) -> Result<Issuer, StoreError> {
    if let Some(id) = row.try_get::<Option<String>>("", "login_id")? {
        let id = id
            .parse()
            .map_err(|error| StoreError::corrupt("login id", error))?;
        return Ok(Issuer::Login(id));
    }
    row.try_get::<String>("", "key_id")?
        .parse()
        .map(Issuer::ApiKey)
        .map_err(|error| StoreError::corrupt("key id", error))
}
