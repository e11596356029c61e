//! Compression of tar streams: gzip and zstd, in Rust alone.
//!
//! * I1. Decompression takes a fixed amount of memory: a zstd frame whose window is larger than
//!   [`MAX_WINDOW_BYTES`] is refused.

use std::io::{self, BufRead as _, BufReader, Read, Write};

use agentbox_contracts::files::Archive;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

/// The largest window of a zstd frame; `zstd` needs a larger one only with `--long` and `--ultra`.
const MAX_WINDOW_BYTES: u64 = 8 * 1024 * 1024;
/// The content of one zstd frame: a stream is a sequence of frames.
const FRAME_BYTES: usize = 1024 * 1024;

/// The decompressed stream.
pub fn decoder<'source>(archive: Archive, source: impl Read + 'source) -> Box<dyn Read + 'source> {
    match archive {
        Archive::TarGzip => Box::new(MultiGzDecoder::new(source)),
        Archive::TarZstd => Box::new(ZstdDecoder::new(source)),
        Archive::Tar | Archive::None => Box::new(source),
    }
}

/// Decompresses a sequence of zstd frames.
struct ZstdDecoder<R> {
    source: BufReader<R>,
    frame: FrameDecoder,
    is_in_frame: bool,
}

impl<R: Read> ZstdDecoder<R> {
    fn new(source: R) -> Self {
        let mut frame = FrameDecoder::new();
        frame.set_max_window_size(MAX_WINDOW_BYTES);
        Self {
            source: BufReader::new(source),
            frame,
            is_in_frame: false,
        }
    }

    /// Begins the next frame; `false` at the end of the stream.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.frame.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    io::copy(&mut (&mut self.source).take(length), &mut io::sink())?;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(false)
    }

    fn verify(&self) -> io::Result<()> {
        match self.frame.get_checksum_from_data() {
            Some(expected) if self.frame.get_calculated_checksum() != Some(expected) => {
                Err(io::Error::other("a zstd frame has a wrong checksum"))
            }
            _ => Ok(()),
        }
    }
}

impl<R: Read> Read for ZstdDecoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.is_in_frame {
                if !self.begin()? {
                    return Ok(0);
                }
                self.is_in_frame = true;
            }
            while self.frame.can_collect() == 0 && !self.frame.is_finished() {
                self.frame
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(io::Error::other)?;
            }
            let count = self.frame.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            self.verify()?;
            self.is_in_frame = false;
        }
    }
}

/// Compresses what is written to it.
pub enum Encoder<W: Write> {
    Plain(W),
    Gzip(Box<GzEncoder<W>>),
    Zstd { writer: W, frame: Vec<u8> },
}

impl<W: Write> Encoder<W> {
    pub fn new(archive: Archive, writer: W) -> Self {
        match archive {
            Archive::TarGzip => Self::Gzip(Box::new(GzEncoder::new(writer, Compression::fast()))),
            Archive::TarZstd => Self::Zstd {
                writer,
                frame: Vec::with_capacity(FRAME_BYTES),
            },
            Archive::Tar | Archive::None => Self::Plain(writer),
        }
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// As the writer.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(writer) => Ok(writer),
            Self::Gzip(encoder) => (*encoder).finish(),
            Self::Zstd { mut writer, frame } => {
                if !frame.is_empty() {
                    writer.write_all(&compressed(&frame))?;
                }
                Ok(writer)
            }
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(writer) => writer.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd { writer, frame } => {
                let count = bytes.len().min(FRAME_BYTES - frame.len());
                frame.extend_from_slice(&bytes[..count]);
                if frame.len() == FRAME_BYTES {
                    writer.write_all(&compressed(frame))?;
                    frame.clear();
                }
                Ok(count)
            }
        }
    }

    /// Sends nothing early: the stream has no reader who waits for a part of it.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn compressed(content: &[u8]) -> Vec<u8> {
    compress_to_vec(content, CompressionLevel::Fastest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(archive: Archive, content: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(archive, Vec::new());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn decoded(archive: Archive, stream: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        decoder(archive, stream).read_to_end(&mut content)?;
        Ok(content)
    }

    fn sample() -> Vec<u8> {
        let noise = (0..FRAME_BYTES as u64).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8);
        noise
            .chain(std::iter::repeat_n(b'a', 2 * FRAME_BYTES))
            .collect()
    }

    #[test]
    fn content_survives_each_compression() {
        for archive in [Archive::Tar, Archive::TarGzip, Archive::TarZstd] {
            for content in [sample(), b"x".to_vec(), Vec::new()] {
                let stream = encoded(archive, &content);
                assert!(decoded(archive, &stream).unwrap() == content, "{archive:?}");
            }
        }
    }

    #[test]
    fn truncated_or_changed_stream_is_an_error() {
        for archive in [Archive::TarGzip, Archive::TarZstd] {
            let stream = encoded(archive, &sample());
            assert!(decoded(archive, &stream[..stream.len() - 2]).is_err());
            assert!(decoded(archive, b"neither gzip nor zstd").is_err());
            let mut changed = stream.clone();
            let end = changed.len() - 6;
            changed[end] ^= 0x55;
            assert!(decoded(archive, &changed).is_err(), "{archive:?}");
        }
    }

    #[test]
    fn zstd_frame_with_a_large_window_is_refused() {
        // Magic number, a descriptor without content size, and a window of 16 MiB.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 14 << 3];
        assert!(decoded(Archive::TarZstd, &frame).is_err());
    }

    #[test]
    fn skippable_frame_is_skipped() {
        let mut stream = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
        stream.extend(encoded(Archive::TarZstd, b"content"));
        assert_eq!(decoded(Archive::TarZstd, &stream).unwrap(), b"content");
    }
}
