//! Bytes as text, whatever the pieces they come in. Pure.

/// Turns bytes into text piece by piece: a character that spans two pieces stays whole,
/// and what is no UTF-8 becomes U+FFFD, exactly as if all had come at once.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// The beginning of a character, at most three bytes.
    rest: Vec<u8>,
}

impl Decoder {
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.rest);
        all.extend_from_slice(bytes);
        self.rest = all.split_off(all.len() - unfinished(&all));
        whole(all)
    }

    /// What is left when no more will come.
    pub(crate) fn finish(&mut self) -> String {
        whole(std::mem::take(&mut self.rest))
    }
}

/// All of a text at once.
pub(crate) fn whole(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// How many bytes at the end begin a character that may go on.
fn unfinished(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let tail = &bytes[bytes.len() - back..];
        if tail[0] & 0b1100_0000 == 0b1000_0000 {
            // In the middle of a character: its beginning is further left.
            continue;
        }
        // An incomplete character is no error yet; anything else is one already.
        return match std::str::from_utf8(tail) {
            Err(error) if error.error_len().is_none() => back,
            _ => 0,
        };
    }
    0
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
    fn pieces_of_any_size_give_the_same_text_as_the_whole() {
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
    fn what_is_complete_does_not_wait() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push("é".as_bytes()), "é");
        assert_eq!(decoder.push(b"a\xe2\x82"), "a");
        assert_eq!(decoder.push(b"\xac"), "€");
        assert_eq!(decoder.finish(), "");
    }
}
