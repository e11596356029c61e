//! The credential of one box: HMAC-SHA-256 (RFC 2104) of the box's id under the
//! cluster's secret, in lower-case hex.
//!
//! Invariants:
//! * I1. A token is valid for one box, and reveals nothing about other boxes' tokens.
//! * I2. Tokens are compared in constant time.
//! * I3. A token never appears in a `Debug` or an error.

use std::fmt;

use agentbox_contracts::ids::EnvironmentId;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The cluster's secret is shorter than 16 bytes.
    #[error("a cluster secret must have at least 16 bytes")]
    WeakSecret,
    /// Empty, or not printable ASCII: it cannot be sent in a header.
    #[error("a box token must be printable ASCII and not empty")]
    Malformed,
}

/// The credential of one box. Its `Debug` form does not contain it.
#[derive(Clone, PartialEq, Eq)]
pub struct BoxToken(String);

impl BoxToken {
    /// Derives the token of `id` from the cluster's `secret`.
    ///
    /// # Errors
    /// [`TokenError::WeakSecret`].
    pub fn derive(secret: &[u8], id: &EnvironmentId) -> Result<Self, TokenError> {
        if secret.len() < 16 {
            return Err(TokenError::WeakSecret);
        }
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).map_err(|_| TokenError::WeakSecret)?;
        mac.update(id.as_str().as_bytes());
        Ok(Self(hex::encode(mac.finalize().into_bytes())))
    }

    /// Parses a token.
    ///
    /// # Errors
    /// [`TokenError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.is_empty() || !printable {
            return Err(TokenError::Malformed);
        }
        Ok(Self(text.to_owned()))
    }

    /// The token's text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn matches(&self, presented: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(presented).into()
    }
}

impl fmt::Debug for BoxToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoxToken(…)")
    }
}

/// Client interceptor: adds the token to every call.
#[derive(Clone)]
pub struct AddToken(MetadataValue<Ascii>);

impl AddToken {
    /// # Errors
    /// [`TokenError::Malformed`] when the token cannot be a header's value.
    pub fn new(token: &BoxToken) -> Result<Self, TokenError> {
        let mut value: MetadataValue<Ascii> = format!("Bearer {}", token.0)
            .parse()
            .map_err(|_| TokenError::Malformed)?;
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

impl Interceptor for AddToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request
            .metadata_mut()
            .insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// Server interceptor: refuses calls without the token, with UNAUTHENTICATED.
#[derive(Clone)]
pub struct CheckToken(BoxToken);

impl CheckToken {
    #[must_use]
    pub fn new(token: BoxToken) -> Self {
        Self(token)
    }
}

impl Interceptor for CheckToken {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let presented = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        match presented {
            Some(presented) if self.0.matches(presented) => Ok(request),
            _ => Err(Status::unauthenticated(
                "the box's token is missing or wrong",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn id(text: &str) -> EnvironmentId {
        text.parse().unwrap()
    }

    #[test]
    fn token_is_standard_hmac_sha256() {
        let token = BoxToken::derive(SECRET, &id("env-0000000000000000")).unwrap();
        // printf env-0000000000000000 | openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef
        assert_eq!(token.expose(), EXPECTED);
    }

    const EXPECTED: &str = "dca749c9de52fa1df3a12695d1a5ab56daba389771e3d7120eb0985385c2a8e3";

    #[test]
    fn token_of_other_box_is_refused() {
        let mine = BoxToken::derive(SECRET, &id("env-0000000000000000")).unwrap();
        let other = BoxToken::derive(SECRET, &id("env-0000000000000001")).unwrap();
        let request = |token: &BoxToken| {
            AddToken::new(token)
                .unwrap()
                .call(Request::new(()))
                .unwrap()
        };
        assert!(CheckToken::new(mine.clone()).call(request(&mine)).is_ok());
        for refused in [request(&other), Request::new(())] {
            let status = CheckToken::new(mine.clone()).call(refused).unwrap_err();
            assert_eq!(status.code(), tonic::Code::Unauthenticated);
        }
    }

    #[test]
    fn weak_secret_and_malformed_token_are_refused() {
        let id = id("env-0000000000000000");
        assert_eq!(BoxToken::derive(b"short", &id), Err(TokenError::WeakSecret));
        for text in ["", "a b", "line\n", "é"] {
            assert_eq!(
                BoxToken::parse(text),
                Err(TokenError::Malformed),
                "{text:?}"
            );
        }
    }

    #[test]
    fn token_is_hidden_in_debug() {
        let token = BoxToken::parse("very-secret").unwrap();
        assert!(!format!("{token:?}").contains("very-secret"));
    }
}
