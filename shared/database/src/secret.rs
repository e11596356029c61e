//! The one secret of a service's replicas and the keys derived from it.
//!
//! Owns the keyed hashes under which credentials are stored, and the encryption of
//! private keys and variables at rest. Never shows a key, not even in `Debug`.
//!
//! * I1. Each purpose has a key of its own, so a value stored for one purpose is invalid for
//!   another.
//! * I2. Nothing can be decrypted with a copy of the database alone.
//!
//! A key is HMAC-SHA256 of the purpose's label under the secret. HKDF-Expand appends a byte
//! to the label: its keys would differ, and every stored key and ticket would be invalid.

use std::str::FromStr;

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Aead, Payload};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

const KEY_LEN: usize = 32;
const NONCE_LEN: usize = 12;

/// An HMAC-SHA256 of a credential, as it is stored.
pub type Digest = [u8; 32];

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the secret must be 64 hex digits (32 bytes)")]
    Malformed,
    #[error("it was not encrypted under this secret, or was changed since")]
    Unreadable,
    #[error("it cannot be encrypted")]
    Unsealable,
}

/// The use of a derived key. Its label must not change: stored values depend on it.
#[derive(Clone, Copy)]
pub enum Purpose {
    ApiKey,
    Ticket,
    /// A token, a link or a cookie of a preview.
    Preview,
    KeyId,
    SigningKey,
    /// The variables of an environment.
    Variables,
    /// The credential of a user at a registry.
    RegistryCredential,
    /// The body of a request with an idempotency key.
    RequestBody,
    Audit,
    /// The key of a webhook's signatures.
    WebhookKey,
}

impl Purpose {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::ApiKey => b"agentbox.auth.api-key.v1",
            Self::Ticket => b"agentbox.auth.ticket.v1",
            Self::Preview => b"agentbox.auth.preview.v1",
            Self::KeyId => b"agentbox.auth.key-id.v1",
            Self::SigningKey => b"agentbox.auth.signing-key.v1",
            Self::Variables => b"agentbox.scheduler.variables.v1",
            Self::RegistryCredential => b"agentbox.scheduler.registry-credential.v1",
            Self::RequestBody => b"agentbox.scheduler.request-body.v1",
            Self::Audit => b"agentbox.auth.audit.v1",
            Self::WebhookKey => b"agentbox.webhooks.key.v1",
        }
    }
}

#[derive(Clone)]
pub struct MasterSecret([u8; KEY_LEN]);

impl MasterSecret {
    fn mac(key: &[u8; KEY_LEN], data: &[u8]) -> Digest {
        // HMAC takes its key as a block of the hash: shorter keys are padded with zeros.
        let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
        block[..KEY_LEN].copy_from_slice(key);
        let mut mac = Hmac::<Sha256>::new(&block);
        mac.update(data);
        mac.finalize().into_bytes().into()
    }

    fn derive(&self, purpose: Purpose) -> [u8; KEY_LEN] {
        Self::mac(&self.0, purpose.label())
    }

    /// The keyed hash under which `credential` is stored and found.
    #[must_use]
    pub fn digest(&self, purpose: Purpose, credential: &[u8]) -> Digest {
        Self::mac(&self.derive(purpose), credential)
    }

    /// Encrypts `plain` and binds it to `name`: nonce, then AES-256-GCM's output.
    ///
    /// # Errors
    /// [`SecretError::Unsealable`] when `plain` is longer than the cipher allows.
    pub fn seal(&self, purpose: Purpose, name: &str, plain: &[u8]) -> Result<Vec<u8>, SecretError> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let payload = Payload {
            msg: plain,
            aad: name.as_bytes(),
        };
        let sealed = Aes256Gcm::new(&self.derive(purpose).into())
            .encrypt(&nonce.into(), payload)
            .map_err(|_| SecretError::Unsealable)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Decrypts the output of [`Self::seal`] for the same purpose and name.
    ///
    /// # Errors
    /// [`SecretError::Unreadable`] for anything else.
    pub fn open(
        &self,
        purpose: Purpose,
        name: &str,
        sealed: &[u8],
    ) -> Result<Vec<u8>, SecretError> {
        let (nonce, sealed) = sealed
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(SecretError::Unreadable)?;
        Aes256Gcm::new(&self.derive(purpose).into())
            .decrypt(
                &(*nonce).into(),
                Payload {
                    msg: sealed,
                    aad: name.as_bytes(),
                },
            )
            .map_err(|_| SecretError::Unreadable)
    }
}

impl FromStr for MasterSecret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let mut secret = [0; KEY_LEN];
        hex::decode_to_slice(text, &mut secret).map_err(|_| SecretError::Malformed)?;
        Ok(Self(secret))
    }
}

impl std::fmt::Debug for MasterSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(byte: u8) -> MasterSecret {
        hex::encode([byte; KEY_LEN]).parse().unwrap()
    }

    #[test]
    fn sealed_value_opens_only_under_the_same_secret_purpose_and_name() {
        let sealed = secret(1)
            .seal(Purpose::SigningKey, "a", b"private")
            .unwrap();
        assert!(!sealed.windows(7).any(|w| w == b"private"));
        assert_eq!(
            secret(1).open(Purpose::SigningKey, "a", &sealed).unwrap(),
            b"private"
        );
        assert!(secret(2).open(Purpose::SigningKey, "a", &sealed).is_err());
        assert!(secret(1).open(Purpose::SigningKey, "b", &sealed).is_err());
        assert!(secret(1).open(Purpose::ApiKey, "a", &sealed).is_err());
        assert!(
            secret(1)
                .open(Purpose::SigningKey, "a", &sealed[..5])
                .is_err()
        );
    }

    #[test]
    fn digest_depends_on_secret_and_purpose() {
        let digest = secret(1).digest(Purpose::ApiKey, b"x");
        assert_eq!(digest, secret(1).digest(Purpose::ApiKey, b"x"));
        assert_ne!(digest, secret(2).digest(Purpose::ApiKey, b"x"));
        assert_ne!(digest, secret(1).digest(Purpose::Ticket, b"x"));
    }

    #[test]
    fn mac_equals_the_rfc_4231_vector() {
        // RFC 4231, test case 1, its key padded to the 32 bytes used here.
        let key = <[u8; 32]>::try_from([[0x0b; 20].as_slice(), &[0; 12]].concat()).unwrap();
        assert_eq!(
            hex::encode(MasterSecret::mac(&key, b"Hi There")),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
    }

    #[test]
    fn secret_of_any_length_but_32_bytes_is_refused() {
        for text in ["", "00", &"0".repeat(63), &"g".repeat(64), &"0".repeat(66)] {
            assert!(text.parse::<MasterSecret>().is_err(), "{text}");
        }
        assert_eq!(format!("{:?}", secret(7)), "MasterSecret(…)");
    }
}
