//! API keys: the credential of a program.
//!
//! Owns tables `api_keys` and `api_key_permissions`. Never stores a key, only its keyed
//! hash. The answer to its creation is the only place that has the key itself.
//!
//! * I1. A key's permissions never change: other permissions need another key.
//! * I2. A user has at most the configured number of active keys, also under concurrency.
//! * I3. A key ends with the key that created it: it expires no later, and is revoked with it.

pub mod format;
pub mod last_used;
pub mod rules;
pub mod store;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::rpc::{
    CreateKeyReply, CreateKeyRequest, KeyRequest, ListKeysReply, ListKeysRequest, RevokeKeyRequest,
    Secret,
};
use agentbox_contracts::identity::{ApiKey, Credential};
use agentbox_contracts::ids::UserId;
use agentbox_database::secret::{MasterSecret, Purpose};
use chrono::{DateTime, Utc};
use sea_orm::{DatabaseConnection, DatabaseTransaction};

use crate::audit::{self, Action, Entry};
use crate::login;
use crate::store::{StoreError, begin, commit, snapshot};

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
        if !store::lock_owner(&transaction, &request.owner).await? {
            return Err(Error::not_found("user"));
        }
        let latest = creator_expiry(&transaction, &request).await?;
        let active = store::count_active(&transaction, &request.owner).await?;
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
        let expires_at = rules::expires_at(Utc::now(), request.expires_in_days, latest);
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

    /// Returns one page of the keys of an owner.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn list(&self, request: ListKeysRequest) -> Result<ListKeysReply, Error> {
        let snapshot = snapshot(&self.database).await?;
        let ListKeysRequest {
            owner,
            limit,
            offset,
        } = request;
        let (api_keys, total) = store::page(&snapshot, &owner, limit, offset).await?;
        Ok(ListKeysReply { api_keys, total })
    }

    /// Returns one key of an owner, without its text.
    ///
    /// # Errors
    /// NotFound when the owner has no such key.
    pub async fn get(&self, request: KeyRequest) -> Result<ApiKey, Error> {
        store::find(&self.database, &request.owner, &request.id)
            .await?
            .ok_or_else(not_found)
    }

    /// Revokes a key of the caller, and the keys that it created. Every replica refuses them at once.
    ///
    /// # Errors
    /// NotFound when the key is another user's or was revoked already. Forbidden for a key that the
    /// asking key did not create.
    pub async fn revoke(&self, request: RevokeKeyRequest) -> Result<(), Error> {
        let transaction = begin(&self.database).await?;
        store::lock_owner(&transaction, &request.owner).await?;
        let key = store::find(&transaction, &request.owner, &request.id).await?;
        if key.is_none() {
            return Err(not_found());
        }
        if let Some(creator) = &request.creator
            && !store::is_made_by(&transaction, &request.id, creator).await?
        {
            return Err(Error::new(
                ErrorCode::Forbidden,
                "an API key can revoke only itself and the keys that it made: log in, or use a \
                 key with `management`",
            ));
        }
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

/// When the key that sent `request` expires; `None`: never, or a login sent it. The caller has locked the
/// owner.
///
/// # Errors
/// Unauthorized when the creator was revoked or has expired since it was authenticated.
async fn creator_expiry(
    on: &DatabaseTransaction,
    request: &CreateKeyRequest,
) -> Result<Option<DateTime<Utc>>, Error> {
    let ended = || Error::new(ErrorCode::Unauthorized, "the credential is no longer valid");
    match &request.creator {
        None => Ok(None),
        Some(Credential::Login { id }) => {
            let login = login::store::find_active(on, &request.owner, id).await?;
            login.map(|_| None).ok_or_else(ended)
        }
        Some(Credential::ApiKey { id }) => {
            let key = store::find_active(on, id).await?;
            key.filter(|key| key.credential.user_id.0 == request.owner)
                .map(|key| key.credential.expires_at)
                .ok_or_else(ended)
        }
        // The gateway refuses it before.
        Some(Credential::Ticket { .. }) => Err(ended()),
    }
}

/// Revokes every key of `owner`, for `actor`.
///
/// # Errors
/// When Postgres fails.
pub async fn revoke_all(
    on: &DatabaseTransaction,
    actor: Option<&UserId>,
    owner: &UserId,
) -> Result<(), StoreError> {
    store::lock_owner(on, owner).await?;
    store::revoke_all(on, owner).await?;
    let entry = Entry {
        actor,
        action: Action::RevokeKeys,
        target: Some(owner.as_str()),
        ok: true,
    };
    audit::record(on, entry).await
}

fn not_found() -> Error {
    Error::not_found("API key")
}
