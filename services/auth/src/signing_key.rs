//! The keys that sign tokens.
//!
//! Owns table `signing_keys` and this replica's copy of it. Never returns a private key.
//!
//! * I1. A key is in Postgres before it signs. A replica that gets a token with an unknown key id
//!   reads the table, so it can verify the tokens of every other replica.
//! * I2. A public key is served until the last token that it signed has expired.
//! * I3. One replica at a time makes a key; the others read it.
//! * I4. A key id that no replica made is refused without a query.

pub mod rules;
pub mod store;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_database::secret::{MasterSecret, Purpose, SecretError};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use ed25519_dalek::SigningKey;
use jsonwebtoken::{DecodingKey, EncodingKey};
use sea_orm::DatabaseConnection;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::audit::{self, Action, Entry};
use crate::entity::signing_keys;
use crate::metrics;
use crate::store::{StoreError, begin, commit};
use rules::Lifetime;

/// How often a replica reads the table, and makes a key when one is due.
const REFRESH: Duration = Duration::from_secs(10);
/// The PKCS #8 encoding (RFC 8410) of an Ed25519 key, up to its 32 bytes.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("signing key {kid} cannot be used: was AGENTBOX_AUTH_SECRET changed?")]
    Sealed {
        kid: String,
        #[source]
        source: SecretError,
    },
    #[error("signing key {kid} is malformed")]
    Malformed { kid: String },
    #[error("there is no signing key that is valid now")]
    None,
}

impl From<KeyError> for agentbox_contracts::error::Error {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Store(error) => error.into(),
            other => {
                tracing::error!(error = %ErrorChain(&other), "signing key not usable");
                Self::internal()
            }
        }
    }
}

/// One key, ready for use.
pub struct Key {
    pub kid: String,
    pub lifetime: Lifetime,
    pub encoding: EncodingKey,
    pub decoding: DecodingKey,
    /// The public key's 32 bytes in base64url: a JWK's `x`.
    x: String,
}

pub struct Keyring {
    database: DatabaseConnection,
    secret: MasterSecret,
    rotation: Duration,
    token_ttl: Duration,
    /// Newest first.
    keys: RwLock<Arc<Vec<Arc<Key>>>>,
    /// Held while the table is read or extended; other tasks wait for the result.
    refreshing: tokio::sync::Mutex<()>,
}

impl Keyring {
    /// Reads the keys, and makes the first one if there is none.
    ///
    /// # Errors
    /// When Postgres fails, or the secret does not open the stored keys.
    pub async fn load(
        database: DatabaseConnection,
        secret: MasterSecret,
        rotation: Duration,
        token_ttl: Duration,
    ) -> Result<Arc<Self>, KeyError> {
        let ring = Arc::new(Self {
            database,
            secret,
            rotation,
            token_ttl,
            keys: RwLock::default(),
            refreshing: tokio::sync::Mutex::default(),
        });
        ring.signer(Utc::now()).await?;
        Ok(ring)
    }

    fn snapshot(&self) -> Arc<Vec<Arc<Key>>> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The key that signs at `now`. Makes a new one when the last one no longer signs.
    ///
    /// # Errors
    /// When Postgres fails while a key must be read or made.
    pub async fn signer(&self, now: DateTime<Utc>) -> Result<Arc<Key>, KeyError> {
        if let Some(key) = self.current(now) {
            return Ok(key);
        }
        let _refreshing = self.refreshing.lock().await;
        if let Some(key) = self.current(now) {
            return Ok(key);
        }
        self.rotate(now).await?;
        self.current(now).ok_or(KeyError::None)
    }

    fn current(&self, now: DateTime<Utc>) -> Option<Arc<Key>> {
        let keys = self.snapshot();
        keys.iter()
            .find(|key| key.lifetime.may_sign(now, self.token_ttl))
            .cloned()
    }

    /// The key with that id, read from Postgres if this replica does not know it yet.
    /// `None`: there is no such key, or it has expired.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn verifier(
        &self,
        kid: &str,
        now: DateTime<Utc>,
    ) -> Result<Option<Arc<Key>>, KeyError> {
        if !rules::is_ours(&self.secret, kid) {
            return Ok(None);
        }
        let known = |keys: &[Arc<Key>]| keys.iter().find(|key| key.kid == kid).cloned();
        let mut key = known(&self.snapshot());
        if key.is_none() {
            let _refreshing = self.refreshing.lock().await;
            key = known(&self.snapshot());
            if key.is_none() {
                self.replace(store::all(&self.database).await?)?;
                key = known(&self.snapshot());
            }
        }
        Ok(key.filter(|key| key.lifetime.may_verify(now)))
    }

    /// The public keys that verify tokens now, as JSON Web Keys (RFC 7517, RFC 8037). Reads the
    /// table, because another replica may have made a key since the last read.
    ///
    /// # Errors
    /// When Postgres fails.
    pub async fn jwks(&self, now: DateTime<Utc>) -> Result<Vec<serde_json::Value>, KeyError> {
        self.reload().await?;
        let keys = self
            .snapshot()
            .iter()
            .filter(|key| key.lifetime.may_verify(now))
            .map(|key| {
                json!({
                    "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig",
                    "kid": key.kid, "x": key.x,
                })
            })
            .collect();
        Ok(keys)
    }

    /// Reads the table, and makes a key unless another replica has done so meanwhile.
    async fn rotate(&self, now: DateTime<Utc>) -> Result<(), KeyError> {
        let transaction = begin(&self.database).await?;
        store::lock(&transaction).await?;
        let mut stored = store::all(&transaction).await?;
        if !stored
            .iter()
            .any(|key| Lifetime::from(key).may_sign(now, self.token_ttl))
        {
            let key = self.mint(now)?;
            store::insert(&transaction, &key).await?;
            let entry = Entry {
                actor: None,
                action: Action::CreateSigningKey,
                target: Some(&key.kid),
                ok: true,
            };
            audit::record(&transaction, entry).await?;
            metrics::signing_key_created();
            tracing::info!(kid = key.kid, signs_until = %key.signs_until, "signing key created");
            stored.insert(0, key);
        }
        commit(transaction).await?;
        self.replace(stored)
    }

    /// A new key, as a row.
    fn mint(&self, now: DateTime<Utc>) -> Result<signing_keys::Model, KeyError> {
        let seed: [u8; 32] = rand::random();
        let kid = rules::mint_kid(&self.secret);
        let sealed_seed = self
            .secret
            .seal(Purpose::SigningKey, &kid, &seed)
            .map_err(|source| KeyError::Sealed {
                kid: kid.clone(),
                source,
            })?;
        let lifetime = Lifetime::new(now, self.rotation, self.token_ttl);
        Ok(signing_keys::Model {
            sealed_seed,
            public_key: SigningKey::from_bytes(&seed)
                .verifying_key()
                .to_bytes()
                .to_vec(),
            created_at: lifetime.created_at,
            signs_until: lifetime.signs_until,
            not_after: lifetime.not_after,
            kid,
        })
    }

    /// Replaces the copy by these rows. A key that is known already is not decrypted again.
    fn replace(&self, stored: Vec<signing_keys::Model>) -> Result<(), KeyError> {
        let known = self.snapshot();
        let keys = stored
            .into_iter()
            .map(
                |stored| match known.iter().find(|key| key.kid == stored.kid) {
                    Some(key) => Ok(Arc::clone(key)),
                    None => self.open(&stored).map(Arc::new),
                },
            )
            .collect::<Result<Vec<_>, KeyError>>()?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }

    /// Decrypts a row, and checks that its two halves belong together.
    fn open(&self, stored: &signing_keys::Model) -> Result<Key, KeyError> {
        let kid = stored.kid.clone();
        let seed = self
            .secret
            .open(Purpose::SigningKey, &kid, &stored.sealed_seed)
            .map_err(|source| KeyError::Sealed {
                kid: kid.clone(),
                source,
            })?;
        let malformed = || KeyError::Malformed { kid: kid.clone() };
        let seed: [u8; 32] = seed.try_into().map_err(|_| malformed())?;
        let public = SigningKey::from_bytes(&seed).verifying_key().to_bytes();
        if public.as_slice() != stored.public_key {
            return Err(malformed());
        }
        let x = URL_SAFE_NO_PAD.encode(public);
        Ok(Key {
            encoding: EncodingKey::from_ed_der(&[PKCS8_PREFIX.as_slice(), &seed].concat()),
            decoding: DecodingKey::from_ed_components(&x).map_err(|_| malformed())?,
            lifetime: Lifetime::from(stored),
            kid,
            x,
        })
    }

    /// Refreshes the copy and makes keys when they are due, until `shutdown`.
    ///
    /// # Errors
    /// None: a failed refresh is retried, and the known keys stay in use.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> Result<(), anyhow::Error> {
        let mut tick = tokio::time::interval(REFRESH.min(self.rotation));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = tick.tick() => {}
            }
            if let Err(error) = self.refresh().await {
                tracing::warn!(error = %ErrorChain(&error), "signing keys not refreshed; retried");
            }
        }
    }

    /// Reloads the keys, and makes one if it is due.
    async fn refresh(&self) -> Result<(), KeyError> {
        self.reload().await?;
        self.signer(Utc::now()).await.map(|_| ())
    }

    /// Replaces the copy by the table.
    async fn reload(&self) -> Result<(), KeyError> {
        let _refreshing = self.refreshing.lock().await;
        self.replace(store::all(&self.database).await?)
    }
}
