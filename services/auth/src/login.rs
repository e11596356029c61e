//! Logins: a password exchanged for a token that can be revoked.
//!
//! Owns table `logins`. A token is valid while its login's row is valid. Never stores a token.
//!
//! * I1. An unknown user and a wrong password get the same answer after the same work.
//! * I2. A login whose password was replaced while it was verified is not recorded.

pub mod store;
pub mod token;
pub mod verified;

use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::{LoginReply, LoginRequest, LogoutRequest, Secret};
use agentbox_contracts::identity::{Credential, Principal, User};
use agentbox_contracts::ids::LoginId;
use chrono::{SubsecRound, Utc};
use sea_orm::DatabaseConnection;

use crate::audit::{self, Action, Entry};
use crate::metrics;
use crate::password::Hasher;
use crate::signing_key::Keyring;
use crate::store::{begin, commit};
use crate::user;

pub struct Logins {
    database: DatabaseConnection,
    hasher: Arc<Hasher>,
    keyring: Arc<Keyring>,
    token_ttl: Duration,
}

impl Logins {
    pub fn new(
        database: DatabaseConnection,
        hasher: Arc<Hasher>,
        keyring: Arc<Keyring>,
        token_ttl: Duration,
    ) -> Self {
        Self {
            database,
            hasher,
            keyring,
            token_ttl,
        }
    }

    /// Verifies a password, records a login and returns its token.
    ///
    /// # Errors
    /// InvalidCredentials; Unavailable when too many log in at once.
    pub async fn login(&self, request: LoginRequest) -> Result<LoginReply, Error> {
        let outcome = self.try_login(&request).await;
        metrics::login(outcome.is_ok());
        outcome
    }

    async fn try_login(&self, request: &LoginRequest) -> Result<LoginReply, Error> {
        // An invalid username gets the same work as an unknown one (I1). No user has the empty one.
        let is_valid = user::rules::username(&request.username).is_ok();
        let username = if is_valid {
            request.username.as_str()
        } else {
            ""
        };
        let user = user::store::find_by_username(&self.database, username).await?;
        let hash = user.as_ref().map(|user| user.password_hash.as_str());
        let password_matches = self.hasher.verify(&request.password, hash).await?;
        let id = user.as_ref().map(|user| user.id.0.clone());
        let entry = |login| Entry {
            actor: id.as_ref(),
            action: Action::Login,
            target: login,
            ok: password_matches,
        };
        let Some(user) = user.filter(|_| password_matches) else {
            audit::record(&self.database, entry(None)).await?;
            return Err(refused());
        };

        let now = Utc::now().trunc_subsecs(0);
        let login = store::NewLogin {
            id: LoginId::random(),
            issued_at: now,
            expires_at: now + self.token_ttl,
        };
        let key = self.keyring.signer(now).await?;
        let verified = User::from(user.clone());
        let token = token::sign(&token::Claims::new(&verified, &login), &key).map_err(|error| {
            tracing::error!(error = %ErrorChain(&error), "token not signed");
            Error::internal()
        })?;
        let transaction = begin(&self.database).await?;
        if !store::insert(&transaction, &login, &user).await? {
            return Err(refused());
        }
        audit::record(&transaction, entry(Some(login.id.as_str()))).await?;
        commit(transaction).await?;
        Ok(LoginReply {
            token: Secret(token),
            expires_at: login.expires_at,
            user: verified,
        })
    }

    /// Revokes the login that the caller presented; every replica refuses it at once.
    ///
    /// # Errors
    /// Forbidden for an API key or a ticket: they have no login of their own.
    pub async fn logout(&self, request: LogoutRequest) -> Result<(), Error> {
        let Principal {
            user,
            credential: Credential::Login { id },
            ..
        } = &request.principal
        else {
            return Err(Error::new(
                ErrorCode::Forbidden,
                "only a login can be logged out",
            ));
        };
        let transaction = begin(&self.database).await?;
        store::revoke(&transaction, user, id).await?;
        let entry = Entry {
            actor: Some(user),
            action: Action::Logout,
            target: Some(id.as_str()),
            ok: true,
        };
        audit::record(&transaction, entry).await?;
        Ok(commit(transaction).await?)
    }
}

fn refused() -> Error {
    Error::new(
        ErrorCode::InvalidCredentials,
        "the username or the password is wrong",
    )
}
