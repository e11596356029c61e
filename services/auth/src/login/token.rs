//! The token of a login: a JWT (RFC 7519) signed with EdDSA (RFC 8037). Pure.
//!
//! * I1. Only EdDSA, only our issuer and audience, never without an expiry.
//! * I2. A token proves its login and nothing else. The name and role in it are for display;
//!   decisions read them from Postgres.

use agentbox_contracts::identity::{Role, User};
use agentbox_contracts::ids::{LoginId, UserId};
use jsonwebtoken::errors::Error;
use jsonwebtoken::{Algorithm, Header, Validation};
use serde::{Deserialize, Serialize};

use super::store::NewLogin;
use crate::signing_key::Key;

pub const ISSUER: &str = "agentbox";
pub const AUDIENCE: &str = "agentbox-api";
/// Longer than any token of ours.
const MAX_LEN: usize = 2_048;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub aud: String,
    pub sub: UserId,
    pub jti: LoginId,
    /// Unix seconds.
    pub iat: i64,
    /// Unix seconds.
    pub exp: i64,
    pub username: String,
    pub role: Role,
}

impl Claims {
    #[must_use]
    pub fn new(user: &User, login: &NewLogin) -> Self {
        Self {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: user.id.clone(),
            jti: login.id.clone(),
            iat: login.issued_at.timestamp(),
            exp: login.expires_at.timestamp(),
            username: user.username.clone(),
            role: user.role,
        }
    }
}

/// Signs `claims` with `key`.
///
/// # Errors
/// When the key cannot sign.
pub fn sign(claims: &Claims, key: &Key) -> Result<String, Error> {
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some(key.kid.clone());
    jsonwebtoken::encode(&header, claims, &key.encoding)
}

/// The `kid` of a token's header, unverified: the id of the key that must verify the token.
#[must_use]
pub fn key_id(token: &str) -> Option<String> {
    if token.len() > MAX_LEN {
        return None;
    }
    let header = jsonwebtoken::decode_header(token).ok()?;
    header.kid.filter(|_| header.alg == Algorithm::EdDSA)
}

/// Verifies a token and returns its claims.
///
/// # Errors
/// When the signature, the issuer, the audience or the time is wrong, or a claim is missing.
pub fn verify(token: &str, key: &Key) -> Result<Claims, Error> {
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_issuer(&[ISSUER]);
    validation.set_audience(&[AUDIENCE]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    // The login's row has the exact expiry, and Postgres compares it with its own clock.
    validation.leeway = 5;
    jsonwebtoken::decode::<Claims>(token, &key.decoding, &validation).map(|data| data.claims)
}
