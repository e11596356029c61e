//! Finds where UTF-8 can be cut without splitting a character. Pure.

/// The number of bytes at the end that begin a character without completing it, at most three.
#[must_use]
pub fn incomplete_suffix(bytes: &[u8]) -> usize {
    // A character has at most four bytes, so an incomplete one has at most three.
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    let invalid = tail.utf8_chunks().last().map_or(&[][..], |c| c.invalid());
    match std::str::from_utf8(invalid) {
        Err(error) if error.error_len().is_none() => invalid.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_incomplete_character_at_the_end_counts() {
        for (bytes, expected) in [
            (&b""[..], 0),
            (b"a", 0),
            ("€".as_bytes(), 0),
            (b"a\xe2", 1),
            (b"a\xe2\x82", 2),
            (b"\xf0\x9f\x98", 3),
            (b"\xe2a", 0),
            (b"a\xff", 0),
            (b"\x80\x80", 0),
        ] {
            assert_eq!(incomplete_suffix(bytes), expected, "{bytes:x?}");
        }
    }
}
