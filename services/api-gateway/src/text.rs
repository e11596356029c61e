//! Decodes UTF-8 that arrives in pieces. Pure.

use agentbox_contracts::utf8::incomplete_suffix;

/// Decodes bytes piece by piece. The result is the same as decoding all of them at once: a
/// character that spans two pieces is kept, and invalid UTF-8 becomes U+FFFD.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// The first bytes of an incomplete character, at most three.
    rest: Vec<u8>,
}

impl Decoder {
    /// Decodes the complete characters of `bytes` and of the bytes held back before.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.rest);
        all.extend_from_slice(bytes);
        self.rest = all.split_off(all.len() - incomplete_suffix(&all));
        decode_lossy(all)
    }

    /// Decodes the bytes held back, after the last piece.
    pub(crate) fn finish(&mut self) -> String {
        decode_lossy(std::mem::take(&mut self.rest))
    }
}

/// Decodes a whole text. Valid UTF-8 is not copied.
pub(crate) fn decode_lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_pieces(bytes: &[u8], size: usize) -> String {
        let mut decoder = Decoder::default();
        let mut text: String = bytes
            .chunks(size)
            .map(|piece| decoder.push(piece))
            .collect();
        assert!(decoder.rest.len() <= 3);
        text.push_str(&decoder.finish());
        text
    }

    #[test]
    fn pieces_of_any_size_decode_like_the_whole() {
        let samples: [&[u8]; 10] = [
            "plain".as_bytes(),
            "a€😀é\u{10FFFF}".as_bytes(),
            b"a\xffb",
            b"\xe2\x82",
            b"\xe2\x82x",
            b"\xf0\x9f\x98",
            b"\xc0\x80\xed\xa0\x80",
            b"\xf5\x80\x80\x80",
            b"\x80\x80\x80\x80",
            b"\xe2\xe2\x82\xac\xf0\x9f",
        ];
        for sample in samples {
            let expected = String::from_utf8_lossy(sample);
            for size in 1..=sample.len() {
                assert_eq!(in_pieces(sample, size), expected, "{sample:x?} by {size}");
            }
        }
    }

    #[test]
    fn complete_characters_are_returned_at_once() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push("é".as_bytes()), "é");
        assert_eq!(decoder.push(b"a\xe2\x82"), "a");
        assert_eq!(decoder.push(b"\xac"), "€");
        assert_eq!(decoder.finish(), "");
    }
}
