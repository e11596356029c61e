//! Is this credential good, and whose is it? Asked for every request.
//!
//! * I1. Postgres decides each time, in one indexed query: what was revoked a moment ago,
//!   on whichever replica, is refused now.
//! * I2. All that is not good gives the same error for its kind, whatever the reason.
//! * I3. What cannot be a credential of ours costs no query.

use std::sync::Arc;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::{AuthenticateRequest, Secret};
use agentbox_contracts::identity::{Credential, Principal, Scope};
use agentbox_contracts::ids::{ApiKeyId, LoginId, UserId};
use chrono::Utc;
use sea_orm::DatabaseConnection;
use subtle::ConstantTimeEq;

use crate::api_key::last_used::LastUsed;
use crate::login::token;
use crate::metrics;
use crate::secret::{MasterSecret, Purpose};
use crate::signing_key::Keyring;
use crate::ticket::{self, Tickets};
use crate::{api_key, login};

pub struct Authenticator {
    pub database: DatabaseConnection,
    pub secret: MasterSecret,
    pub keyring: Arc<Keyring>,
    pub tickets: Arc<Tickets>,
    pub last_used: Arc<LastUsed>,
}

impl Authenticator {
    /// # Errors
    /// Unauthorized; Unavailable when Postgres cannot say.
    pub async fn authenticate(&self, request: AuthenticateRequest) -> Result<Principal, Error> {
        let (kind, refusal, principal) = match request {
            AuthenticateRequest::Bearer { token }
                if token.0.starts_with(api_key::format::PREFIX) =>
            {
                (
                    "api_key",
                    "the API key is not valid",
                    self.by_key(&token).await?,
                )
            }
            AuthenticateRequest::Bearer { token } => (
                "token",
                "the token is not valid",
                self.by_token(&token).await?,
            ),
            AuthenticateRequest::Ticket {
                ticket,
                environment,
                action,
            } => (
                "ticket",
                "the ticket is not valid",
                self.tickets.redeem(&ticket, environment, action).await?,
            ),
            AuthenticateRequest::Again { user, credential } => (
                "again",
                "the credential is no longer valid",
                self.again(&user, credential).await?,
            ),
        };
        metrics::authenticated(kind, principal.is_some());
        principal.ok_or_else(|| Error::new(ErrorCode::Unauthorized, refusal))
    }

    async fn by_token(&self, token: &Secret) -> Result<Option<Principal>, Error> {
        let Some(kid) = token::key_id(&token.0) else {
            return Ok(None);
        };
        let Some(key) = self.keyring.verifier(&kid, Utc::now()).await? else {
            return Ok(None);
        };
        match token::verify(&token.0, &key) {
            Ok(claims) => self.by_login(&claims.sub, claims.jti).await,
            Err(_) => Ok(None),
        }
    }

    async fn by_login(&self, user: &UserId, id: LoginId) -> Result<Option<Principal>, Error> {
        let live = login::store::find_live(&self.database, user, &id).await?;
        Ok(live.map(|live| live.principal(Credential::Login { id }, Scope::Full)))
    }

    async fn by_key(&self, text: &Secret) -> Result<Option<Principal>, Error> {
        let Some(id) = api_key::format::parse(&text.0) else {
            return Ok(None);
        };
        let digest = self.secret.digest(Purpose::ApiKey, text.0.as_bytes());
        let found = api_key::store::find_live(&self.database, &id).await?;
        let Some(key) = found.filter(|key| bool::from(key.hash.ct_eq(&digest))) else {
            return Ok(None);
        };
        self.last_used.note(&id, Utc::now());
        Ok(Some(
            key.live.principal(Credential::ApiKey { id }, key.scope),
        ))
    }

    /// The key of a stream that runs on: it was shown when the stream began.
    async fn by_key_id(&self, user: &UserId, id: ApiKeyId) -> Result<Option<Principal>, Error> {
        let found = api_key::store::find_live(&self.database, &id).await?;
        Ok(found
            .filter(|key| key.live.user == *user)
            .map(|key| key.live.principal(Credential::ApiKey { id }, key.scope)))
    }

    async fn again(
        &self,
        user: &UserId,
        credential: Credential,
    ) -> Result<Option<Principal>, Error> {
        match credential {
            Credential::Login { id } => self.by_login(user, id).await,
            Credential::ApiKey { id } => self.by_key_id(user, id).await,
            Credential::Ticket {
                environment,
                action,
                issued_by,
            } => {
                let issuer = match *issued_by.clone() {
                    Credential::Login { id } => self.by_login(user, id).await?,
                    Credential::ApiKey { id } => self.by_key_id(user, id).await?,
                    Credential::Ticket { .. } => None,
                };
                Ok(issuer.map(|issuer| Principal {
                    scope: ticket::rules::scope(&environment, action),
                    credential: Credential::Ticket {
                        environment,
                        action,
                        issued_by,
                    },
                    ..issuer
                }))
            }
        }
    }
}
