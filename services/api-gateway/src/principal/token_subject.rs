//! Caches the user of each token, so that the next request with the same token is counted while
//! auth is asked.
//!
//! * I1. The cache selects the rate-limit counter and nothing else. A token never changes its
//!   user, and auth checks the token on every request.
//! * I2. Only a token that auth has accepted is counted under its user: guessed or revoked
//!   tokens cannot use up another user's limit.
//! * I3. The cache is bounded and holds no token. It has two generations of digests; when the
//!   newer one is full, the older one is dropped.

use std::collections::HashMap;

use agentbox_contracts::identity::rpc::Secret;
use agentbox_contracts::ids::UserId;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

/// Entries of one generation.
const GENERATION: usize = 20_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CachedSubject {
    User(UserId),
    /// Auth refused the token.
    Rejected,
}

type Generation = HashMap<[u8; 32], CachedSubject>;

#[derive(Default)]
pub(crate) struct TokenSubjectCache {
    /// The current generation and the previous one.
    generations: Mutex<(Generation, Generation)>,
}

fn digest(token: &Secret) -> [u8; 32] {
    Sha256::digest(&token.0).into()
}

impl TokenSubjectCache {
    pub(crate) fn get(&self, token: &Secret) -> Option<CachedSubject> {
        let key = digest(token);
        let generations = self.generations.lock();
        let (current, previous) = &*generations;
        current.get(&key).or_else(|| previous.get(&key)).cloned()
    }

    pub(crate) fn insert(&self, token: &Secret, subject: CachedSubject) {
        let key = digest(token);
        let mut generations = self.generations.lock();
        let (current, previous) = &mut *generations;
        if current.get(&key) == Some(&subject) {
            return;
        }
        if current.len() >= GENERATION {
            *previous = std::mem::take(current);
        }
        current.insert(key, subject);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(n: usize) -> Secret {
        Secret(n.to_string())
    }

    #[test]
    fn last_inserted_subject_is_returned() {
        let cache = TokenSubjectCache::default();
        let user = UserId::random();
        assert_eq!(cache.get(&secret(1)), None);
        cache.insert(&secret(1), CachedSubject::User(user.clone()));
        assert_eq!(cache.get(&secret(1)), Some(CachedSubject::User(user)));
        cache.insert(&secret(1), CachedSubject::Rejected);
        assert_eq!(cache.get(&secret(1)), Some(CachedSubject::Rejected));
    }

    #[test]
    fn full_cache_drops_oldest_tokens() {
        let cache = TokenSubjectCache::default();
        for n in 0..3 * GENERATION {
            cache.insert(&secret(n), CachedSubject::Rejected);
        }
        assert_eq!(cache.get(&secret(0)), None);
        assert_eq!(
            cache.get(&secret(3 * GENERATION - 1)),
            Some(CachedSubject::Rejected)
        );
        let (current, previous) = &*cache.generations.lock();
        assert!(current.len() + previous.len() <= 2 * GENERATION);
    }
}
