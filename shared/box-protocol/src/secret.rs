//! The cluster's secret, under which the tokens of its boxes are made.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The text is not a secret of 32 bytes. Does not repeat the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a box secret is 64 hexadecimal digits")]
pub struct InvalidSecret;

/// Makes box tokens. Never shown.
#[derive(Clone)]
pub struct BoxSecret(Arc<[u8; 32]>);

impl BoxSecret {
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl FromStr for BoxSecret {
    type Err = InvalidSecret;

    fn from_str(text: &str) -> Result<Self, InvalidSecret> {
        let mut bytes = [0u8; 32];
        hex::decode_to_slice(text.trim(), &mut bytes).map_err(|_| InvalidSecret)?;
        Ok(Self(Arc::new(bytes)))
    }
}

impl fmt::Debug for BoxSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoxSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_32_bytes_of_hex_and_is_never_shown() {
        let secret: BoxSecret = "5c".repeat(32).parse().unwrap();
        assert_eq!(secret.bytes(), [0x5c; 32]);
        assert!(!format!("{secret:?}").contains("5c"));
        for wrong in ["", "5c", &"5c".repeat(33), &"xx".repeat(32)] {
            let error = wrong.parse::<BoxSecret>().unwrap_err();
            assert_eq!(error, InvalidSecret);
            assert!(wrong.is_empty() || !error.to_string().contains(wrong));
        }
    }
}
