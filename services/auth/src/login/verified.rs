//! The logins of tokens whose signature was verified, so that it is verified once.
//!
//! * I1. An entry makes no token valid. The key that signed it must still verify, and the login's row
//!   decides, which expires with the token.
//! * I2. The memory is bounded and holds no token. It has two generations of digests; when the newer one
//!   is full, the older one is dropped.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use agentbox_contracts::identity::rpc::Secret;
use agentbox_contracts::ids::{LoginId, UserId};
use sha2::{Digest as _, Sha256};

/// Entries of one generation.
const GENERATION: usize = 10_000;

/// The login that a token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenLogin {
    pub user: UserId,
    pub id: LoginId,
}

type Generation = HashMap<[u8; 32], ProvenLogin>;

#[derive(Default)]
pub struct VerifiedTokens {
    /// The current generation and the previous one.
    generations: Mutex<(Generation, Generation)>,
}

fn digest(token: &Secret) -> [u8; 32] {
    Sha256::digest(&token.0).into()
}

impl VerifiedTokens {
    /// The login of a token that was inserted. `None`: its signature must be verified.
    #[must_use]
    pub fn get(&self, token: &Secret) -> Option<ProvenLogin> {
        let key = digest(token);
        let generations = self.lock();
        let (current, previous) = &*generations;
        current.get(&key).or_else(|| previous.get(&key)).cloned()
    }

    /// Inserts a token whose signature is valid.
    pub fn insert(&self, token: &Secret, login: ProvenLogin) {
        let key = digest(token);
        let mut generations = self.lock();
        let (current, previous) = &mut *generations;
        if current.len() >= GENERATION {
            *previous = std::mem::take(current);
        }
        current.insert(key, login);
    }

    fn lock(&self) -> MutexGuard<'_, (Generation, Generation)> {
        self.generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login() -> ProvenLogin {
        ProvenLogin {
            user: UserId::random(),
            id: LoginId::random(),
        }
    }

    fn secret(n: usize) -> Secret {
        Secret(n.to_string())
    }

    #[test]
    fn only_an_inserted_token_has_a_login() {
        let (verified, login) = (VerifiedTokens::default(), login());
        assert_eq!(verified.get(&secret(1)), None);
        verified.insert(&secret(1), login.clone());
        assert_eq!(verified.get(&secret(1)), Some(login));
        assert_eq!(verified.get(&secret(2)), None);
    }

    #[test]
    fn full_memory_drops_the_oldest_tokens() {
        let (verified, login) = (VerifiedTokens::default(), login());
        for n in 0..3 * GENERATION {
            verified.insert(&secret(n), login.clone());
        }
        assert_eq!(verified.get(&secret(0)), None);
        assert_eq!(verified.get(&secret(3 * GENERATION - 1)), Some(login));
        let generations = verified.lock();
        assert!(generations.0.len() + generations.1.len() <= 2 * GENERATION);
    }
}
