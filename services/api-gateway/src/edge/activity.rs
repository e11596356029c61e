//! What the parts of one connection know of each other: its open requests, its last write, its
//! protocol, and whether it is about to end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body as AxumBody;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

pub(super) struct Activity {
    open_requests: watch::Sender<usize>,
    /// Over HTTP/1, where the last bytes of an answer are written after its request is closed.
    last_write: Mutex<Instant>,
    /// The connection is no longer HTTP: its bytes are passed on unchanged.
    is_upgraded: AtomicBool,
    is_http2: AtomicBool,
    /// The connection's time is over. A request that arrives nevertheless is the last one.
    is_expired: AtomicBool,
    /// No request has arrived since the connection expired.
    is_input_over: AtomicBool,
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            open_requests: watch::Sender::new(0),
            last_write: Mutex::new(Instant::now()),
            is_upgraded: AtomicBool::new(false),
            is_http2: AtomicBool::new(false),
            is_expired: AtomicBool::new(false),
            is_input_over: AtomicBool::new(false),
        })
    }

    /// Counts a request as open until the guard is dropped.
    pub(super) fn begin_request(self: &Arc<Self>) -> OpenRequest {
        // The end of the input would end its answer too.
        self.is_input_over.store(false, Ordering::Relaxed);
        self.open_requests.send_modify(|open| *open += 1);
        OpenRequest(Arc::clone(self))
    }

    pub(super) fn record_write(&self) {
        // Over HTTP/2 the answer to a ping is a write too.
        if !self.is_http2() {
            *self.last_write.lock() = Instant::now();
        }
    }

    pub(super) fn set_upgraded(&self) {
        self.is_upgraded.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_upgraded(&self) -> bool {
        self.is_upgraded.load(Ordering::Relaxed)
    }

    pub(super) fn set_http2(&self) {
        self.is_http2.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_http2(&self) -> bool {
        self.is_http2.load(Ordering::Relaxed)
    }

    /// Ends the input of an HTTP/1 connection without an open request.
    pub(super) fn expire(&self) {
        self.is_expired.store(true, Ordering::Relaxed);
        self.is_input_over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_expired(&self) -> bool {
        self.is_expired.load(Ordering::Relaxed)
    }

    /// Whether the connection must read no further request.
    pub(super) fn is_input_over(&self) -> bool {
        self.is_input_over.load(Ordering::Relaxed)
    }

    /// Resolves when no request was open for `deadline`, and nothing was written in it.
    pub(super) async fn idle_for(&self, deadline: Duration) {
        let mut open = self.open_requests.subscribe();
        loop {
            // Fails only without a sender, which is a field of `self`.
            let _ = open.wait_for(|open| *open == 0).await;
            let begun = Instant::now();
            tokio::select! {
                _ = open.changed() => {}
                () = self.no_write_for(deadline, begun) => return,
            }
        }
    }

    async fn no_write_for(&self, deadline: Duration, begun: Instant) {
        loop {
            let last = *self.last_write.lock();
            let end = last.max(begun) + deadline;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// A request whose answer has not been sent completely.
pub(super) struct OpenRequest(Arc<Activity>);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.open_requests.send_modify(|open| *open -= 1);
    }
}

/// The body of an answer, which keeps its request open.
pub(super) struct AnswerBody {
    body: AxumBody,
    _request: OpenRequest,
}

impl AnswerBody {
    pub(super) const fn new(body: AxumBody, request: OpenRequest) -> Self {
        Self {
            body,
            _request: request,
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn connection_is_idle_only_without_requests_and_writes() {
        const DEADLINE: Duration = Duration::from_millis(200);
        let activity = Activity::new();
        let begun = Instant::now();
        activity.idle_for(DEADLINE).await;
        assert!(begun.elapsed() >= DEADLINE);

        let request = activity.begin_request();
        let idle = activity.idle_for(DEADLINE);
        assert!(timeout(DEADLINE * 3, idle).await.is_err());
        drop(request);
        let begun = Instant::now();
        let mut idle = std::pin::pin!(activity.idle_for(DEADLINE));
        assert!(timeout(DEADLINE / 2, idle.as_mut()).await.is_err());
        activity.record_write();
        idle.await;
        assert!(begun.elapsed() >= DEADLINE + DEADLINE / 2);
    }

    #[test]
    fn request_after_the_deadline_is_the_last_one() {
        let activity = Activity::new();
        assert!(!activity.is_input_over());
        activity.expire();
        assert!(activity.is_input_over());
        drop(activity.begin_request());
        assert!(!activity.is_input_over() && activity.is_expired());
    }
}
