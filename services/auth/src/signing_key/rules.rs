//! When a key signs and verifies, and the format of its id. Pure.

use std::time::Duration;

use agentbox_database::secret::{MasterSecret, Purpose};
use chrono::{DateTime, Utc};
use subtle::ConstantTimeEq;

/// The largest difference between the clocks of two replicas.
const SKEW: Duration = Duration::from_secs(60);
const RANDOM_HEX: usize = 16;
const MAC_BYTES: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    pub created_at: DateTime<Utc>,
    /// From here on, another key signs.
    pub signs_until: DateTime<Utc>,
    /// Every token that it signed has expired by then.
    pub not_after: DateTime<Utc>,
}

impl Lifetime {
    #[must_use]
    pub fn new(now: DateTime<Utc>, rotation: Duration, token_ttl: Duration) -> Self {
        let signs_until = now + rotation;
        Self {
            created_at: now,
            signs_until,
            not_after: signs_until + token_ttl + SKEW,
        }
    }

    /// Whether a token of `token_ttl` may be signed at `now`. A configuration with longer
    /// tokens than the key was made for needs a new key.
    #[must_use]
    pub fn may_sign(&self, now: DateTime<Utc>, token_ttl: Duration) -> bool {
        now < self.signs_until && now + token_ttl <= self.not_after
    }

    #[must_use]
    pub fn may_verify(&self, now: DateTime<Utc>) -> bool {
        now < self.not_after
    }
}

fn mac(secret: &MasterSecret, random: &str) -> String {
    hex::encode(&secret.digest(Purpose::KeyId, random.as_bytes())[..MAC_BYTES])
}

/// A new key id: 16 random hex digits, then 16 digits of their MAC. The MAC proves that a replica
/// of this deployment made the id, so a forged id costs no query.
#[must_use]
pub fn mint_kid(secret: &MasterSecret) -> String {
    let random = hex::encode(rand::random::<[u8; RANDOM_HEX / 2]>());
    let mac = mac(secret, &random);
    random + &mac
}

/// Whether a replica of this deployment made `kid`.
#[must_use]
pub fn is_ours(secret: &MasterSecret, kid: &str) -> bool {
    kid.len() == RANDOM_HEX + 2 * MAC_BYTES
        && kid
            .split_at_checked(RANDOM_HEX)
            .is_some_and(|(random, given)| {
                mac(secret, random)
                    .as_bytes()
                    .ct_eq(given.as_bytes())
                    .into()
            })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn key_signs_for_one_rotation_and_verifies_until_its_last_token_expires() {
        let start = DateTime::<Utc>::UNIX_EPOCH;
        let key = Lifetime::new(start, 24 * HOUR, HOUR);
        for (hours, signs, verifies) in [
            (0, true, true),
            (23, true, true),
            (24, false, true),
            (25, false, true),
            (26, false, false),
        ] {
            let now = start + HOUR * hours;
            assert_eq!(key.may_sign(now, HOUR), signs, "{hours} h");
            assert_eq!(key.may_verify(now), verifies, "{hours} h");
        }
        // The last token, signed just before the hand-over.
        assert!(key.may_verify(start + 25 * HOUR));
        assert!(
            !key.may_sign(start, 30 * HOUR),
            "a longer token needs another key"
        );
    }

    #[test]
    fn key_id_of_another_secret_is_refused() {
        let secret = |byte: u8| hex::encode([byte; 32]).parse::<MasterSecret>().unwrap();
        let kid = mint_kid(&secret(1));
        assert!(is_ours(&secret(1), &kid));
        assert!(!is_ours(&secret(2), &kid));
        let mut other = kid.clone().into_bytes();
        other[0] = if other[0] == b'0' { b'1' } else { b'0' };
        assert!(!is_ours(&secret(1), std::str::from_utf8(&other).unwrap()));
        for garbage in ["", "x", &"é".repeat(16), &kid[1..]] {
            assert!(!is_ours(&secret(1), garbage), "{garbage}");
        }
    }
}
