//! The credential of one box: HMAC-SHA-256 (RFC 2104) of the box's id under the
//! cluster's secret, in lower-case hex.
//!
//! Invariants:
//! * I1. A token opens one box: who has it learns nothing of another box's.
//! * I2. Comparison takes the same time wherever two tokens differ.
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
    #[error("a cluster secret needs at least 16 bytes")]
    WeakSecret,
    /// Empty, or not printable ASCII: it cannot travel in a header.
    #[error("a box token is printable ASCII and not empty")]
    Malformed,
}

/// Opens one box.
#[derive(Clone, PartialEq, Eq)]
pub struct BoxToken(String);

impl BoxToken {
    /// The token of `id` under the cluster's `secret`.
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

    /// A token as it was handed over.
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

    /// The text, to hand it over.
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

/// The client's side: adds the token to every call.
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

/// The server's side: refuses every call without the token, with UNAUTHENTICATED.
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
            _ => Err(Status::unauthenticated("this box's token is required")),
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
    fn the_token_is_the_hmac_that_any_other_tool_computes() {
        let token = BoxToken::derive(SECRET, &id("env-0000000000000000")).unwrap();
        // printf env-0000000000000000 | openssl dgst -sha256 -hmac 0123456789abcdef0123456789abcdef
        assert_eq!(token.expose(), EXPECTED);
    }

    const EXPECTED: &str = "dca749c9de52fa1df3a12695d1a5ab56daba389771e3d7120eb0985385c2a8e3";

    #[test]
    fn one_boxs_token_is_refused_by_another_box() {
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
    fn a_weak_secret_and_an_empty_token_are_refused() {
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
    fn debug_output_does_not_show_the_token() {
        let token = BoxToken::parse("very-secret").unwrap();
        assert!(!format!("{token:?}").contains("very-secret"));
    }
}
