//! Under whom a token was counted last, so that the next request of the same token is
//! counted while auth is asked.
//!
//! * I1. It decides nothing but the counter: a token never changes its user, and whether
//!   it is good is asked each time.
//! * I2. Only a token that auth has accepted is counted under its user: nobody can use up
//!   another's limit with what he guesses, or with what was revoked.
//! * I3. Bounded, and holds no token: two generations of digests, the older forgotten.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use agentbox_contracts::identity::rpc::Secret;
use agentbox_contracts::ids::UserId;
use sha2::{Digest, Sha256};

const GENERATION: usize = 20_000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    User(UserId),
    /// It was refused.
    Nobody,
}

type Generation = HashMap<[u8; 32], Whose>;

#[derive(Default)]
pub(crate) struct WhoseToken {
    generations: Mutex<(Generation, Generation)>,
}

fn digest(token: &Secret) -> [u8; 32] {
    Sha256::digest(&token.0).into()
}

impl WhoseToken {
    pub(crate) fn of(&self, token: &Secret) -> Option<Whose> {
        let key = digest(token);
        // The maps are whole whatever panicked while holding the lock.
        let generations = self
            .generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (young, old) = &*generations;
        young.get(&key).or_else(|| old.get(&key)).cloned()
    }

    pub(crate) fn remember(&self, token: &Secret, whose: Whose) {
        let key = digest(token);
        let mut generations = self
            .generations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (young, old) = &mut *generations;
        if young.get(&key) == Some(&whose) {
            return;
        }
        if young.len() >= GENERATION {
            *old = std::mem::take(young);
        }
        young.insert(key, whose);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(n: usize) -> Secret {
        Secret(n.to_string())
    }

    #[test]
    fn the_last_word_about_a_token_is_what_counts() {
        let whose = WhoseToken::default();
        let user = UserId::random();
        assert_eq!(whose.of(&secret(1)), None);
        whose.remember(&secret(1), Whose::User(user.clone()));
        assert_eq!(whose.of(&secret(1)), Some(Whose::User(user)));
        whose.remember(&secret(1), Whose::Nobody);
        assert_eq!(whose.of(&secret(1)), Some(Whose::Nobody));
    }

    #[test]
    fn memory_is_bounded_and_recent_tokens_are_kept() {
        let whose = WhoseToken::default();
        for n in 0..3 * GENERATION {
            whose.remember(&secret(n), Whose::Nobody);
        }
        assert_eq!(whose.of(&secret(0)), None);
        assert_eq!(whose.of(&secret(3 * GENERATION - 1)), Some(Whose::Nobody));
        let (young, old) = &*whose.generations.lock().unwrap();
        assert!(young.len() + old.len() <= 2 * GENERATION);
    }
}
