//! Checks the signatures of our JWTs, so that forged tokens are refused without asking auth.
//!
//! * I1. Only EdDSA, our issuer and our audience are accepted.
//! * I2. For an unknown key id the public keys are read again, at most once in
//!   [`REFRESH_EVERY`]: invented key ids do not cost a request each.
//! * I3. A valid signature does not make a token valid: auth decides. Where the signature
//!   cannot be checked the verdict is [`Verdict::Unknown`], and auth decides too.

use std::collections::HashMap;
use std::time::Duration;

use agentbox_bus::Bus;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::identity::rpc::{PublicKeys, Secret};
use agentbox_contracts::ids::UserId;
use agentbox_contracts::rpc::Empty;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use parking_lot::RwLock;
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

const ISSUER: &str = "agentbox";
const AUDIENCE: &str = "agentbox-api";
/// The prefix of API keys, which are not JWTs.
const API_KEY_PREFIX: &str = "agentbox_";
const REFRESH_EVERY: Duration = Duration::from_secs(2);
const REFRESH_DEADLINE: Duration = Duration::from_millis(500);
/// How many seconds auth's clock may differ. Auth decides whether a token has expired.
const LEEWAY_S: u64 = 60;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Signed by us for this user. Auth decides whether the token is still valid.
    Signed(UserId),
    Forged,
    /// Not a JWT, or signed with an unknown key.
    Unknown,
}

#[derive(Deserialize)]
struct Claims {
    sub: UserId,
}

#[derive(Default)]
pub(crate) struct Signatures {
    keys: RwLock<HashMap<String, DecodingKey>>,
    refreshed: Mutex<Option<Instant>>,
}

impl Signatures {
    pub(crate) async fn verify(&self, bus: &Bus, token: &Secret) -> Verdict {
        if token.0.starts_with(API_KEY_PREFIX) {
            return Verdict::Unknown;
        }
        let Some(kid) = key_id(&token.0) else {
            return Verdict::Forged;
        };
        if let Some(verdict) = self.by_known_key(&token.0, &kid) {
            return verdict;
        }
        self.refresh(bus).await;
        self.by_known_key(&token.0, &kid)
            .unwrap_or(Verdict::Unknown)
    }

    fn by_known_key(&self, token: &str, kid: &str) -> Option<Verdict> {
        let keys = self.keys.read();
        keys.get(kid).map(|key| verify(token, key))
    }

    async fn refresh(&self, bus: &Bus) {
        // While one request refreshes the keys, other requests continue without them.
        let Ok(mut refreshed) = self.refreshed.try_lock() else {
            return;
        };
        if refreshed.is_some_and(|at| at.elapsed() < REFRESH_EVERY) {
            return;
        }
        *refreshed = Some(Instant::now());
        match bus.call::<PublicKeys>(&Empty {}, REFRESH_DEADLINE).await {
            Ok(reply) => {
                let keys = reply.keys.into_iter().filter_map(public_key).collect();
                *self.keys.write() = keys;
            }
            Err(error) => {
                tracing::debug!(error = %ErrorChain(&error), "the public keys could not be read")
            }
        }
    }
}

/// The key id in the header of an EdDSA token.
fn key_id(token: &str) -> Option<String> {
    let header = decode_header(token).ok()?;
    header.kid.filter(|_| header.alg == Algorithm::EdDSA)
}

/// Whether a text is one of our JWTs by its claims. Its signature is not checked.
pub(crate) fn is_own_jwt(text: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Issued {
        iss: String,
        aud: String,
    }
    let claims = text.split(|byte| *byte == b'.').nth(1);
    claims
        .and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok())
        .and_then(|json| serde_json::from_slice::<Issued>(&json).ok())
        .is_some_and(|issued| issued.iss == ISSUER && issued.aud == AUDIENCE)
}

fn public_key(value: serde_json::Value) -> Option<(String, DecodingKey)> {
    let jwk: Jwk = serde_json::from_value(value).ok()?;
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    Some((jwk.common.key_id?, key))
}

fn verify(token: &str, key: &DecodingKey) -> Verdict {
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_issuer(&[ISSUER]);
    validation.set_audience(&[AUDIENCE]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    validation.leeway = LEEWAY_S;
    match decode::<Claims>(token, key, &validation) {
        Ok(data) => Verdict::Signed(data.claims.sub),
        Err(_) => Verdict::Forged,
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use ed25519_dalek::SigningKey;
    use ed25519_dalek::pkcs8::EncodePrivateKey;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

    use super::*;

    struct Signer(SigningKey);

    impl Signer {
        fn new(seed: u8) -> Self {
            Self(SigningKey::from_bytes(&[seed; 32]))
        }

        fn public(&self) -> (String, DecodingKey) {
            let x = URL_SAFE_NO_PAD.encode(self.0.verifying_key().as_bytes());
            let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": "k1", "alg": "EdDSA"});
            public_key(jwk).unwrap()
        }

        fn sign(&self, claims: &serde_json::Value) -> String {
            let der = self.0.to_pkcs8_der().unwrap();
            let mut header = Header::new(Algorithm::EdDSA);
            header.kid = Some("k1".into());
            encode(&header, claims, &EncodingKey::from_ed_der(der.as_bytes())).unwrap()
        }
    }

    fn claims(user: &UserId, expires_in_s: i64) -> serde_json::Value {
        json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": user,
            "exp": Utc::now().timestamp() + expires_in_s,
        })
    }

    #[test]
    fn token_with_our_signature_returns_its_user_and_others_are_forged() {
        let (user, signer) = (UserId::random(), Signer::new(1));
        let (kid, key) = signer.public();
        let good = signer.sign(&claims(&user, 60));
        assert_eq!(key_id(&good), Some(kid));
        assert_eq!(verify(&good, &key), Verdict::Signed(user.clone()));
        let without = |field: &str| {
            let mut claims = claims(&user, 60);
            claims.as_object_mut().unwrap().remove(field);
            signer.sign(&claims)
        };
        for (why, token) in [
            ("another key", Signer::new(2).sign(&claims(&user, 60))),
            ("expired long ago", signer.sign(&claims(&user, -3600))),
            ("no issuer", without("iss")),
            ("no audience", without("aud")),
            ("no expiry", without("exp")),
            ("no user", without("sub")),
        ] {
            assert_eq!(verify(&token, &key), Verdict::Forged, "{why}");
        }
        assert!(is_own_jwt(good.as_bytes()));
        assert!(!is_own_jwt(without("iss").as_bytes()));
        let (head, _) = good.rsplit_once('.').unwrap();
        assert_eq!(verify(&format!("{head}.AAAA"), &key), Verdict::Forged);
    }

    #[test]
    fn token_without_eddsa_has_no_key_id() {
        let user = UserId::random();
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("k1".into());
        let hs256 = encode(&header, &claims(&user, 60), &EncodingKey::from_secret(b"x")).unwrap();
        for token in [hs256.as_str(), "", "a.b.c", "not a token", "e30.e30."] {
            assert_eq!(key_id(token), None, "{token}");
        }
    }
}
