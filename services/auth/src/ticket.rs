//! Tickets: a credential for the query string of a browser's stream.
//!
//! Owns table `tickets`. Never stores a ticket, only its keyed hash.
//!
//! * I1. A ticket is redeemed once, for the environment, the action, and the execution or path that
//!   it was made for.
//! * I2. It grants no more than its action needs. It is void once its issuer, the login or API
//!   key that asked for it, has expired or was revoked.

pub mod rules;
pub mod store;

use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::{Secret, TicketReply, TicketRequest};
use agentbox_contracts::identity::{Principal, TicketAction, TicketResource};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_database::secret::{Digest, MasterSecret, Purpose};
use chrono::Utc;
use sea_orm::DatabaseConnection;

use crate::audit::{self, Action, Entry};
use crate::store::{begin, commit};

const PREFIX: &str = "ticket_";
const RANDOM_BYTES: usize = 24;
const TEXT_LEN: usize = PREFIX.len() + 2 * RANDOM_BYTES;

pub struct Tickets {
    database: DatabaseConnection,
    secret: MasterSecret,
    ttl: Duration,
}

impl Tickets {
    pub fn new(database: DatabaseConnection, secret: MasterSecret, ttl: Duration) -> Self {
        Self {
            database,
            secret,
            ttl,
        }
    }

    fn digest(&self, text: &str) -> Digest {
        self.secret.digest(Purpose::Ticket, text.as_bytes())
    }

    /// Issues a ticket for one environment, one action and its resource.
    ///
    /// # Errors
    /// NotFound or Forbidden when the caller's own credential does not grant as much;
    /// Unauthorized when it was revoked meanwhile.
    pub async fn issue(&self, request: TicketRequest) -> Result<TicketReply, Error> {
        let issuer = rules::issuer(&request.principal, &request.environment, request.action)?;
        let text = format!(
            "{PREFIX}{}",
            hex::encode(rand::random::<[u8; RANDOM_BYTES]>())
        );
        let ticket = store::NewTicket {
            hash: self.digest(&text),
            user: request.principal.user,
            issuer,
            environment: request.environment,
            action: request.action,
            resource: request.resource,
            expires_at: Utc::now() + self.ttl,
        };
        let transaction = begin(&self.database).await?;
        store::insert(&transaction, &ticket)
            .await
            .map_err(|error| {
                if error.is_foreign_key_violation() {
                    Error::new(ErrorCode::Unauthorized, "the credential is no longer valid")
                } else {
                    error.into()
                }
            })?;
        let entry = Entry {
            actor: Some(&ticket.user),
            action: Action::IssueTicket,
            target: Some(ticket.environment.as_str()),
            ok: true,
        };
        audit::record(&transaction, entry).await?;
        commit(transaction).await?;
        Ok(TicketReply {
            ticket: Secret(text),
            expires_at: ticket.expires_at,
        })
    }

    /// Redeems a ticket, which cannot be used again. `None`: it is not valid, for any reason.
    pub async fn redeem(
        &self,
        ticket: &Secret,
        environment: EnvironmentId,
        action: TicketAction,
        resource: Option<TicketResource>,
    ) -> Result<Option<Principal>, Error> {
        if ticket.0.len() != TEXT_LEN || !ticket.0.starts_with(PREFIX) {
            return Ok(None);
        }
        let digest = self.digest(&ticket.0);
        let bound_to = resource.as_ref();
        let redeemed =
            store::redeem(&self.database, &digest, &environment, action, bound_to).await?;
        Ok(redeemed.map(|(credential, issuer)| {
            let scope = rules::scope(&environment, action);
            credential.principal(issuer.ticket(environment, action, resource), scope)
        }))
    }
}
