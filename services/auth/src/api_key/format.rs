//! The format of an API key: `agentbox_<id>_<secret>_<checksum>`. Pure.
//!
//! * `id`: the 16 characters of the key's id, by which its row is found;
//! * `secret`: 192 random bits in hex;
//! * `checksum`: CRC-32 of the text before it, in hex. A mistyped or truncated key is refused
//!   without a query, and scanners recognise a leaked one.

use agentbox_contracts::ids::ApiKeyId;

pub const PREFIX: &str = "agentbox_";
const SECRET_BYTES: usize = 24;

pub struct Minted {
    pub id: ApiKeyId,
    /// The whole key.
    pub text: String,
}

fn checksum(body: &str) -> String {
    format!("{:08x}", crc32fast::hash(body.as_bytes()))
}

/// Makes a new random key.
#[must_use]
pub fn mint() -> Minted {
    let id = ApiKeyId::random();
    let short = id.as_str().trim_start_matches(ApiKeyId::PREFIX);
    let secret = hex::encode(rand::random::<[u8; SECRET_BYTES]>());
    let body = format!("{PREFIX}{short}_{secret}");
    let text = format!("{body}_{}", checksum(&body));
    Minted { id, text }
}

/// Parses the id of a text that has the format of an API key. Such a key need not exist.
#[must_use]
pub fn parse(text: &str) -> Option<ApiKeyId> {
    let (body, given) = text.rsplit_once('_')?;
    let (short, secret) = body.strip_prefix(PREFIX)?.split_once('_')?;
    let is_hex = secret
        .bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if secret.len() != 2 * SECRET_BYTES || !is_hex || given != checksum(body) {
        return None;
    }
    format!("{}{short}", ApiKeyId::PREFIX).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minted_key_parses_to_its_id() {
        let key = mint();
        assert_eq!(parse(&key.text), Some(key.id));
        assert_ne!(key.text, mint().text);
    }

    #[test]
    fn id_that_begins_like_its_prefix_is_parsed_whole() {
        let id: ApiKeyId = format!("key-{}", "k".repeat(16)).parse().unwrap();
        let body = format!("{PREFIX}{}_{}", "k".repeat(16), "0".repeat(48));
        assert_eq!(parse(&format!("{body}_{}", checksum(&body))), Some(id));
    }

    #[test]
    fn key_with_a_wrong_character_is_refused() {
        let key = mint().text;
        for position in 0..key.len() {
            let mut typo = key.clone().into_bytes();
            typo[position] = if typo[position] == b'0' { b'1' } else { b'0' };
            assert_eq!(
                parse(std::str::from_utf8(&typo).unwrap()),
                None,
                "at {position}"
            );
        }
        for cut in 0..key.len() {
            assert_eq!(parse(&key[..cut]), None, "cut at {cut}");
        }
    }
}
