//! The cluster's secret, from which its boxes' tokens are derived.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The text is not a secret of 32 bytes. The error does not contain the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a box secret must be 64 hexadecimal digits")]
pub struct InvalidSecret;

/// The secret. Its `Debug` form does not contain it.
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
    fn secret_is_32_hex_bytes_and_hidden_in_debug() {
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
