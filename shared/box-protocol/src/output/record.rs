//! The encoding of one entry. Little-endian:
//! `length u32` and `crc32 u32` (both of the bytes after the checksum),
//! `sequence u64`, `unix_nanos i64`, `flags u8` (bit 0: stderr, bit 1: partial), line.

use agentbox_contracts::logs::{LogEntry, OutputStream};
use chrono::DateTime;

use super::MAX_LINE_BYTES;

/// The first bytes of every segment; the digit is the format version.
pub const MAGIC: &[u8; 8] = b"abxout1\n";

const HEADER: usize = 8;
const FIXED_FIELDS: usize = 17;
const STDERR: u8 = 1;
const PARTIAL: u8 = 2;

/// The longest record, in bytes.
pub const MAX_RECORD_BYTES: usize = HEADER + FIXED_FIELDS + MAX_LINE_BYTES;

/// The size of a record whose line has `length` bytes.
#[must_use]
pub const fn encoded_len(length: usize) -> usize {
    HEADER + FIXED_FIELDS + length
}

/// Appends one record. A line over [`MAX_LINE_BYTES`] is truncated: the caller splits lines.
pub fn encode(
    into: &mut Vec<u8>,
    sequence: u64,
    unix_nanos: i64,
    stream: OutputStream,
    partial: bool,
    line: &[u8],
) {
    let line = &line[..line.len().min(MAX_LINE_BYTES)];
    let flags = match stream {
        OutputStream::Stdout => 0,
        OutputStream::Stderr => STDERR,
    } | if partial { PARTIAL } else { 0 };
    let start = into.len();
    // The truncation above keeps the length far below u32::MAX.
    let length = u32::try_from(FIXED_FIELDS + line.len()).unwrap_or(0);
    into.extend_from_slice(&length.to_le_bytes());
    into.extend_from_slice(&[0; 4]);
    into.extend_from_slice(&sequence.to_le_bytes());
    into.extend_from_slice(&unix_nanos.to_le_bytes());
    into.push(flags);
    into.extend_from_slice(line);
    let crc = crc32fast::hash(&into[start + HEADER..]);
    into[start + 4..start + HEADER].copy_from_slice(&crc.to_le_bytes());
}

/// Decodes the first record of `bytes`; returns it and the remaining bytes. `None` when
/// there is no complete record with a valid checksum.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<(LogEntry, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if !(FIXED_FIELDS..=FIXED_FIELDS + MAX_LINE_BYTES).contains(&length) {
        return None;
    }
    let (body, rest) = rest.split_at_checked(length)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let (sequence, body) = body.split_first_chunk::<8>()?;
    let (nanos, body) = body.split_first_chunk::<8>()?;
    let (flags, line) = body.split_first()?;
    let entry = LogEntry {
        sequence: u64::from_le_bytes(*sequence),
        timestamp: DateTime::from_timestamp_nanos(i64::from_le_bytes(*nanos)),
        stream: if flags & STDERR == 0 {
            OutputStream::Stdout
        } else {
            OutputStream::Stderr
        },
        line: line.to_vec(),
        partial: flags & PARTIAL != 0,
    };
    Some((entry, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn entry_round_trips(
            sequence: u64, nanos: i64, stderr: bool, partial: bool, line: Vec<u8>, tail: Vec<u8>,
        ) {
            let stream = if stderr { OutputStream::Stderr } else { OutputStream::Stdout };
            let mut bytes = Vec::new();
            encode(&mut bytes, sequence, nanos, stream, partial, &line);
            prop_assert_eq!(bytes.len(), encoded_len(line.len()));
            bytes.extend_from_slice(&tail);
            let (entry, rest) = decode(&bytes).unwrap();
            prop_assert_eq!(rest, &tail[..]);
            prop_assert_eq!(
                (entry.sequence, entry.timestamp.timestamp_nanos_opt(), entry.stream, entry.partial, entry.line),
                (sequence, Some(nanos), stream, partial, line)
            );
        }

        #[test]
        fn garbage_is_not_decoded(bytes: Vec<u8>) {
            prop_assert!(decode(&bytes).is_none());
        }

        #[test]
        fn flipped_bit_is_detected(line: Vec<u8>, position: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = Vec::new();
            encode(&mut bytes, 1, 2, OutputStream::Stdout, false, &line);
            let at = position.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes).is_none());
        }
    }
}
