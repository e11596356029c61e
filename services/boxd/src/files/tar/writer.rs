//! Writing an archive, with the long names and large numbers of GNU tar.

use std::io::{self, Write};

use super::{BLOCK_BYTES, Entry, Kind, ZEROS, padding};

/// Writes an entry's header, after one with its long name or link if they need it. The content and
/// [`write_padding`] must follow.
///
/// # Errors
/// As the writer.
pub fn write_header(writer: &mut impl Write, entry: &Entry) -> io::Result<()> {
    for (kind, name) in [(b'K', &entry.link), (b'L', &entry.path)] {
        if name.len() > 100 {
            let mut header = [0; BLOCK_BYTES];
            header[..13].copy_from_slice(b"././@LongLink");
            put_number(&mut header, 124, 12, name.len() as u64 + 1);
            finish(&mut header, kind);
            writer.write_all(&header)?;
            writer.write_all(name)?;
            writer.write_all(&[0])?;
            write_padding(writer, name.len() as u64 + 1)?;
        }
    }
    let mut header = [0; BLOCK_BYTES];
    put_text(&mut header, 0, &entry.path);
    put_text(&mut header, 157, &entry.link);
    put_number(&mut header, 100, 8, u64::from(entry.mode));
    put_number(&mut header, 108, 8, u64::from(entry.uid));
    put_number(&mut header, 116, 8, u64::from(entry.gid));
    put_number(&mut header, 124, 12, entry.size);
    let modified = u64::try_from(entry.modified).unwrap_or(0);
    put_number(&mut header, 136, 12, modified);
    let kind = match entry.kind {
        Kind::File | Kind::Other => b'0',
        Kind::HardLink => b'1',
        Kind::SymbolicLink => b'2',
        Kind::Directory => b'5',
    };
    finish(&mut header, kind);
    writer.write_all(&header)
}

/// Fills the last block of content of `size` bytes.
///
/// # Errors
/// As the writer.
pub fn write_padding(writer: &mut impl Write, size: u64) -> io::Result<()> {
    let count = usize::try_from(padding(size)).unwrap_or(0);
    writer.write_all(&ZEROS[..count])
}

/// Writes the end of the archive.
///
/// # Errors
/// As the writer.
pub fn write_end(writer: &mut impl Write) -> io::Result<()> {
    writer.write_all(&ZEROS)?;
    writer.write_all(&ZEROS)
}

fn put_text(header: &mut [u8; BLOCK_BYTES], start: usize, text: &[u8]) {
    let length = text.len().min(100);
    header[start..start + length].copy_from_slice(&text[..length]);
}

/// Octal with a NUL, or of GNU tar binary when it is too large for that.
fn put_number(header: &mut [u8; BLOCK_BYTES], start: usize, length: usize, number: u64) {
    let field = &mut header[start..start + length];
    let octal = format!("{number:0width$o}", width = length - 1);
    if octal.len() < length {
        field[..octal.len()].copy_from_slice(octal.as_bytes());
    } else {
        let bytes = number.to_be_bytes();
        let kept = bytes.len().min(length - 1);
        field[length - kept..].copy_from_slice(&bytes[bytes.len() - kept..]);
        field[0] = 0x80;
    }
}

/// Sets what all headers of GNU tar have, and the checksum.
fn finish(header: &mut [u8; BLOCK_BYTES], kind: u8) {
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar  \0");
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    let text = format!("{sum:06o}\0 ");
    header[148..156].copy_from_slice(text.as_bytes());
}
