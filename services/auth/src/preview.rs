//! Previews: ports of environments that browsers and programs reach without an API credential.
//!
//! Owns table `previews`. Never stores a secret of a preview, only its keyed hash.
//!
//! * I1. A preview is open only while its creator's credential is valid. Postgres decides each time.
//! * I2. A link is used once. It is replaced by the cookie of the browser that used it.

mod store;

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::Credential;
use agentbox_contracts::identity::rpc::Secret;
use agentbox_contracts::ids::PreviewId;
use agentbox_contracts::preview::rpc::{
    CreatePreviewReply, CreatePreviewRequest, DeletePreviewRequest, ListPreviewsReply,
    ListPreviewsRequest, OpenPreviewReply, OpenPreviewRequest, PreviewAccess,
};
use agentbox_contracts::preview::{MAX_PREVIEWS, Preview};
use agentbox_database::Text;
use agentbox_database::secret::{Digest, MasterSecret, Purpose};
use agentbox_database::sql::advisory_lock;
use chrono::{TimeDelta, Utc};
use sea_orm::{DatabaseConnection, DbErr};
use subtle::ConstantTimeEq;

use crate::authenticate::Authenticator;
use crate::entity::previews::Model;
use crate::store::{ADVISORY_LOCK, StoreError, begin, commit, snapshot};

const RANDOM_BYTES: usize = 24;

pub struct Previews {
    database: DatabaseConnection,
    secret: MasterSecret,
}

impl Previews {
    pub fn new(database: DatabaseConnection, secret: MasterSecret) -> Self {
        Self { database, secret }
    }

    /// The hash of a secret. `kind` keeps one from being used in the place of another.
    fn digest(&self, kind: &str, secret: &Secret) -> Digest {
        let text = format!("{kind}:{}", secret.0);
        self.secret.digest(Purpose::Preview, text.as_bytes())
    }

    fn matches(&self, hash: Option<&Vec<u8>>, kind: &str, secret: &Secret) -> bool {
        hash.is_some_and(|hash| bool::from(hash.ct_eq(&self.digest(kind, secret))))
    }

    /// Creates a preview, and returns its secrets once.
    ///
    /// # Errors
    /// QuotaExceeded when the environment has too many previews; Unauthorized when the creator's
    /// credential was deleted meanwhile; Forbidden when it is a ticket.
    pub async fn create(&self, request: CreatePreviewRequest) -> Result<CreatePreviewReply, Error> {
        let (login, key) = match request.principal.credential {
            Credential::Login { id } => (Some(Text(id)), None),
            Credential::ApiKey { id } => (None, Some(Text(id))),
            Credential::Ticket { .. } => {
                return Err(Error::new(
                    ErrorCode::Forbidden,
                    "a ticket cannot create a preview: use a token or an API key",
                ));
            }
        };
        let (token, link) = match request.public {
            true => (None, None),
            false => (Some(random_secret()), Some(random_secret())),
        };
        let hash =
            |kind, secret: Option<&Secret>| secret.map(|secret| self.digest(kind, secret).to_vec());
        let now = Utc::now();
        let lifetime = i64::try_from(request.expires_in_s).unwrap_or(i64::MAX);
        let expires_at = TimeDelta::try_seconds(lifetime)
            .and_then(|lifetime| now.checked_add_signed(lifetime))
            .ok_or_else(Error::internal)?;
        let row = Model {
            id: Text(PreviewId::random()),
            environment: Text(request.environment),
            port: request.port.into(),
            user_id: Text(request.principal.user),
            login_id: login,
            key_id: key,
            token_hash: hash("token", token.as_ref()),
            link_hash: hash("link", link.as_ref()),
            cookie_hash: None,
            created_at: now,
            expires_at,
        };
        let transaction = begin(&self.database).await?;
        // Creations for one environment are counted one after the other.
        let name = format!("previews {}", row.environment.0);
        advisory_lock(&transaction, ADVISORY_LOCK, &name)
            .await
            .map_err(StoreError::from)?;
        if store::count(&transaction, &row.environment.0).await? >= MAX_PREVIEWS {
            return Err(Error::new(
                ErrorCode::QuotaExceeded,
                format!(
                    "the environment has {MAX_PREVIEWS} previews, the most that it may have; \
                     delete one first"
                ),
            ));
        }
        store::insert(&transaction, row.clone())
            .await
            .map_err(|error| {
                if error.is_foreign_key_violation() {
                    Error::new(ErrorCode::Unauthorized, "the credential is no longer valid")
                } else {
                    error.into()
                }
            })?;
        commit(transaction).await?;
        Ok(CreatePreviewReply {
            preview: preview(row)?,
            token,
            link,
        })
    }

    /// One page of an environment's previews.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn list(&self, request: ListPreviewsRequest) -> Result<ListPreviewsReply, Error> {
        let ListPreviewsRequest {
            environment,
            limit,
            offset,
        } = request;
        let snapshot = snapshot(&self.database).await?;
        let (rows, total) = store::page(&snapshot, &environment, limit, offset).await?;
        let previews: Result<Vec<Preview>, StoreError> = rows.into_iter().map(preview).collect();
        Ok(ListPreviewsReply {
            previews: previews?,
            total,
        })
    }

    /// Deletes a preview.
    ///
    /// # Errors
    /// NotFound when the environment has no such preview.
    pub async fn delete(&self, request: DeletePreviewRequest) -> Result<(), Error> {
        let DeletePreviewRequest { environment, id } = request;
        match store::delete(&self.database, &environment, &id).await? {
            true => Ok(()),
            false => Err(Error::not_found("preview")),
        }
    }

    /// Decides whether a request may use a preview, and finds its creator.
    ///
    /// # Errors
    /// NotFound when there is no such preview, or its creator's credential is no longer valid;
    /// Unauthorized when the request does not present what the preview needs.
    pub async fn open(
        &self,
        request: OpenPreviewRequest,
        authenticator: &Authenticator,
    ) -> Result<OpenPreviewReply, Error> {
        let not_found = || Error::not_found("preview");
        let row = store::find(&self.database, &request.id).await?;
        let row = row.ok_or_else(not_found)?;
        let credential = creator(&row)?;
        let creator = authenticator.revalidate(&row.user_id.0, credential).await?;
        let mut principal = creator.ok_or_else(not_found)?;
        let cookie = self.check_access(&row, &request.access).await?;
        let expires_at = principal.expires_at.map(|at| at.min(row.expires_at));
        principal.expires_at = Some(expires_at.unwrap_or(row.expires_at));
        Ok(OpenPreviewReply {
            preview: preview(row)?,
            principal,
            cookie,
        })
    }

    /// Returns the new cookie if `access` is the link.
    async fn check_access(
        &self,
        row: &Model,
        access: &PreviewAccess,
    ) -> Result<Option<Secret>, Error> {
        let is_public = row.token_hash.is_none();
        let is_granted = match access {
            PreviewAccess::Open => true,
            PreviewAccess::None => is_public,
            PreviewAccess::Token(secret) => {
                is_public || self.matches(row.token_hash.as_ref(), "token", secret)
            }
            PreviewAccess::Cookie(secret) => {
                is_public || self.matches(row.cookie_hash.as_ref(), "cookie", secret)
            }
            PreviewAccess::Link(secret) => {
                let link = self.digest("link", secret);
                let cookie = random_secret();
                let hash = self.digest("cookie", &cookie);
                if store::use_link(&self.database, &row.id.0, &link, &hash).await? {
                    return Ok(Some(cookie));
                }
                false
            }
        };
        match is_granted {
            true => Ok(None),
            false => Err(Error::new(
                ErrorCode::Unauthorized,
                "the preview needs its link, which one browser may open once, or its token in \
                 X-Agentbox-Preview-Token",
            )),
        }
    }
}

fn random_secret() -> Secret {
    Secret(hex::encode(rand::random::<[u8; RANDOM_BYTES]>()))
}

fn creator(row: &Model) -> Result<Credential, StoreError> {
    match (row.login_id.clone(), row.key_id.clone()) {
        (Some(Text(id)), _) => Ok(Credential::Login { id }),
        (None, Some(Text(id))) => Ok(Credential::ApiKey { id }),
        (None, None) => Err(DbErr::Type("a preview without a creator".to_owned()).into()),
    }
}

fn preview(row: Model) -> Result<Preview, StoreError> {
    let port = u16::try_from(row.port).map_err(|error| DbErr::Type(error.to_string()))?;
    Ok(Preview {
        id: row.id.0,
        environment: row.environment.0,
        port,
        public: row.token_hash.is_none(),
        creator: row.user_id.0,
        created_at: row.created_at,
        expires_at: row.expires_at,
    })
}
