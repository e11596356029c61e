//! Logins: a password turned into a token that can be taken back.
//!
//! Owns table `logins`; a token is good while its row is. Never keeps a token.
//!
//! * I1. An unknown user and a wrong password give the same words after the same work.
//! * I2. A login whose password was replaced while it was verified is not recorded.

pub mod store;
pub mod token;

use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::{LoginReply, LoginRequest, LogoutRequest, Secret};
use agentbox_contracts::identity::{Credential, Principal};
use agentbox_contracts::ids::LoginId;
use chrono::{SubsecRound, Utc};
use sea_orm::DatabaseConnection;

use crate::audit::{self, Action, Entry};
use crate::error::StoreError;
use crate::metrics;
use crate::password::Hasher;
use crate::signing_key::Keyring;
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

    /// # Errors
    /// InvalidCredentials; Unavailable when too many log in at once.
    pub async fn login(&self, request: LoginRequest) -> Result<LoginReply, Error> {
        let outcome = self.try_login(&request).await;
        metrics::login(outcome.is_ok());
        outcome
    }

    async fn try_login(&self, request: &LoginRequest) -> Result<LoginReply, Error> {
        // What cannot be a username is nobody's; it takes the same way as one that could.
        let is_name = user::rules::username(&request.username).is_ok();
        let username = if is_name {
            request.username.as_str()
        } else {
            ""
        };
        let account = user::store::find_account_by_username(&self.database, username).await?;
        let hash = account
            .as_ref()
            .map(|account| account.password_hash.as_str());
        let is_right = self.hasher.verify(&request.password, hash).await?;
        let id = account.as_ref().map(|account| account.user.id.clone());
        let entry = |login| Entry {
            actor: id.as_ref(),
            action: Action::Login,
            target: login,
            ok: is_right,
        };
        let Some(account) = account.filter(|_| is_right) else {
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
        let claims = token::Claims::new(&account.user, &login);
        let token = token::sign(&claims, &key).map_err(|error| {
            tracing::error!(%error, "a token cannot be signed");
            Error::internal()
        })?;
        let transaction = agentbox_database::begin(&self.database)
            .await
            .map_err(StoreError::from)?;
        if !store::insert(&transaction, &login, &account).await? {
            return Err(refused());
        }
        audit::record(&transaction, entry(Some(login.id.as_str()))).await?;
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(LoginReply {
            token: Secret(token),
            expires_at: login.expires_at,
            user: account.user,
        })
    }

    /// Ends the login that the caller came with; on every replica at once.
    ///
    /// # Errors
    /// Forbidden for a key or a ticket: those are not logged in.
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
        let transaction = agentbox_database::begin(&self.database)
            .await
            .map_err(StoreError::from)?;
        store::revoke(&transaction, user, id).await?;
        let entry = Entry {
            actor: Some(user),
            action: Action::Logout,
            target: Some(id.as_str()),
            ok: true,
        };
        audit::record(&transaction, entry).await?;
        transaction.commit().await.map_err(StoreError::from)?;
        Ok(())
    }
}

fn refused() -> Error {
    Error::new(
        ErrorCode::InvalidCredentials,
        "the username or the password is wrong",
    )
}
