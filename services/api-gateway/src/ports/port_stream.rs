//! The bytes of a connection to a port, as a stream for an HTTP client.
//!
//! * I1. The end of the stream is the end that the box reported; a connection that was lost is an error.
//! * I2. Each direction ends by itself. A port that takes no more does not keep its answer from being
//!   read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use agentbox_contracts::exec::MAX_CHUNK;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, PollSender};

/// What ends a connection besides its two sides.
#[derive(Clone, Default)]
pub(super) struct Ending {
    /// Cancelled when the connection ends because its credential, its caller's right, its environment
    /// or the gateway has ended, or because it was half-closed and idle.
    pub refused: CancellationToken,
    /// Cancelled when no more bytes are carried. Those that were received can still be read.
    pub finished: CancellationToken,
}

/// The bytes of a connection.
pub(super) struct PortStream {
    to_box: PollSender<Bytes>,
    is_shut_down: bool,
    from_box: mpsc::Receiver<io::Result<Bytes>>,
    unread: Bytes,
    has_ended: bool,
    ending: Ending,
}

impl PortStream {
    pub(super) fn new(
        to_box: mpsc::Sender<Bytes>,
        from_box: mpsc::Receiver<io::Result<Bytes>>,
        ending: Ending,
    ) -> Self {
        Self {
            to_box: PollSender::new(to_box),
            is_shut_down: false,
            from_box,
            unread: Bytes::new(),
            has_ended: false,
            ending,
        }
    }

    pub(super) fn ending(&self) -> Ending {
        self.ending.clone()
    }
}

impl AsyncRead for PortStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.unread.is_empty() && !this.has_ended {
            match ready!(this.from_box.poll_recv(cx)) {
                Some(part) => this.unread = part?,
                None => return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            }
            this.has_ended = this.unread.is_empty();
        }
        let length = this.unread.len().min(buffer.remaining());
        buffer.put_slice(&this.unread.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_shut_down || this.ending.refused.is_cancelled() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let part = bytes.get(..MAX_CHUNK).unwrap_or(bytes);
        let reserved = ready!(this.to_box.poll_reserve(cx));
        let sent = reserved.and_then(|()| this.to_box.send_item(Bytes::copy_from_slice(part)));
        // A port that takes no more may have answered, and an HTTP client that gets an error here reads
        // no answer. So the bytes are dropped; a lost connection is an error of the other direction.
        let _ = sent;
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.is_shut_down = true;
        this.to_box.close();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn stream() -> (
        PortStream,
        mpsc::Receiver<Bytes>,
        mpsc::Sender<io::Result<Bytes>>,
    ) {
        let (to_box, to_carry) = mpsc::channel(1);
        let (carried, from_box) = mpsc::channel(1);
        let stream = PortStream::new(to_box, from_box, Ending::default());
        (stream, to_carry, carried)
    }

    #[tokio::test]
    async fn lost_connection_is_an_error_and_an_end_is_none() {
        let (mut stream, _to_carry, carried) = stream();
        carried.send(Ok(Bytes::from_static(b"abc"))).await.unwrap();
        let mut two = [0; 2];
        stream.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"ab");
        let lost = tokio::spawn(async move {
            carried.send(Ok(Bytes::from_static(b"d"))).await.unwrap();
        });
        let mut rest = Vec::new();
        let error = stream.read_to_end(&mut rest).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(rest, b"cd");
        lost.await.unwrap();

        let (mut stream, _to_carry, carried) = self::stream();
        carried.send(Ok(Bytes::new())).await.unwrap();
        assert_eq!(stream.read_to_end(&mut rest).await.unwrap(), 0);
        assert_eq!(stream.read_to_end(&mut rest).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn long_write_is_split_and_a_shutdown_ends_the_bytes() {
        let (mut stream, mut to_carry, _carried) = stream();
        let written = tokio::spawn(async move {
            stream.write_all(&[7; MAX_CHUNK + 1]).await.unwrap();
            stream.shutdown().await.unwrap();
            stream
        });
        assert_eq!(to_carry.recv().await.unwrap().len(), MAX_CHUNK);
        assert_eq!(to_carry.recv().await.unwrap().len(), 1);
        assert_eq!(to_carry.recv().await, None);
        let mut stream = written.await.unwrap();
        let refused = stream.write_all(b"late").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn answer_of_a_port_that_takes_no_more_is_read_to_its_end() {
        let (mut stream, to_carry, carried) = stream();
        drop(to_carry);
        stream.write_all(&[7; MAX_CHUNK + 1]).await.unwrap();
        carried.send(Ok(Bytes::from_static(b"abc"))).await.unwrap();
        let answered = tokio::spawn(async move { carried.send(Ok(Bytes::new())).await.unwrap() });
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"abc");
        answered.await.unwrap();
    }
}
