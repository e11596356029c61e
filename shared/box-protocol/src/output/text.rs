//! An entry as a line of text: `sequence stream tag length line`, with the tags of the CRI log
//! format (`F` full, `P` partial). `7 stderr F 5 hello` is an example.
//!
//! The length detects a line of which a part was dropped.

use agentbox_contracts::logs::OutputStream;

use super::NewEntry;

/// Appends the line of one entry, with its line feed.
pub fn encode(into: &mut Vec<u8>, sequence: u64, entry: &NewEntry<'_>) {
    let stream = match entry.stream {
        OutputStream::Stdout => "stdout",
        OutputStream::Stderr => "stderr",
    };
    let tag = if entry.partial { 'P' } else { 'F' };
    let length = entry.line.len();
    into.extend_from_slice(format!("{sequence} {stream} {tag} {length} ").as_bytes());
    into.extend_from_slice(entry.line);
    into.push(b'\n');
}

/// Decodes a line without its line feed; `None` when boxd has not written it like this.
#[must_use]
pub fn decode(text: &[u8]) -> Option<(u64, NewEntry<'_>)> {
    let mut fields = text.splitn(5, |byte| *byte == b' ');
    let mut field = || std::str::from_utf8(fields.next()?).ok();
    let sequence = field()?.parse().ok()?;
    let stream = match field()? {
        "stdout" => OutputStream::Stdout,
        "stderr" => OutputStream::Stderr,
        _ => return None,
    };
    let partial = match field()? {
        "P" => true,
        "F" => false,
        _ => return None,
    };
    let length: usize = field()?.parse().ok()?;
    let line = fields.next()?;
    let entry = NewEntry {
        stream,
        partial,
        line,
    };
    (line.len() == length).then_some((sequence, entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_is_written_as_before_and_read_back() {
        for (stream, partial, line, expected) in [
            (
                OutputStream::Stderr,
                false,
                &b"two words"[..],
                "7 stderr F 9 two words\n",
            ),
            (OutputStream::Stdout, true, b"", "7 stdout P 0 \n"),
            (OutputStream::Stdout, false, b"\r ", "7 stdout F 2 \r \n"),
        ] {
            let entry = NewEntry {
                stream,
                partial,
                line,
            };
            let mut text = Vec::new();
            encode(&mut text, 7, &entry);
            assert_eq!(String::from_utf8_lossy(&text), expected);
            let (sequence, read) = decode(&text[..text.len() - 1]).unwrap();
            assert_eq!(
                (sequence, read.stream, read.partial, read.line),
                (7, stream, partial, line)
            );
        }
    }

    #[test]
    fn line_that_was_cut_or_is_not_boxds_is_not_decoded() {
        for text in [
            "",
            "hello",
            "7 stdout F 5 hell",
            "7 stdout F 5 hel8 stdout F 1 x",
            "7 stdout F 5",
            "7 stdin F 1 x",
            "x stdout F 1 x",
            "7 stdout X 1 x",
        ] {
            assert!(decode(text.as_bytes()).is_none(), "{text}");
        }
    }
}
