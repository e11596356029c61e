//! The queries of schema `webhooks`: of webhooks here, of deliveries in [`deliveries`].

pub mod deliveries;

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::EventKind;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::{UserId, WebhookId};
use agentbox_contracts::webhook::{MAX_WEBHOOKS, Webhook};
use agentbox_database::secret::{MasterSecret, Purpose, SecretError};
use agentbox_database::sql::{advisory_lock, bigint, seconds, statement, unsigned};
use agentbox_database::{Text, begin, snapshot, span};
use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbErr, QueryResult, Statement};
use tracing::Instrument as _;

/// The class of advisory locks. Other services may use the same database, with other classes.
const OWNER_LOCK: i32 = 20;
/// The most owners that one sweep checks.
const OWNERS_AT_ONCE: u64 = 100;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database failed")]
    Database(#[from] DbErr),
    #[error("the key of a webhook cannot be encrypted or decrypted")]
    Key(#[from] SecretError),
    #[error("an event cannot be encoded")]
    Body(#[from] serde_json::Error),
    #[error("the owner has {MAX_WEBHOOKS} webhooks")]
    TooMany,
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Database(error) => agentbox_database::public_error(&error),
            StoreError::TooMany => Self::new(
                ErrorCode::QuotaExceeded,
                format!(
                    "the user has {MAX_WEBHOOKS} webhooks, the most that a user may have; delete \
                     one first"
                ),
            ),
            StoreError::Key(_) | StoreError::Body(_) => {
                tracing::error!(error = %ErrorChain(&error), "request failed");
                Self::internal()
            }
        }
    }
}

/// A webhook to store.
pub struct NewWebhook {
    pub owner: UserId,
    pub url: String,
    pub kinds: Vec<EventKind>,
    pub description: Option<String>,
}

#[derive(Clone)]
pub struct Store {
    database: DatabaseConnection,
    secret: MasterSecret,
}

const COLUMNS: &str = "id, url, kinds, description, created_at";

fn read_webhook(row: &QueryResult) -> Result<Webhook, DbErr> {
    let kinds: String = row.try_get("", "kinds")?;
    Ok(Webhook {
        id: row.try_get::<Text<WebhookId>>("", "id")?.0,
        url: row.try_get("", "url")?,
        // A kind of a newer version is left out.
        kinds: kinds
            .split(',')
            .filter_map(|kind| kind.parse().ok())
            .collect(),
        description: row.try_get("", "description")?,
        created_at: row.try_get::<DateTime<Utc>>("", "created_at")?,
    })
}

impl Store {
    pub fn new(database: DatabaseConnection, secret: MasterSecret) -> Self {
        Self { database, secret }
    }

    /// Stores a webhook with the key of its signatures.
    ///
    /// # Errors
    /// [`StoreError::TooMany`] when the owner has as many as a user may have.
    pub async fn insert_webhook(&self, new: NewWebhook, key: &[u8]) -> Result<Webhook, StoreError> {
        let NewWebhook {
            owner,
            url,
            kinds,
            description,
        } = new;
        let id = WebhookId::random();
        let sealed = self.secret.seal(Purpose::WebhookKey, id.as_str(), key)?;
        let kinds: Vec<&str> = kinds.iter().map(|kind| kind.as_str()).collect();
        let insert = statement(
            format!(
                "INSERT INTO webhooks (id, owner, url, kinds, description, sealed_key)
                 VALUES ($1, $2, $3, $4, $5, $6) RETURNING {COLUMNS}"
            ),
            [
                id.as_str().into(),
                owner.as_str().into(),
                url.into(),
                kinds.join(",").into(),
                description.into(),
                sealed.into(),
            ],
        );
        let inserted = async {
            let transaction = begin(&self.database).await?;
            // Creations of one owner are counted one after the other.
            advisory_lock(&transaction, OWNER_LOCK, owner.as_str()).await?;
            let count = statement(
                "SELECT count(*) AS total FROM webhooks WHERE owner = $1",
                [owner.as_str().into()],
            );
            let total = match transaction.query_one_raw(count).await? {
                Some(row) => unsigned(&row, "total")?,
                None => 0,
            };
            if total >= MAX_WEBHOOKS {
                return Err(StoreError::TooMany);
            }
            let row = transaction.query_one_raw(insert).await?;
            let row = row.ok_or(DbErr::RecordNotInserted)?;
            let webhook = read_webhook(&row)?;
            transaction.commit().await?;
            Ok::<_, StoreError>(webhook)
        };
        inserted.instrument(span!(INSERT webhooks)).await
    }

    /// One page of an owner's webhooks, newest first, and the total of all pages.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn list_webhooks(
        &self,
        owner: &UserId,
        limit: u32,
        offset: u64,
    ) -> Result<(Vec<Webhook>, u64), StoreError> {
        let page = statement(
            format!(
                "SELECT {COLUMNS} FROM webhooks WHERE owner = $1
                 ORDER BY created_at DESC, id DESC LIMIT $2 OFFSET $3"
            ),
            [owner.as_str().into(), bigint(limit.into()), bigint(offset)],
        );
        let count = statement(
            "SELECT count(*) AS total FROM webhooks WHERE owner = $1",
            [owner.as_str().into()],
        );
        let read = self.page_and_total(page, count);
        let (rows, total) = read.instrument(span!(SELECT webhooks)).await?;
        let webhooks: Result<Vec<Webhook>, DbErr> = rows.iter().map(read_webhook).collect();
        Ok((webhooks?, total))
    }

    /// The rows of a page, and the number of rows on all pages, of the same moment.
    async fn page_and_total(
        &self,
        page: Statement,
        count: Statement,
    ) -> Result<(Vec<QueryResult>, u64), DbErr> {
        let snapshot = snapshot(&self.database).await?;
        let rows = snapshot.query_all_raw(page).await?;
        let total = snapshot.query_one_raw(count).await?;
        let total = total.map_or(Ok(0), |row| unsigned(&row, "total"))?;
        Ok((rows, total))
    }

    /// Finds a webhook of an owner.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn find_webhook(
        &self,
        owner: &UserId,
        id: &WebhookId,
    ) -> Result<Option<Webhook>, StoreError> {
        let find = statement(
            format!("SELECT {COLUMNS} FROM webhooks WHERE id = $1 AND owner = $2"),
            [id.as_str().into(), owner.as_str().into()],
        );
        let found = self.database.query_one_raw(find);
        let row = found.instrument(span!(SELECT webhooks)).await?;
        Ok(row.as_ref().map(read_webhook).transpose()?)
    }

    /// Deletes a webhook of an owner, and its deliveries. False: there is none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete_webhook(&self, owner: &UserId, id: &WebhookId) -> Result<bool, StoreError> {
        let delete = statement(
            "DELETE FROM webhooks WHERE id = $1 AND owner = $2",
            [id.as_str().into(), owner.as_str().into()],
        );
        let delete = self.database.execute_raw(delete);
        let deleted = delete.instrument(span!(DELETE webhooks)).await?;
        Ok(deleted.rows_affected() > 0)
    }

    /// Decrypts the key of a webhook's signatures.
    ///
    /// # Errors
    /// [`StoreError::Key`] when it was encrypted under another secret.
    pub fn open_key(&self, id: &WebhookId, sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
        Ok(self.secret.open(Purpose::WebhookKey, id.as_str(), sealed)?)
    }

    /// The owners that were not checked for `interval`, some of them.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn owners_to_check(&self, interval: Duration) -> Result<Vec<UserId>, StoreError> {
        let select = statement(
            "SELECT owner FROM webhooks
             WHERE owner_checked_at < now() - make_interval(secs => $1)
             GROUP BY owner ORDER BY min(owner_checked_at) LIMIT $2",
            [seconds(interval), bigint(OWNERS_AT_ONCE)],
        );
        let rows = self.database.query_all_raw(select);
        let rows = rows.instrument(span!(SELECT webhooks)).await?;
        let owners: Result<Vec<UserId>, DbErr> = rows
            .iter()
            .map(|row| Ok(row.try_get::<Text<UserId>>("", "owner")?.0))
            .collect();
        Ok(owners?)
    }

    /// Records that the owner exists now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn mark_owner_checked(&self, owner: &UserId) -> Result<(), StoreError> {
        let update = statement(
            "UPDATE webhooks SET owner_checked_at = now() WHERE owner = $1",
            [owner.as_str().into()],
        );
        let update = self.database.execute_raw(update);
        update.instrument(span!(UPDATE webhooks)).await?;
        Ok(())
    }

    /// Deletes the webhooks of an owner. Returns how many there were.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete_owned(&self, owner: &UserId) -> Result<u64, StoreError> {
        let delete = statement(
            "DELETE FROM webhooks WHERE owner = $1",
            [owner.as_str().into()],
        );
        let delete = self.database.execute_raw(delete);
        let deleted = delete.instrument(span!(DELETE webhooks)).await?;
        Ok(deleted.rows_affected())
    }
}
