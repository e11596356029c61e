//! The newest output of executions: a file that boxd writes when its box ends, and that outlives it.
//!
//! Format: [`MAGIC`], then [`ExecutionOutput`] messages as protobuf, each after its length. For each
//! execution its `execution`, with the id and the numbers of bytes alone, then its `output`.
//!
//! * I1. The file has at most [`MAX_BYTES`], and no more than the directory has room for: its last
//!   message may be incomplete.
//! * I2. The reader does not trust the file: see [`super`]. It decodes one message at a time, of at most
//!   [`MAX_MESSAGE_BYTES`]: a decoded message may take a hundred times its encoded size.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use agentbox_contracts::exec::MAX_CHUNK;
use agentbox_contracts::executions::ExecutionOutput;
use bytes::Bytes;
use prost::Message as _;

use super::journal::new_file;
use super::open;

/// The first bytes of the file; the digit is the format version.
const MAGIC: &[u8; 8] = b"abxexo1\n";
/// The size limit of the file, in bytes.
const MAX_BYTES: u64 = 8 * 1024 * 1024;
/// The size limit of one message, in bytes: the longest piece of output, and what describes it.
const MAX_MESSAGE_BYTES: usize = MAX_CHUNK + 1024;
const FILE_NAME: &str = "execution-output";

/// Writes the file.
pub struct OutputWriter {
    file: File,
    length: u64,
}

impl OutputWriter {
    /// Starts with a new file in `directory`; removes an existing one.
    ///
    /// # Errors
    /// As `open(2)` and `write(2)`.
    pub fn create(directory: &Path) -> io::Result<Self> {
        let mut file = new_file(&directory.join(FILE_NAME))?;
        file.write_all(MAGIC)?;
        let length = MAGIC.len() as u64;
        Ok(Self { file, length })
    }

    /// Appends a message.
    ///
    /// # Errors
    /// As `write(2)`; `StorageFull` when there is no room for it.
    pub fn write(&mut self, message: &ExecutionOutput) -> io::Result<()> {
        let bytes = message.encode_length_delimited_to_vec();
        let length = self.length + bytes.len() as u64;
        if length > MAX_BYTES {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_all(&bytes)?;
        self.length = length;
        Ok(())
    }
}

/// The messages of a file's content, up to the first that boxd has not written.
pub struct OutputReader {
    rest: Bytes,
}

impl OutputReader {
    /// `content` is that of [`read_output`].
    #[must_use]
    pub fn new(content: Vec<u8>) -> Self {
        let rest = Bytes::from(content);
        Self { rest }
    }
}

impl Iterator for OutputReader {
    type Item = ExecutionOutput;

    fn next(&mut self) -> Option<ExecutionOutput> {
        let length = prost::decode_length_delimiter(&mut self.rest).ok()?;
        if length > self.rest.len().min(MAX_MESSAGE_BYTES) {
            self.rest.clear();
            return None;
        }
        ExecutionOutput::decode(self.rest.split_to(length)).ok()
    }
}

/// Reads the messages of the file in `directory`; empty when there is none, or none of boxd's.
/// Blocks: reads up to 8 MiB.
#[must_use]
pub fn read_output(directory: &Path) -> Vec<u8> {
    let Some(mut file) = open(directory, FILE_NAME) else {
        return Vec::new();
    };
    let mut magic = [0; MAGIC.len()];
    if file.read_exact(&mut magic).is_err() || &magic != MAGIC {
        return Vec::new();
    }
    let mut content = Vec::new();
    // What was read before an error counts.
    let _ = file.take(MAX_BYTES).read_to_end(&mut content);
    content
}

#[cfg(test)]
mod tests {
    use std::fs;

    use agentbox_contracts::executions::{Execution, ExecutionList, OutputPiece, execution_output};

    use super::*;

    fn message(offset: u64, length: usize) -> ExecutionOutput {
        let piece = OutputPiece {
            stderr: false,
            offset,
            data: vec![b'x'; length].into(),
        };
        ExecutionOutput {
            output: Some(execution_output::Output::Output(piece)),
        }
    }

    fn read(directory: &Path) -> Vec<ExecutionOutput> {
        OutputReader::new(read_output(directory)).collect()
    }

    #[test]
    fn messages_are_read_back_up_to_one_that_is_incomplete() {
        let directory = tempfile::tempdir().unwrap();
        assert!(read(directory.path()).is_empty());
        let messages = [message(0, 0), message(7, 200), message(9, 32 * 1024)];
        let mut writer = OutputWriter::create(directory.path()).unwrap();
        for message in &messages {
            writer.write(message).unwrap();
        }
        assert_eq!(read(directory.path()), messages);
        let path = directory.path().join(FILE_NAME);
        let length = fs::metadata(&path).unwrap().len();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(length - 1).unwrap();
        assert_eq!(read(directory.path()), messages[..2]);
        drop(OutputWriter::create(directory.path()).unwrap());
        assert!(read(directory.path()).is_empty());
    }

    #[test]
    fn file_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = OutputWriter::create(directory.path()).unwrap();
        let full = (0..1000).find_map(|_| writer.write(&message(0, 32 * 1024)).err());
        assert_eq!(full.unwrap().kind(), io::ErrorKind::StorageFull);
        let size = fs::metadata(directory.path().join(FILE_NAME))
            .unwrap()
            .len();
        assert!(size <= MAX_BYTES && size > MAX_BYTES - 40_000, "{size}");
    }

    #[test]
    fn message_that_is_longer_than_boxds_is_not_decoded() {
        let read = |message: ExecutionOutput| {
            let content = message.encode_length_delimited_to_vec();
            OutputReader::new(content).count()
        };
        assert_eq!(read(message(u64::MAX, MAX_CHUNK)), 1);
        let list = execution_output::Output::Executions(ExecutionList {
            executions: vec![Execution::default(); MAX_CHUNK],
            is_last: false,
        });
        assert_eq!(read(ExecutionOutput { output: Some(list) }), 0);
    }

    #[test]
    fn file_that_boxd_has_not_written_has_no_messages() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        for content in [
            &b""[..],
            b"abxexo",
            b"garbage",
            b"abxexo1\n\xff\xff\xff\xff\xff",
        ] {
            fs::write(&path, content).unwrap();
            assert!(read(directory.path()).is_empty(), "{content:?}");
        }
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(read(directory.path()).is_empty());
    }
}
