//! `Content-Digest`: the digests that an upload must have (RFC 9530). Pure.
//!
//! The header is a dictionary of byte sequences (RFC 9651): `sha-256=:<base64>:, sha-512=:<base64>:`.

use agentbox_contracts::error::{Error, shortened};
use agentbox_contracts::files::{ContentDigest, DigestAlgorithm};
use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const NAME: &str = "content-digest";

/// The known algorithms, each with the length of its digests in bytes.
static ALGORITHMS: [(&str, DigestAlgorithm, usize); 2] = [
    ("sha-256", DigestAlgorithm::Sha256, 32),
    ("sha-512", DigestAlgorithm::Sha512, 64),
];

/// The digests that are verified. Unknown algorithms are ignored beside a known one.
///
/// # Errors
/// [`agentbox_contracts::error::ErrorCode::Validation`] when the header is malformed, or has no known
/// algorithm.
pub(super) fn content_digests(headers: &HeaderMap) -> Result<Vec<ContentDigest>, Error> {
    let mut text = String::new();
    for value in headers.get_all(NAME) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&String::from_utf8_lossy(value.as_bytes()));
    }
    if !headers.contains_key(NAME) {
        return Ok(Vec::new());
    }
    parse(&text).ok_or_else(|| {
        Error::field(
            "Content-Digest",
            format_args!(
                "must have `sha-256=:<base64>:` or `sha-512=:<base64>:` (RFC 9530), is `{}`",
                shortened(&text)
            ),
        )
    })
}

fn parse(text: &str) -> Option<Vec<ContentDigest>> {
    let mut digests: Vec<ContentDigest> = Vec::new();
    for member in text.split(',') {
        let (key, value) = member.trim().split_once('=')?;
        let Some((_, algorithm, length)) = ALGORITHMS.iter().find(|known| known.0 == key) else {
            continue;
        };
        let digest = byte_sequence(value).filter(|digest| digest.len() == *length)?;
        // Of several members with one key the last counts.
        digests.retain(|digest| digest.algorithm() != *algorithm);
        digests.push(ContentDigest {
            algorithm: *algorithm as i32,
            value: digest.into(),
        });
    }
    (!digests.is_empty()).then_some(digests)
}

/// The bytes of `:<base64>:`, without the parameters after it.
fn byte_sequence(text: &str) -> Option<Vec<u8>> {
    let (base64, after) = text.strip_prefix(':')?.split_once(':')?;
    if !after.is_empty() && !after.starts_with(';') {
        return None;
    }
    STANDARD.decode(base64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA_256: &str = "sha-256=:RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg=:";

    fn sha_512() -> String {
        format!("sha-512=:{}:", STANDARD.encode([7; 64]))
    }

    fn algorithms(text: &str) -> Option<Vec<DigestAlgorithm>> {
        let digests = parse(text)?;
        Some(digests.iter().map(ContentDigest::algorithm).collect())
    }

    #[test]
    fn known_digests_are_read_and_unknown_ones_ignored() {
        use DigestAlgorithm::{Sha256, Sha512};
        let both = format!("{SHA_256}, {}", sha_512());
        assert_eq!(algorithms(SHA_256), Some(vec![Sha256]));
        assert_eq!(algorithms(&both), Some(vec![Sha256, Sha512]));
        let unknown = format!("md5=:AA==:, {SHA_256};x=1,unixsum=30637");
        assert_eq!(algorithms(&unknown), Some(vec![Sha256]));
        let zeros = format!("{SHA_256},sha-256=:{}:", STANDARD.encode([0; 32]));
        let digests = parse(&zeros).unwrap();
        assert_eq!(digests.len(), 1);
        assert_eq!(digests[0].value, [0u8; 32].as_slice());
    }

    #[test]
    fn malformed_header_is_refused() {
        for bad in [
            "",
            "sha-256",
            "sha-256=abc",
            "sha-256=:AA==:",
            "sha-256=:%%%:",
            "md5=:AA==:",
            &SHA_256[..SHA_256.len() - 1],
            &format!("{SHA_256}x"),
            &format!("{SHA_256},"),
        ] {
            let headers = HeaderMap::from_iter([(
                axum::http::HeaderName::from_static(NAME),
                bad.parse().unwrap(),
            )]);
            let error = content_digests(&headers).unwrap_err();
            assert!(error.message.starts_with("Content-Digest: "), "{error}");
        }
        assert_eq!(content_digests(&HeaderMap::new()), Ok(Vec::new()));
    }
}
