//! The tar format (POSIX.1-2001 ustar and pax, and the long names and large numbers of GNU tar): a
//! reader for streams from anybody, and a writer.
//!
//! * I1. The reader keeps one block, and extensions of at most [`MAX_EXTENSION_BYTES`], in memory.

mod writer;

use std::io::{self, Read};

pub use writer::{write_end, write_header, write_padding};

pub const BLOCK_BYTES: usize = 512;
const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
/// The longest extended header or long name.
const MAX_EXTENSION_BYTES: u64 = 64 * 1024;
/// The most extensions before one entry.
const MAX_EXTENSIONS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    SymbolicLink,
    Directory,
    /// A device, a FIFO, or a type that is not known.
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: Vec<u8>,
    /// The target of a link.
    pub link: Vec<u8>,
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of content; 0 except for a file.
    pub size: u64,
    /// Seconds since the Unix epoch.
    pub modified: i64,
}

#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("{0}")]
    Malformed(&'static str),
    #[error("the archive cannot be read: {0}")]
    Read(#[from] io::Error),
}

/// The values of extensions for the next entry.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    modified: Option<i64>,
    uid: Option<u32>,
    gid: Option<u32>,
    sparse: bool,
}

/// Reads an archive. Between two calls of [`Reader::next_entry`] it is the content of the entry.
pub struct Reader<R> {
    source: R,
    /// The rest of the present entry's content.
    content: u64,
    padding: u64,
}

impl<R: Read> Reader<R> {
    pub fn new(source: R) -> Self {
        Self {
            source,
            content: 0,
            padding: 0,
        }
    }

    /// What follows the last entry that was read.
    pub fn into_source(self) -> R {
        self.source
    }

    /// The next entry; `None` at the end of the archive.
    ///
    /// # Errors
    /// [`TarError`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        for _ in 0..=MAX_EXTENSIONS {
            self.skip()?;
            let mut block = [0; BLOCK_BYTES];
            self.source.read_exact(&mut block).map_err(|error| {
                if error.kind() == io::ErrorKind::UnexpectedEof {
                    TarError::Malformed("the archive is truncated")
                } else {
                    TarError::Read(error)
                }
            })?;
            if block == ZEROS {
                return Ok(None);
            }
            let header = Header(&block);
            header.verify()?;
            let size = header.number(124, 12)?;
            match header.0[156] {
                b'L' => extensions.path = Some(self.name(size)?),
                b'K' => extensions.link = Some(self.name(size)?),
                b'x' => {
                    let records = self.extension(size)?;
                    apply_records(&records, &mut extensions)?;
                }
                // Defaults for all entries: no writer puts a name or a size there.
                b'g' => {
                    self.extension(size)?;
                }
                _ => return self.entry(&header, size, extensions).map(Some),
            }
        }
        Err(TarError::Malformed(
            "an entry has too many extended headers",
        ))
    }

    fn entry(
        &mut self,
        header: &Header<'_>,
        size: u64,
        extensions: Extensions,
    ) -> Result<Entry, TarError> {
        if extensions.sparse {
            return Err(TarError::Malformed("sparse entries are not supported"));
        }
        let path = extensions.path.unwrap_or_else(|| header.path());
        let kind = match header.0[156] {
            // Before POSIX, a directory was a file whose name ends with a slash.
            b'0' | 0 | b'7' if path.last() == Some(&b'/') => Kind::Directory,
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::SymbolicLink,
            b'5' => Kind::Directory,
            _ => Kind::Other,
        };
        let size = extensions.size.unwrap_or(size);
        // A hard link of pax may have content; those of all common writers have none.
        if size > 0 && matches!(kind, Kind::HardLink | Kind::SymbolicLink) {
            return Err(TarError::Malformed("a link has content"));
        }
        // Some writers give a directory a size, without content.
        self.content = if kind == Kind::Directory { 0 } else { size };
        self.padding = padding(self.content);
        let id = |value: u64| u32::try_from(value).unwrap_or(0);
        Ok(Entry {
            link: extensions
                .link
                .unwrap_or_else(|| until_nul(&header.0[157..257]).to_vec()),
            kind,
            mode: u32::try_from(header.number(100, 8)? & 0o7777).unwrap_or(0),
            uid: match extensions.uid {
                Some(uid) => uid,
                None => id(header.number(108, 8)?),
            },
            gid: match extensions.gid {
                Some(gid) => gid,
                None => id(header.number(116, 8)?),
            },
            size: self.content,
            modified: match extensions.modified {
                Some(modified) => modified,
                None => i64::try_from(header.number(136, 12)?).unwrap_or(0),
            },
            path,
        })
    }

    /// Reads over the rest of the present entry.
    fn skip(&mut self) -> Result<(), TarError> {
        let rest = std::mem::take(&mut self.content).saturating_add(self.padding);
        self.padding = 0;
        let skipped = io::copy(&mut (&mut self.source).take(rest), &mut io::sink())?;
        if skipped < rest {
            return Err(TarError::Malformed("the archive is truncated"));
        }
        Ok(())
    }

    /// The content of an extended header or of a long name.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION_BYTES {
            return Err(TarError::Malformed("an extended header is too large"));
        }
        (self.content, self.padding) = (size, padding(size));
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn name(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        Ok(until_nul(&self.extension(size)?).to_vec())
    }
}

/// The content of the present entry.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.content).unwrap_or(usize::MAX);
        let wanted = wanted.min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.source.read(&mut buffer[..wanted])?;
        if count == 0 {
            let error = io::Error::other("the archive is truncated");
            return Err(error);
        }
        self.content -= count as u64;
        Ok(count)
    }
}

/// The header of an entry. The offsets of its fields are those of POSIX.1-2001, ustar interchange format:
/// name 0, mode 100, uid 108, gid 116, size 124, mtime 136, chksum 148, typeflag 156, linkname 157,
/// magic 257, prefix 345.
struct Header<'block>(&'block [u8; BLOCK_BYTES]);

impl Header<'_> {
    /// Checks the sum of all bytes, in which the sum itself counts as spaces.
    fn verify(&self) -> Result<(), TarError> {
        let expected = self.number(148, 8)?;
        let sum: u64 = self
            .0
            .iter()
            .enumerate()
            .map(|(index, byte)| match index {
                148..156 => u64::from(b' '),
                _ => u64::from(*byte),
            })
            .sum();
        if sum != expected {
            return Err(TarError::Malformed("a header has a wrong checksum"));
        }
        Ok(())
    }

    /// An octal number, or of GNU tar a binary one. A negative one, as a time before 1970, is 0.
    fn number(&self, start: usize, length: usize) -> Result<u64, TarError> {
        let field = &self.0[start..start + length];
        match field[0] {
            0x80 => {
                let large = field[1..].iter().try_fold(0u64, |number, byte| {
                    number.checked_mul(256)?.checked_add(u64::from(*byte))
                });
                large.ok_or(TarError::Malformed("a number is too large"))
            }
            0xff => Ok(0),
            _ => octal(field),
        }
    }

    fn path(&self) -> Vec<u8> {
        let name = until_nul(&self.0[..100]);
        let prefix = until_nul(&self.0[345..500]);
        // GNU tar has other fields in place of the prefix.
        if self.0[257..263] == *b"ustar\0" && !prefix.is_empty() {
            return [prefix, b"/", name].concat();
        }
        name.to_vec()
    }
}

fn octal(field: &[u8]) -> Result<u64, TarError> {
    let malformed = || TarError::Malformed("a number of a header is malformed");
    let digits = until_nul(field);
    let text = std::str::from_utf8(digits).map_err(|_| malformed())?;
    let text = text.trim_matches(' ');
    if text.is_empty() {
        return Ok(0);
    }
    if text.starts_with('+') {
        return Err(malformed());
    }
    u64::from_str_radix(text, 8).map_err(|_| malformed())
}

/// Applies the records of a pax header: `length key=value\n`, the length being that of the record.
fn apply_records(mut records: &[u8], extensions: &mut Extensions) -> Result<(), TarError> {
    let malformed = || TarError::Malformed("an extended header is malformed");
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ');
        let space = space.ok_or_else(malformed)?;
        let length: usize = text_number(&records[..space]).ok_or_else(malformed)?;
        if length <= space + 1 || length > records.len() {
            return Err(malformed());
        }
        let (record, rest) = records.split_at(length);
        records = rest;
        let record = record[space + 1..]
            .strip_suffix(b"\n")
            .ok_or_else(malformed)?;
        let equals = record.iter().position(|byte| *byte == b'=');
        let (key, value) = record.split_at(equals.ok_or_else(malformed)?);
        let value = &value[1..];
        match key {
            b"path" => extensions.path = Some(value.to_vec()),
            b"linkpath" => extensions.link = Some(value.to_vec()),
            b"size" => extensions.size = Some(text_number(value).ok_or_else(malformed)?),
            b"uid" => extensions.uid = Some(text_number(value).unwrap_or(0)),
            b"gid" => extensions.gid = Some(text_number(value).unwrap_or(0)),
            b"mtime" => {
                let seconds = value.split(|byte| *byte == b'.').next();
                extensions.modified = seconds.and_then(text_number);
            }
            _ => extensions.sparse |= key.starts_with(b"GNU.sparse."),
        }
    }
    Ok(())
}

fn text_number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK_BYTES as u64
}

#[cfg(test)]
mod tests;
