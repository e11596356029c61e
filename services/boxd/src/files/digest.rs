//! The digests of `Content-Digest` (RFC 9530).

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::files::{ContentDigest, DigestAlgorithm};
use sha2::{Digest as _, Sha256, Sha512};

use super::failure::{Failure, Result};

/// The expected digests and those of the content so far.
#[derive(Default)]
pub struct Digests {
    sha256: Option<(Sha256, Vec<u8>)>,
    sha512: Option<(Sha512, Vec<u8>)>,
}

impl Digests {
    /// # Errors
    /// `Validation` for an unknown algorithm, `DigestMismatch` for two digests that differ.
    pub fn new(expected: &[ContentDigest]) -> Result<Self> {
        let mut this = Self::default();
        for digest in expected {
            let value = digest.value.to_vec();
            match DigestAlgorithm::try_from(digest.algorithm) {
                Ok(DigestAlgorithm::Sha256) => {
                    let (_, kept) = this.sha256.get_or_insert((Sha256::new(), value.clone()));
                    check("sha-256", kept, &value)?;
                }
                Ok(DigestAlgorithm::Sha512) => {
                    let (_, kept) = this.sha512.get_or_insert((Sha512::new(), value.clone()));
                    check("sha-512", kept, &value)?;
                }
                Err(_) => {
                    let rule = "Content-Digest: must use sha-256 or sha-512";
                    return Err(Failure::new(ErrorCode::Validation, rule));
                }
            }
        }
        Ok(this)
    }

    pub fn update(&mut self, content: &[u8]) {
        if let Some((hash, _)) = &mut self.sha256 {
            hash.update(content);
        }
        if let Some((hash, _)) = &mut self.sha512 {
            hash.update(content);
        }
    }

    /// # Errors
    /// `DigestMismatch`.
    pub fn verify(self) -> Result<()> {
        if let Some((hash, expected)) = self.sha256 {
            check("sha-256", &hash.finalize(), &expected)?;
        }
        if let Some((hash, expected)) = self.sha512 {
            check("sha-512", &hash.finalize(), &expected)?;
        }
        Ok(())
    }
}

fn check(algorithm: &str, found: &[u8], expected: &[u8]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let message = format!("Content-Digest: the content has another {algorithm} digest");
    Err(Failure::new(ErrorCode::DigestMismatch, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(algorithm: DigestAlgorithm, value: &[u8]) -> ContentDigest {
        ContentDigest {
            algorithm: algorithm.into(),
            value: value.to_vec().into(),
        }
    }

    #[test]
    fn digest_of_content_in_pieces_is_verified() {
        let right = [
            expected(DigestAlgorithm::Sha256, &Sha256::digest(b"content")),
            expected(DigestAlgorithm::Sha512, &Sha512::digest(b"content")),
        ];
        let verify = |digests: &[ContentDigest], pieces: &[&[u8]]| {
            let mut digests = Digests::new(digests)?;
            pieces.iter().for_each(|piece| digests.update(piece));
            digests.verify()
        };
        assert_eq!(verify(&right, &[b"con", b"", b"tent"]), Ok(()));
        assert_eq!(verify(&[], &[b"anything"]), Ok(()));
        for one in &right {
            let failure = verify(std::slice::from_ref(one), &[b"other"]).unwrap_err();
            assert_eq!(failure.code, ErrorCode::DigestMismatch);
        }
        let contradiction = [right[0].clone(), expected(DigestAlgorithm::Sha256, b"x")];
        assert!(verify(&contradiction, &[b"content"]).is_err());
    }

    #[test]
    fn unknown_algorithm_is_refused() {
        let unknown = ContentDigest {
            algorithm: 99,
            ..ContentDigest::default()
        };
        let failure = Digests::new(&[unknown]).err().unwrap();
        assert_eq!(failure.code, ErrorCode::Validation);
    }
}
