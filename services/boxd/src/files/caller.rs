//! The file process's end of its connection to boxd: one frame is a length of four bytes, big-endian,
//! and a protobuf message.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd};

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::exec::MAX_CHUNK;
use agentbox_contracts::files::file_input::Input;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::{FileInput, FileOutput};
use bytes::{Buf as _, Bytes};
use prost::Message as _;

use super::failure::{Failure, Result};
use super::stop;

/// The largest message of a frame: a chunk of content or a page's part, and what describes it.
pub const MAX_FRAME_BYTES: usize = 2 * MAX_CHUNK;

pub struct Caller {
    input: File,
    output: File,
    frame: Vec<u8>,
    /// The caller ended before its content was complete.
    aborted: bool,
}

impl Caller {
    /// The caller at this process's stdin and stdout.
    ///
    /// # Errors
    /// As `dup(2)`.
    pub fn at_standard_streams() -> io::Result<Self> {
        Ok(Self {
            input: io::stdin().as_fd().try_clone_to_owned()?.into(),
            output: io::stdout().as_fd().try_clone_to_owned()?.into(),
            frame: Vec::new(),
            aborted: false,
        })
    }

    /// The descriptor that becomes readable with the next input, and when the caller is gone.
    #[must_use]
    pub fn readable(&self) -> BorrowedFd<'_> {
        self.input.as_fd()
    }

    /// Waits for the next input. `None`: the caller is gone.
    ///
    /// # Errors
    /// `BadRequest` for a frame that is no input.
    pub fn receive(&mut self) -> Result<Option<Input>> {
        let mut length = [0; 4];
        if self.input.read_exact(&mut length).is_err() {
            return Ok(None);
        }
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        let malformed = || Failure::new(ErrorCode::BadRequest, "an input cannot be read");
        if length > MAX_FRAME_BYTES {
            return Err(malformed());
        }
        self.frame.resize(length, 0);
        if self.input.read_exact(&mut self.frame).is_err() {
            return Ok(None);
        }
        let message = FileInput::decode(self.frame.as_slice()).map_err(|_| malformed())?;
        message.input.map(Some).ok_or_else(malformed)
    }

    /// Sends an output; waits while the caller does not read.
    ///
    /// # Errors
    /// When the caller is gone, or this process was asked to stop.
    pub fn send(&mut self, output: Output) -> Result<()> {
        stop::check()?;
        let message = FileOutput {
            output: Some(output),
        };
        let mut frame = Vec::with_capacity(4 + message.encoded_len());
        let length = u32::try_from(message.encoded_len()).unwrap_or(u32::MAX);
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&message.encode_to_vec());
        self.output.write_all(&frame).map_err(|_| aborted())
    }

    /// The content that the caller sends.
    pub fn content(&mut self) -> Content<'_> {
        Content {
            caller: self,
            chunk: Bytes::new(),
            is_complete: false,
        }
    }

    /// Whether the content ended before it was complete, so that it says nothing about the content
    /// if it cannot be read.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.aborted
    }
}

/// The failure of an operation whose caller is gone or sent only a part of the content.
#[must_use]
pub fn aborted() -> Failure {
    Failure::new(
        ErrorCode::BadRequest,
        "the transfer ended before it was complete",
    )
}

/// The content of an upload, until its end.
pub struct Content<'caller> {
    caller: &'caller mut Caller,
    /// The rest of the last chunk, for [`Read`].
    chunk: Bytes,
    is_complete: bool,
}

impl Content<'_> {
    /// The next chunk; `None` at the end.
    ///
    /// # Errors
    /// [`aborted`].
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        if self.is_complete {
            return Ok(None);
        }
        if !self.caller.aborted && stop::check().is_ok() {
            match self.caller.receive() {
                Ok(Some(Input::Data(data))) => return Ok(Some(data)),
                Ok(Some(Input::End(()))) => {
                    self.is_complete = true;
                    return Ok(None);
                }
                Ok(Some(Input::Request(_)) | None) | Err(_) => {}
            }
        }
        self.caller.aborted = true;
        Err(aborted())
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.next_chunk() {
                Ok(Some(chunk)) => self.chunk = chunk,
                Ok(None) => return Ok(0),
                Err(failure) => return Err(io::Error::other(failure.message)),
            }
        }
        let count = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
