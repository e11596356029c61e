//! The content of an object, read chunk by chunk.

use agentbox_bus::Bus;
use agentbox_contracts::subjects::{OUTPUT_BUCKET, OUTPUT_STREAM};
use async_nats::jetstream::object_store::ObjectInfo;
use async_nats::jetstream::stream::Stream;
use bytes::{Buf as _, Bytes, BytesMut};

use crate::archive::store::{ArchiveError, within_deadline};

/// More than any object can have, in bytes.
const MAX_OBJECT_BYTES: usize = 24 * 1024 * 1024;
/// More than any message of an object can have, in bytes.
const MAX_MESSAGE_BYTES: usize = 128 * 1024;
/// The most bytes of a length in front of a message.
const MAX_LENGTH_BYTES: usize = 10;

/// The unread chunks of one object.
pub struct Chunks {
    stream: Stream<()>,
    subject: String,
    /// The sequence of the stream from which the next chunk is searched.
    from: u64,
    unread: usize,
    expected_bytes: usize,
    read_bytes: usize,
}

impl Chunks {
    /// # Errors
    /// When the object is too large, or the object store fails or misses the deadline.
    pub async fn open(bus: &Bus, info: &ObjectInfo) -> Result<Self, ArchiveError> {
        if info.size > MAX_OBJECT_BYTES {
            return Err(ArchiveError::TooLarge {
                size: info.size,
                limit: MAX_OBJECT_BYTES,
            });
        }
        let stream = within_deadline(
            "open the bucket",
            bus.jetstream().get_stream_no_info(OUTPUT_STREAM),
        )
        .await?;
        Ok(Self {
            stream,
            subject: format!("$O.{OUTPUT_BUCKET}.C.{}", info.nuid),
            from: 1,
            unread: info.chunks,
            expected_bytes: info.size,
            read_bytes: 0,
        })
    }

    /// The next chunk; `None` after the last one.
    ///
    /// # Errors
    /// When the object store fails or misses the deadline, or the object has another size than its
    /// description.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ArchiveError> {
        if self.unread == 0 {
            return self.check(self.read_bytes == self.expected_bytes, None);
        }
        let chunk = within_deadline(
            "read an object",
            self.stream
                .get_first_raw_message_by_subject(&self.subject, self.from),
        )
        .await?;
        self.unread -= 1;
        self.from = chunk.sequence + 1;
        self.read_bytes += chunk.payload.len();
        self.check(self.read_bytes <= self.expected_bytes, Some(chunk.payload))
    }

    fn check(&self, is_valid: bool, chunk: Option<Bytes>) -> Result<Option<Bytes>, ArchiveError> {
        match is_valid {
            true => Ok(chunk),
            false => Err(ArchiveError::Incomplete {
                found: self.read_bytes,
                expected: self.expected_bytes,
            }),
        }
    }
}

/// The unread messages of one object: each is protobuf, after its length.
pub struct Messages {
    chunks: Chunks,
    buffer: BytesMut,
}

impl Messages {
    #[must_use]
    pub fn new(chunks: Chunks) -> Self {
        Self {
            chunks,
            buffer: BytesMut::new(),
        }
    }

    /// The next message; `None` after the last one.
    ///
    /// # Errors
    /// As [`Chunks::next`]; when the object is malformed.
    pub async fn next<M: prost::Message + Default>(&mut self) -> Result<Option<M>, ArchiveError> {
        loop {
            if let Some(message) = take_message(&mut self.buffer)? {
                return Ok(Some(M::decode(message)?));
            }
            match self.chunks.next().await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(ArchiveError::MalformedMessage),
            }
        }
    }
}

/// Takes the first message from `buffer`; `None` when a part of it is missing.
fn take_message(buffer: &mut BytesMut) -> Result<Option<Bytes>, ArchiveError> {
    let mut head = &buffer[..buffer.len().min(MAX_LENGTH_BYTES)];
    let head_bytes = head.len();
    let Ok(length) = prost::decode_length_delimiter(&mut head) else {
        return match head_bytes < MAX_LENGTH_BYTES {
            true => Ok(None),
            false => Err(ArchiveError::MalformedMessage),
        };
    };
    if length > MAX_MESSAGE_BYTES {
        return Err(ArchiveError::MalformedMessage);
    }
    let length_bytes = head_bytes - head.len();
    if buffer.len() < length_bytes + length {
        return Ok(None);
    }
    buffer.advance(length_bytes);
    Ok(Some(buffer.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::executions::OutputPiece;
    use prost::Message as _;

    use super::*;

    fn pieces() -> Vec<OutputPiece> {
        [0, 1, 200, 40_000]
            .into_iter()
            .map(|length| OutputPiece {
                stderr: false,
                offset: 7,
                data: vec![b'x'; length].into(),
            })
            .collect()
    }

    #[test]
    fn messages_are_read_back_from_chunks_of_any_size() {
        let bytes: Vec<u8> = pieces()
            .iter()
            .flat_map(OutputPiece::encode_length_delimited_to_vec)
            .collect();
        for chunk_bytes in [1, 2, 3, 1000, bytes.len()] {
            let mut buffer = BytesMut::new();
            let mut read = Vec::new();
            for chunk in bytes.chunks(chunk_bytes) {
                buffer.extend_from_slice(chunk);
                while let Some(message) = take_message(&mut buffer).unwrap() {
                    read.push(OutputPiece::decode(message).unwrap());
                }
            }
            assert_eq!(read, pieces(), "{chunk_bytes}");
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn length_that_is_too_long_is_an_error() {
        for bytes in [&[0xff_u8; 10][..], &[0xff, 0xff, 0xff, 0x7f]] {
            let mut buffer = BytesMut::from(bytes);
            assert!(take_message(&mut buffer).is_err(), "{bytes:?}");
        }
        let mut incomplete = BytesMut::from(&[0xff_u8, 0xff][..]);
        assert!(take_message(&mut incomplete).unwrap().is_none());
    }
}
