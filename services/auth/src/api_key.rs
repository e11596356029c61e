//! API keys: the credential of a program.
//!
//! Owns tables `api_keys` and `api_key_permissions`. Never stores a key, only its keyed
//! hash. The answer to its creation is the only place that has the key itself.
//!
//! * I1. A key's permissions never change: other permissions need another key.
//! * I2. A user has at most the configured number of active keys, also under concurrency.

pub mod format;
pub mod last_used;
pub mod rules;
pub mod store;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::ApiKey;
use agentbox_contracts::identity::rpc::{
    CreateKeyReply, CreateKeyRequest, KeyRequest, ListKeysReply, ListKeysRequest, Secret,
};
use agentbox_database::secret::{MasterSecret, Purpose};
use chrono::Utc;
use sea_orm::DatabaseConnection;

use crate::audit::{self, Action, Entry};
use crate::store::{begin, commit};

pub struct ApiKeys {
    database: DatabaseConnection,
    secret: MasterSecret,
    per_user: u32,
}

impl ApiKeys {
    pub fn new(database: DatabaseConnection, secret: MasterSecret, per_user: u32) -> Self {
        Self {
            database,
            secret,
            per_user,
        }
    }

    /// Creates a key, and returns its text once.
    ///
    /// # Errors
    /// Validation; QuotaExceeded; NotFound when the owner does not exist.
    pub async fn create(&self, request: CreateKeyRequest) -> Result<CreateKeyReply, Error> {
        rules::check(&request)?;
        let transaction = begin(&self.database).await?;
        let active = store::lock_owner_and_count(&transaction, &request.owner)
            .await?
            .ok_or_else(|| Error::not_found("user"))?;
        if active >= u64::from(self.per_user) {
            return Err(Error::new(
                ErrorCode::QuotaExceeded,
                format!(
                    "a user may have at most {} active API keys: revoke one first",
                    self.per_user
                ),
            ));
        }
        let minted = format::mint();
        let hash = self.secret.digest(Purpose::ApiKey, minted.text.as_bytes());
        let expires_at = rules::expires_at(Utc::now(), request.expires_in_days);
        let api_key = store::insert(&transaction, &minted.id, &hash, request, expires_at).await?;
        let entry = Entry {
            actor: Some(&api_key.owner),
            action: Action::CreateKey,
            target: Some(api_key.id.as_str()),
            ok: true,
        };
        audit::record(&transaction, entry).await?;
        commit(transaction).await?;
        Ok(CreateKeyReply {
            api_key,
            key: Secret(minted.text),
        })
    }

    pub async fn list(&self, request: ListKeysRequest) -> Result<ListKeysReply, Error> {
        let (api_keys, total) = store::page(
            &self.database,
            &request.owner,
            request.limit,
            request.offset,
        )
        .await?;
        Ok(ListKeysReply { api_keys, total })
    }

    pub async fn get(&self, request: KeyRequest) -> Result<ApiKey, Error> {
        store::find(&self.database, &request.owner, &request.id)
            .await?
            .ok_or_else(not_found)
    }

    /// Revokes a key of the caller. Every replica refuses it at once.
    ///
    /// # Errors
    /// NotFound when the key is another user's or was revoked already.
    pub async fn revoke(&self, request: KeyRequest) -> Result<(), Error> {
        let transaction = begin(&self.database).await?;
        if !store::revoke(&transaction, &request.owner, &request.id).await? {
            return Err(not_found());
        }
        let entry = Entry {
            actor: Some(&request.owner),
            action: Action::RevokeKey,
            target: Some(request.id.as_str()),
            ok: true,
        };
        audit::record(&transaction, entry).await?;
        Ok(commit(transaction).await?)
    }
}

fn not_found() -> Error {
    Error::not_found("API key")
}
