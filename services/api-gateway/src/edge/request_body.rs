//! The body of a request, and the part of it that its handler did not read.
//!
//! An HTTP/1 connection serves its next request only after the whole body of this one was read
//! (RFC 9112, section 9.3). hyper decides whether the connection can be kept after it has sent
//! the answer, so a client could send its next request on a connection that is about to close.
//!
//! * I1. Before an answer is sent, the rest of a small body is read and dropped.
//! * I2. If the rest is not read, the answer contains `Connection: close` (section 9.6).
//! * I3. The rest of a body that is being sent to a server in a box is that server's.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::{HeaderMap, header};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use parking_lot::Mutex;

/// The largest rest of a body that is read and dropped, in bytes.
const MAX_DISCARDED: usize = 64 * 1024;
/// How long the rest of a body may take to arrive.
const DISCARD_DEADLINE: Duration = Duration::from_secs(2);

type NextFrame<B> = Result<Frame<<B as Body>::Data>, <B as Body>::Error>;

struct Shared<B> {
    body: B,
    /// The last frame was read.
    is_complete: bool,
}

impl<B: Body + Unpin> Shared<B> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<NextFrame<B>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.is_complete |= frame.is_none();
        Poll::Ready(frame)
    }

    fn is_complete(&self) -> bool {
        self.is_complete || self.body.is_end_stream()
    }
}

/// The body that a handler reads. The connection keeps it after the handler has dropped it.
pub(super) struct RequestBody<B = Incoming>(Arc<Mutex<Shared<B>>>);

impl<B: Body + Unpin> Body for RequestBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.0.lock().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().is_complete()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().body.size_hint()
    }
}

/// What a handler leaves of a body.
pub(super) struct Rest<B = Incoming> {
    shared: Arc<Mutex<Shared<B>>>,
    /// The client sends the body only after the server has asked for it (`Expect`), so a body
    /// that the handler did not read may never arrive.
    is_on_request: bool,
}

/// Splits a body into the part for the handler and the rest.
pub(super) fn split<B>(headers: &HeaderMap, body: B) -> (RequestBody<B>, Rest<B>) {
    let shared = Arc::new(Mutex::new(Shared {
        body,
        is_complete: false,
    }));
    let rest = Rest {
        shared: Arc::clone(&shared),
        is_on_request: headers.contains_key(header::EXPECT),
    };
    (RequestBody(shared), rest)
}

impl<B: Body<Data = Bytes> + Unpin> Rest<B> {
    /// Whether the whole body was read.
    pub(super) fn is_complete(&self) -> bool {
        self.shared.lock().is_complete()
    }

    /// Reads and drops the rest. Returns whether the whole body was read.
    pub(super) async fn discard(self) -> bool {
        let (is_complete, length) = {
            let shared = self.shared.lock();
            (shared.is_complete(), shared.body.size_hint().lower())
        };
        if is_complete {
            return true;
        }
        if self.is_on_request || length > MAX_DISCARDED as u64 {
            return false;
        }
        tokio::time::timeout(DISCARD_DEADLINE, self.read())
            .await
            .unwrap_or(false)
    }

    async fn read(&self) -> bool {
        let mut left = MAX_DISCARDED;
        loop {
            match poll_fn(|cx| self.shared.lock().poll_frame(cx)).await {
                None => return true,
                Some(Err(_)) => return false,
                Some(Ok(frame)) => {
                    let length = frame.data_ref().map_or(0, Bytes::len);
                    match left.checked_sub(length) {
                        Some(rest) => left = rest,
                        None => return false,
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    fn bytes(length: usize) -> Full<Bytes> {
        Full::new(Bytes::from(vec![b' '; length]))
    }

    #[tokio::test]
    async fn small_rest_of_a_body_is_discarded() {
        let headers = HeaderMap::new();
        for length in [0, 1, MAX_DISCARDED] {
            let (body, rest) = split(&headers, bytes(length));
            drop(body);
            assert!(rest.discard().await, "{length}");
        }
        let (body, rest) = split(&headers, bytes(MAX_DISCARDED + 1));
        drop(body);
        assert!(!rest.discard().await);
    }

    #[tokio::test]
    async fn body_that_was_read_leaves_no_rest() {
        let mut headers = HeaderMap::new();
        headers.insert(header::EXPECT, "100-continue".parse().unwrap());
        let (body, rest) = split(&headers, bytes(MAX_DISCARDED + 1));
        assert!(body.collect().await.is_ok());
        assert!(rest.discard().await);
        let (body, rest) = split(&headers, bytes(1));
        drop(body);
        assert!(!rest.discard().await);
    }
}
