//! The hash chain: each hash covers the entry, its number and the hash before it. Pure.

use ed25519_dalek::{Signature, Signer, SigningKey};
use sha2::{Digest as _, Sha256};

use agentbox_database::secret::{MasterSecret, Purpose};

pub type Hash = [u8; 32];

/// The place of one entry in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// 1 is the first entry.
    pub sequence: u64,
    pub hash: Hash,
}

impl Link {
    /// The place before the first entry.
    pub const GENESIS: Self = Self {
        sequence: 0,
        hash: [0; 32],
    };

    /// The place of `entry`, the stored text, when it follows this one.
    #[must_use]
    pub fn next(&self, entry: &str) -> Self {
        let sequence = self.sequence + 1;
        let mut hasher = Sha256::new();
        hasher.update(self.hash);
        hasher.update(sequence.to_be_bytes());
        hasher.update(entry.as_bytes());
        Self {
            sequence,
            hash: hasher.finalize().into(),
        }
    }

    /// The text that is signed.
    fn message(&self) -> Vec<u8> {
        [
            b"agentbox.audit.v1".as_slice(),
            &self.sequence.to_be_bytes(),
            &self.hash,
        ]
        .concat()
    }
}

/// The Ed25519 key that signs checkpoints and heads. It is derived from the deployment's secret,
/// and therefore does not rotate: the oldest checkpoint stays verifiable.
#[derive(Clone)]
pub struct ChainKey(SigningKey);

impl ChainKey {
    #[must_use]
    pub fn derive(secret: &MasterSecret) -> Self {
        let seed = secret.digest(Purpose::Audit, b"ed25519");
        Self(SigningKey::from_bytes(&seed))
    }

    #[must_use]
    pub fn sign(&self, link: &Link) -> [u8; 64] {
        self.0.sign(&link.message()).to_bytes()
    }

    #[must_use]
    pub fn has_signed(&self, link: &Link, signature: &[u8]) -> bool {
        let Ok(signature) = Signature::from_slice(signature) else {
            return false;
        };
        let key = self.0.verifying_key();
        key.verify_strict(&link.message(), &signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_depends_on_entry_number_and_predecessor() {
        let first = Link::GENESIS.next("a");
        assert_eq!(first, Link::GENESIS.next("a"));
        let later = Link {
            sequence: 7,
            ..Link::GENESIS
        };
        for other in [Link::GENESIS.next("b"), later.next("a"), first.next("a")] {
            assert_ne!(first.hash, other.hash);
        }
    }

    #[test]
    fn signature_is_valid_for_its_link_and_secret_only() {
        let secret = |digit: &str| digit.repeat(64).parse::<MasterSecret>().unwrap();
        let key = ChainKey::derive(&secret("a"));
        let link = Link::GENESIS.next("a");
        let signature = key.sign(&link);
        assert!(key.has_signed(&link, &signature));
        assert!(!key.has_signed(&link.next("b"), &signature));
        assert!(!key.has_signed(&link, &signature[1..]));
        assert!(!ChainKey::derive(&secret("b")).has_signed(&link, &signature));
    }
}
