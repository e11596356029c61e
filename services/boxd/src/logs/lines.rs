//! Splits bytes into lines, and lines into pieces. Pure.

use agentbox_box_protocol::output::MAX_LINE_BYTES;
use agentbox_contracts::utf8::incomplete_suffix;
use tokio::time::Instant;

/// Holds the unfinished line of one stream.
#[derive(Default)]
pub struct Lines {
    pending: Vec<u8>,
    /// When the line, or the rest of it, began.
    since: Option<Instant>,
}

/// Pieces at the beginning of the held bytes.
#[derive(Default)]
pub struct Cut<'lines> {
    /// Whether the line continues in the next piece, and the piece's bytes.
    pub pieces: Vec<(bool, &'lines [u8])>,
    /// The number of bytes that the pieces and their line feeds take.
    pub length: usize,
}

impl Lines {
    /// Adds `bytes`, which were read at `now`.
    pub fn push(&mut self, bytes: &[u8], now: Instant) {
        if self.unfinished_since().is_none() {
            self.since = Some(now);
        }
        self.pending.extend_from_slice(bytes);
    }

    /// The held bytes, from `start` on.
    pub fn rest(&self, start: usize) -> &[u8] {
        self.pending.get(start..).unwrap_or_default()
    }

    /// Since when an unfinished line has had a whole character; `None` when it has none.
    pub fn unfinished_since(&self) -> Option<Instant> {
        self.since
            .filter(|_| self.pending.len() > incomplete_suffix(&self.pending))
    }

    /// Every finished line. A line longer than [`MAX_LINE_BYTES`] is split into pieces of about
    /// that size, between characters.
    pub fn finished(&self) -> Cut<'_> {
        let mut pieces = Vec::new();
        let mut rest = &self.pending[..];
        loop {
            // A line feed right after the longest piece still ends that piece.
            let window = &rest[..rest.len().min(MAX_LINE_BYTES + 1)];
            if let Some(length) = window.iter().position(|byte| *byte == b'\n') {
                pieces.push((false, &rest[..length]));
                rest = &rest[length + 1..];
            } else if window.len() > MAX_LINE_BYTES {
                let (piece, after) = rest.split_at(whole_characters(&window[..MAX_LINE_BYTES]));
                pieces.push((true, piece));
                rest = after;
            } else {
                break;
            }
        }
        Cut {
            pieces,
            length: self.pending.len() - rest.len(),
        }
    }

    /// The unfinished line so far, as a piece; without an incomplete character at its end.
    pub fn unfinished(&self) -> Cut<'_> {
        let length = whole_characters(&self.pending);
        Cut {
            pieces: vec![(true, &self.pending[..length])],
            length,
        }
    }

    /// The unfinished line, as the last one; none when there is none.
    pub fn last(&self) -> Cut<'_> {
        if self.pending.is_empty() {
            return Cut::default();
        }
        Cut {
            pieces: vec![(false, &self.pending[..])],
            length: self.pending.len(),
        }
    }

    /// Removes the first `length` bytes, which are stored; the rest counts from `now`.
    pub fn remove(&mut self, length: usize, now: Instant) {
        if length > 0 {
            self.pending.drain(..length);
            self.since = Some(now);
        }
    }
}

fn whole_characters(bytes: &[u8]) -> usize {
    bytes.len() - incomplete_suffix(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Moves what `cut` finds to `seen`.
    fn take(lines: &mut Lines, seen: &mut Vec<(bool, Vec<u8>)>, cut: impl Fn(&Lines) -> Cut<'_>) {
        let found = cut(&*lines);
        seen.extend(
            found
                .pieces
                .iter()
                .map(|(partial, line)| (*partial, line.to_vec())),
        );
        let length = found.length;
        lines.remove(length, Instant::now());
    }

    fn pieces(chunks: &[&[u8]]) -> Vec<(bool, Vec<u8>)> {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for chunk in chunks {
            lines.push(chunk, Instant::now());
            take(&mut lines, &mut seen, Lines::finished);
        }
        take(&mut lines, &mut seen, Lines::last);
        assert!(lines.rest(0).is_empty());
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

    #[test]
    fn line_over_limit_is_split_between_characters() {
        let fill = vec![b'a'; MAX_LINE_BYTES - 1];
        let whole = [fill.as_slice(), "€b\n".as_bytes()].concat();
        assert_eq!(
            pieces(&[&whole]),
            [(true, fill), (false, "€b".as_bytes().to_vec())]
        );
    }

    #[test]
    fn unfinished_line_is_cut_between_characters_and_continues() {
        let begun = Instant::now();
        let later = begun + Duration::from_secs(1);
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        assert_eq!(lines.unfinished_since(), None);
        lines.push(b"50% \xe2\x82", begun);
        lines.push(b"", later);
        assert_eq!(lines.unfinished_since(), Some(begun));
        take(&mut lines, &mut seen, Lines::unfinished);
        // The incomplete character alone is not shown.
        assert_eq!(lines.unfinished_since(), None);
        lines.push(b"\xac done\n", later);
        assert_eq!(lines.unfinished_since(), Some(later));
        take(&mut lines, &mut seen, Lines::finished);
        assert_eq!(
            seen,
            [
                (true, b"50% ".to_vec()),
                (false, "€ done".as_bytes().to_vec())
            ]
        );
        assert_eq!(lines.unfinished_since(), None);
    }
}
