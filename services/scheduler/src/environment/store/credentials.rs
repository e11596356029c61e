//! The credentials of registries: encrypted in Postgres, and decrypted only for a box.
//!
//! * I1. The value is bound to its owner and its registry, so that it is invalid in another row.
//! * I2. A change and its audit entry are written in one statement.

use agentbox_contracts::audit::AuditAction;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_contracts::registry::{MAX_CREDENTIALS, StoredCredential};
use agentbox_database::secret::{MasterSecret, Purpose, SecretError};
use agentbox_database::sql::{advisory_lock, bigint, statement, unsigned};
use agentbox_database::{begin, span};
use agentbox_runtime::RegistryCredential;
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait as _, DatabaseConnection};
use serde::{Deserialize, Serialize};
use tracing::Instrument as _;

use super::create::OWNER_LOCK;
use super::messages::audit_message;
use super::outbox::insert_outbox_rows;
use super::{Params, Store, StoreError};

/// The plain text of the column `sealed`, as JSON.
#[derive(Serialize, Deserialize)]
struct PlainCredential {
    username: String,
    password: String,
}

/// The name that a sealed value is bound to.
fn bound_name(owner: &UserId, registry: &str) -> String {
    format!("{owner}/{registry}")
}

fn sealing_error(owner: &UserId, registry: &str, source: SecretError) -> StoreError {
    StoreError::SealedCredential {
        name: bound_name(owner, registry),
        source,
    }
}

fn open(
    secret: &MasterSecret,
    owner: &UserId,
    registry: &str,
    sealed: &[u8],
) -> Result<RegistryCredential, StoreError> {
    let name = bound_name(owner, registry);
    let plain = secret
        .open(Purpose::RegistryCredential, &name, sealed)
        .map_err(|source| sealing_error(owner, registry, source))?;
    let PlainCredential { username, password } = serde_json::from_slice(&plain)?;
    Ok(RegistryCredential { username, password })
}

/// The id by which the outbox orders the rows about one user. It names no environment.
fn outbox_id(owner: &UserId) -> EnvironmentId {
    let random = owner.as_str().strip_prefix(UserId::PREFIX);
    let id = format!("{}{}", EnvironmentId::PREFIX, random.unwrap_or_default());
    id.parse().unwrap_or_else(|_| EnvironmentId::random())
}

impl Store {
    /// Stores the credential of `owner` at `registry`, or replaces it. Returns the id whose outbox
    /// rows are to be published.
    ///
    /// # Errors
    /// `QuotaExceeded` when the owner has too many; or when the database fails.
    pub async fn set_credential(
        &self,
        owner: &UserId,
        registry: &str,
        credential: &RegistryCredential,
    ) -> Result<EnvironmentId, StoreError> {
        let plain = serde_json::to_vec(&PlainCredential {
            username: credential.username.clone(),
            password: credential.password.clone(),
        })?;
        let name = bound_name(owner, registry);
        let sealed = self
            .secret
            .seal(Purpose::RegistryCredential, &name, &plain)
            .map_err(|source| sealing_error(owner, registry, source))?;
        set_credential(&self.database, owner, registry, sealed)
            .instrument(span!(INSERT registry_credentials))
            .await
    }

    /// Deletes a credential. Returns the id whose outbox rows are to be published; `None` when there
    /// was no such credential.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete_credential(
        &self,
        owner: &UserId,
        registry: &str,
    ) -> Result<Option<EnvironmentId>, StoreError> {
        let id = outbox_id(owner);
        let mut params = Params::default();
        let (owner, registry_value) = (params.push(owner.as_str()), params.push(registry));
        let id_value = params.push(id.as_str());
        let messages: Vec<_> = audit_message(AuditAction::DeleteRegistryCredential, registry)
            .into_iter()
            .collect();
        let outbox_rows = insert_outbox_rows("deleted", &messages, &mut params)?;
        let text = format!(
            "WITH deleted AS (
                DELETE FROM registry_credentials
                WHERE owner = {owner} AND registry = {registry_value}
                RETURNING {id_value}::text AS id
             ), outbox_rows AS ({outbox_rows})
             SELECT id FROM deleted"
        );
        let row = self
            .database
            .query_one_raw(statement(text, params.0))
            .instrument(span!(DELETE registry_credentials))
            .await?;
        Ok(row.map(|_| id))
    }

    /// Deletes every credential of a user who is deleted.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete_credentials_of(&self, owner: &UserId) -> Result<(), StoreError> {
        let delete = statement(
            "DELETE FROM registry_credentials WHERE owner = $1",
            [owner.as_str().into()],
        );
        self.database
            .execute_raw(delete)
            .instrument(span!(DELETE registry_credentials))
            .await?;
        Ok(())
    }

    /// One page of a user's credentials, and the number of all.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_credentials(
        &self,
        owner: &UserId,
        limit: u32,
        offset: u64,
    ) -> Result<(Vec<StoredCredential>, u64), StoreError> {
        let total = count(&self.database, owner)
            .instrument(span!(SELECT registry_credentials))
            .await?;
        let page = statement(
            "SELECT registry, updated_at FROM registry_credentials
             WHERE owner = $1 ORDER BY registry LIMIT $2 OFFSET $3",
            [
                owner.as_str().into(),
                i64::from(limit).into(),
                bigint(offset),
            ],
        );
        let rows = self
            .database
            .query_all_raw(page)
            .instrument(span!(SELECT registry_credentials))
            .await?;
        let mut credentials = Vec::with_capacity(rows.len());
        for row in rows {
            credentials.push(StoredCredential {
                registry: row.try_get("", "registry")?,
                updated_at: row.try_get::<DateTime<Utc>>("", "updated_at")?,
            });
        }
        Ok((credentials, total))
    }

    /// The credential of `owner` at `registry`.
    ///
    /// # Errors
    /// [`StoreError::SealedCredential`] when it was sealed under another secret; or when the
    /// database fails.
    pub async fn credential(
        &self,
        owner: &UserId,
        registry: &str,
    ) -> Result<Option<RegistryCredential>, StoreError> {
        let select = statement(
            "SELECT sealed FROM registry_credentials WHERE owner = $1 AND registry = $2",
            [owner.as_str().into(), registry.into()],
        );
        let row = self
            .database
            .query_one_raw(select)
            .instrument(span!(SELECT registry_credentials))
            .await?;
        let Some(row) = row else { return Ok(None) };
        let sealed: Vec<u8> = row.try_get("", "sealed")?;
        open(&self.secret, owner, registry, &sealed).map(Some)
    }

    /// Opens the newest credential, so that a replica with another secret does not start.
    pub(super) async fn check_credential_secret(&self) -> Result<(), StoreError> {
        let newest = statement(
            "SELECT owner, registry, sealed FROM registry_credentials
             ORDER BY updated_at DESC LIMIT 1",
            [],
        );
        let row = self
            .database
            .query_one_raw(newest)
            .instrument(span!(SELECT registry_credentials))
            .await?;
        let Some(row) = row else { return Ok(()) };
        let owner: String = row.try_get("", "owner")?;
        let registry: String = row.try_get("", "registry")?;
        let sealed: Vec<u8> = row.try_get("", "sealed")?;
        // A row of another version is no sign of another secret.
        if let Ok(owner) = owner.parse::<UserId>() {
            open(&self.secret, &owner, &registry, &sealed)?;
        }
        Ok(())
    }
}

async fn count(
    connection: &impl sea_orm::ConnectionTrait,
    owner: &UserId,
) -> Result<u64, StoreError> {
    let count = statement(
        "SELECT count(*) AS credentials FROM registry_credentials WHERE owner = $1",
        [owner.as_str().into()],
    );
    match connection.query_one_raw(count).await? {
        Some(row) => Ok(unsigned(&row, "credentials")?),
        None => Ok(0),
    }
}

/// [`Store::set_credential`], without its span.
async fn set_credential(
    database: &DatabaseConnection,
    owner: &UserId,
    registry: &str,
    sealed: Vec<u8>,
) -> Result<EnvironmentId, StoreError> {
    let id = outbox_id(owner);
    let transaction = begin(database).await?;
    advisory_lock(&transaction, OWNER_LOCK, owner.as_str()).await?;
    let exists = statement(
        "SELECT 1 FROM registry_credentials WHERE owner = $1 AND registry = $2",
        [owner.as_str().into(), registry.into()],
    );
    let is_new = transaction.query_one_raw(exists).await?.is_none();
    if is_new && count(&transaction, owner).await? >= MAX_CREDENTIALS as u64 {
        transaction.rollback().await?;
        return Err(StoreError::Refused(Error::new(
            ErrorCode::QuotaExceeded,
            format!(
                "you have credentials of {MAX_CREDENTIALS} registries, the most that one user may \
                 have; delete one"
            ),
        )));
    }
    let mut params = Params::default();
    let (owner, registry_value) = (params.push(owner.as_str()), params.push(registry));
    let (sealed, id_value) = (params.push(sealed), params.push(id.as_str()));
    let messages: Vec<_> = audit_message(AuditAction::SetRegistryCredential, registry)
        .into_iter()
        .collect();
    let outbox_rows = insert_outbox_rows("stored", &messages, &mut params)?;
    let text = format!(
        "WITH stored AS (
            INSERT INTO registry_credentials (owner, registry, sealed, updated_at)
            VALUES ({owner}, {registry_value}, {sealed}, now())
            ON CONFLICT (owner, registry) DO UPDATE SET
                sealed = excluded.sealed, updated_at = excluded.updated_at
            RETURNING {id_value}::text AS id
         ), outbox_rows AS ({outbox_rows})
         SELECT id FROM stored"
    );
    transaction.query_one_raw(statement(text, params.0)).await?;
    transaction.commit().await?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outbox_id_is_the_same_for_each_change_of_a_user() {
        let owner: UserId = "user-0123456789abcdef".parse().unwrap();
        assert_eq!(outbox_id(&owner).as_str(), "env-0123456789abcdef");
    }
}
