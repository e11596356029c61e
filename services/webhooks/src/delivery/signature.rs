//! Signatures of requests, after the [Standard Webhooks](https://www.standardwebhooks.com) specification:
//! HMAC-SHA256 of `<webhook-id>.<webhook-timestamp>.<body>`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The length of a key, in bytes.
pub const KEY_LEN: usize = 32;
/// The longest key: the block of the hash. A longer one would be hashed first.
const BLOCK_LEN: usize = 64;

/// The key as a user receives it.
#[must_use]
pub fn key_text(key: &[u8]) -> String {
    format!("whsec_{}", STANDARD.encode(key))
}

/// The value of `webhook-signature`. `timestamp` is in Unix seconds. A key has at most 64 bytes.
#[must_use]
pub fn sign(key: &[u8], id: &str, timestamp: i64, body: &str) -> String {
    // HMAC takes its key as a block of the hash: shorter keys are padded with zeros.
    let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
    let length = key.len().min(BLOCK_LEN);
    block[..length].copy_from_slice(&key[..length]);
    let mut mac = Hmac::<Sha256>::new(&block);
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body.as_bytes());
    let tag: [u8; 32] = mac.finalize().into_bytes().into();
    format!("v1,{}", STANDARD.encode(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_equals_the_published_example() {
        let key = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = sign(
            &key,
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            r#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(key_text(&key), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
    }

    #[test]
    fn signature_depends_on_every_part() {
        let signed = sign(b"key", "a", 1, "{}");
        for other in [
            sign(b"yek", "a", 1, "{}"),
            sign(b"key", "b", 1, "{}"),
            sign(b"key", "a", 2, "{}"),
            sign(b"key", "a", 1, "[]"),
        ] {
            assert_ne!(signed, other);
        }
    }
}
