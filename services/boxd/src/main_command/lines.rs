//! Splits bytes into lines. Pure.

use agentbox_box_protocol::output::MAX_LINE_BYTES;

/// Holds an unfinished line.
#[derive(Default)]
pub struct Lines {
    pending: Vec<u8>,
}

/// Whether the line continues in the next piece, and the piece's bytes.
pub type Piece<'bytes> = (bool, &'bytes [u8]);

impl Lines {
    /// Passes the pieces that `bytes` completes to `take`, in one call. A line longer than
    /// [`MAX_LINE_BYTES`] is split into pieces of that size.
    pub fn push(&mut self, bytes: &[u8], take: impl FnOnce(&[Piece<'_>])) {
        self.pending.extend_from_slice(bytes);
        let mut pieces = Vec::new();
        let mut rest = &self.pending[..];
        loop {
            // A line feed right after the longest piece still ends that piece.
            let window = &rest[..rest.len().min(MAX_LINE_BYTES + 1)];
            if let Some(length) = window.iter().position(|byte| *byte == b'\n') {
                pieces.push((false, &rest[..length]));
                rest = &rest[length + 1..];
            } else if window.len() > MAX_LINE_BYTES {
                pieces.push((true, &rest[..MAX_LINE_BYTES]));
                rest = &rest[MAX_LINE_BYTES..];
            } else {
                break;
            }
        }
        let consumed = self.pending.len() - rest.len();
        take(&pieces);
        self.pending.drain(..consumed);
    }

    /// Passes the unfinished line to `take`.
    pub fn finish(&mut self, take: impl FnOnce(bool, &[u8])) {
        if !self.pending.is_empty() {
            take(false, &self.pending);
            self.pending.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(chunks: &[&[u8]]) -> Vec<(bool, Vec<u8>)> {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for chunk in chunks {
            lines.push(chunk, |pieces| {
                seen.extend(
                    pieces
                        .iter()
                        .map(|(partial, line)| (*partial, line.to_vec())),
                );
            });
        }
        lines.finish(|partial, line| seen.push((partial, line.to_vec())));
        seen
    }

    #[test]
    fn line_split_over_reads_is_one_entry() {
        let expected = [&b"one"[..], b"", b"two\r", b"end"].map(|line| (false, line.to_vec()));
        assert_eq!(pieces(&[b"one\n\ntwo\r\nend"]), expected);
        let single: Vec<&[u8]> = b"one\n\ntwo\r\nend".chunks(1).collect();
        assert_eq!(pieces(&single), expected);
        assert_eq!(pieces(&[b""]), []);
        assert_eq!(pieces(&[b"x\n"]), [(false, b"x".to_vec())]);
    }

    #[test]
    fn line_over_limit_is_split() {
        let long = vec![b'x'; MAX_LINE_BYTES];
        let whole = [long.as_slice(), b"\nrest"].concat();
        assert_eq!(
            pieces(&[&whole]),
            [(false, long.clone()), (false, b"rest".to_vec())]
        );
        let cut = [long.as_slice(), b"y\n"].concat();
        assert_eq!(pieces(&[&cut]), [(true, long), (false, b"y".to_vec())]);
    }
}
