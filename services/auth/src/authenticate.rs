//! Authentication: the principal of a credential. The gateway asks for each public request whose credential it
//! may not answer for under its lease ([`crate::gateway_lease`]).
//!
//! * I1. Postgres decides each time, in one indexed query. So a credential that any replica has
//!   revoked is refused at once. Only the signature of a token, which cannot change, is verified once.
//!   A table that decides, and that is new, needs the triggers of migration `m0009_gateway_leases`.
//! * I2. The error for a refused credential depends on its kind, not on the reason.
//! * I3. A text that cannot be a credential costs no query.

use std::sync::Arc;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::{AuthenticateRequest, Secret};
use agentbox_contracts::identity::{Credential, Principal, Scope};
use agentbox_contracts::ids::{ApiKeyId, LoginId, UserId};
use agentbox_database::secret::{MasterSecret, Purpose};
use chrono::Utc;
use sea_orm::DatabaseConnection;
use subtle::ConstantTimeEq;

use crate::api_key::last_used::LastUsed;
use crate::login::token;
use crate::login::verified::{ProvenLogin, VerifiedTokens};
use crate::metrics;
use crate::signing_key::{Key, Keyring};
use crate::ticket::{self, Tickets};
use crate::{api_key, login};

pub struct Authenticator {
    pub database: DatabaseConnection,
    pub secret: MasterSecret,
    pub keyring: Arc<Keyring>,
    pub tickets: Arc<Tickets>,
    pub last_used: Arc<LastUsed>,
    pub verified_tokens: VerifiedTokens,
}

impl Authenticator {
    /// Returns the principal of a credential.
    ///
    /// # Errors
    /// Unauthorized; Unavailable when Postgres does not answer.
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
                resource,
            } => (
                "ticket",
                "the ticket is not valid",
                self.tickets
                    .redeem(&ticket, environment, action, resource)
                    .await?,
            ),
            AuthenticateRequest::Revalidate { user, credential } => (
                "revalidate",
                "the credential is no longer valid",
                self.revalidate(&user, credential).await?,
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
        let known = self.verified_tokens.get(token);
        let Some(login) = known.or_else(|| self.verify(token, &key)) else {
            return Ok(None);
        };
        self.by_login(&login.user, login.id).await
    }

    /// The login of a token, if `key` has signed it.
    fn verify(&self, token: &Secret, key: &Key) -> Option<ProvenLogin> {
        let claims = token::verify(&token.0, key).ok()?;
        let login = ProvenLogin {
            user: claims.sub,
            id: claims.jti,
        };
        self.verified_tokens.insert(token, login.clone());
        Some(login)
    }

    async fn by_login(&self, user: &UserId, id: LoginId) -> Result<Option<Principal>, Error> {
        let active = login::store::find_active(&self.database, user, &id).await?;
        Ok(active.map(|login| login.principal(Credential::Login { id }, Scope::Full)))
    }

    async fn by_key(&self, text: &Secret) -> Result<Option<Principal>, Error> {
        let Some(id) = api_key::format::parse(&text.0) else {
            return Ok(None);
        };
        let digest = self.secret.digest(Purpose::ApiKey, text.0.as_bytes());
        let active = api_key::store::find_active(&self.database, &id).await?;
        let Some(key) = active.filter(|key| bool::from(key.hash.ct_eq(&digest))) else {
            return Ok(None);
        };
        self.last_used.record(&id, Utc::now());
        Ok(Some(key.principal(id)))
    }

    /// Revalidates the key of an open stream. Its hash was checked when the stream was opened.
    async fn by_key_id(&self, user: &UserId, id: ApiKeyId) -> Result<Option<Principal>, Error> {
        let active = api_key::store::find_active(&self.database, &id).await?;
        Ok(active
            .filter(|key| key.credential.user_id.0 == *user)
            .map(|key| key.principal(id)))
    }

    /// The principal of a credential that was presented before. `None`: it is no longer valid.
    pub async fn revalidate(
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
                resource,
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
                        resource,
                        issued_by,
                    },
                    management: false,
                    ..issuer
                }))
            }
        }
    }
}
