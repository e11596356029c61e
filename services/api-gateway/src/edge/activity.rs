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
    requests: watch::Sender<Requests>,
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

/// The numbers of a connection's requests.
#[derive(Clone, Copy, Default)]
struct Requests {
    open: usize,
    /// Those of them, over HTTP/2, whose answer waits until the client allows more of it (RFC 9113,
    /// section 5.2). Over HTTP/1 such an answer is a write that waits.
    unread: usize,
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            requests: watch::Sender::new(Requests::default()),
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
        self.requests.send_modify(|requests| requests.open += 1);
        OpenRequest {
            activity: Arc::clone(self),
            is_unread: false,
        }
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

    /// Resolves when no request was open for `deadline`, and nothing was written in it. Requests
    /// whose clients take nothing of their answers do not keep the connection open for longer than
    /// `read_deadline`.
    pub(super) async fn idle_for(&self, deadline: Duration, read_deadline: Duration) {
        let mut requests = self.requests.subscribe();
        loop {
            let idle = requests.wait_for(|requests| requests.open == requests.unread);
            // Fails only without a sender, which is a field of `self`.
            let is_unread = idle.await.is_ok_and(|requests| requests.unread > 0);
            let deadline = if is_unread { read_deadline } else { deadline };
            let begun = Instant::now();
            tokio::select! {
                _ = requests.changed() => {}
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
pub(super) struct OpenRequest {
    activity: Arc<Activity>,
    /// Counted in [`Requests::unread`].
    is_unread: bool,
}

impl OpenRequest {
    /// Records whether a part of the answer waits for the client.
    fn set_unread(&mut self, is_unread: bool) {
        if !self.activity.is_http2() || self.is_unread == is_unread {
            return;
        }
        self.is_unread = is_unread;
        self.activity.requests.send_modify(|requests| {
            if is_unread {
                requests.unread += 1;
            } else {
                requests.unread -= 1;
            }
        });
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.set_unread(false);
        let requests = &self.activity.requests;
        requests.send_modify(|requests| requests.open -= 1);
    }
}

/// The body of an answer, which keeps its request open.
pub(super) struct AnswerBody {
    body: AxumBody,
    request: OpenRequest,
}

impl AnswerBody {
    pub(super) const fn new(body: AxumBody, request: OpenRequest) -> Self {
        Self { body, request }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        // hyper asks for a part of the answer when the client has taken the last one.
        this.request.set_unread(false);
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(Some(Ok(_)))) {
            this.request.set_unread(true);
        }
        frame
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
    use futures::FutureExt as _;
    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test]
    async fn connection_is_idle_only_without_requests_and_writes() {
        const DEADLINE: Duration = Duration::from_millis(200);
        let activity = Activity::new();
        let begun = Instant::now();
        activity.idle_for(DEADLINE, DEADLINE).await;
        assert!(begun.elapsed() >= DEADLINE);

        let request = activity.begin_request();
        let idle = activity.idle_for(DEADLINE, DEADLINE);
        assert!(timeout(DEADLINE * 3, idle).await.is_err());
        drop(request);
        let begun = Instant::now();
        let mut idle = std::pin::pin!(activity.idle_for(DEADLINE, DEADLINE));
        assert!(idle.as_mut().now_or_never().is_none());
        sleep(DEADLINE / 2).await;
        activity.record_write();
        idle.await;
        assert!(begun.elapsed() >= DEADLINE + DEADLINE / 2);
    }

    #[tokio::test]
    async fn answer_over_http2_that_is_not_read_does_not_keep_the_connection_open() {
        const DEADLINE: Duration = Duration::from_millis(200);
        let activity = Activity::new();
        activity.set_http2();
        let mut answer = AnswerBody::new(AxumBody::from("text"), activity.begin_request());
        let idle = || timeout(DEADLINE * 3, activity.idle_for(Duration::ZERO, DEADLINE));
        assert!(idle().await.is_err());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let part = Pin::new(&mut answer).poll_frame(&mut cx);
        assert!(matches!(part, Poll::Ready(Some(Ok(_)))));
        let begun = Instant::now();
        idle().await.unwrap();
        assert!(begun.elapsed() >= DEADLINE);
        // Another request keeps it open.
        let other = activity.begin_request();
        assert!(idle().await.is_err());
        drop((answer, other));
        let requests = *activity.requests.borrow();
        assert_eq!((requests.open, requests.unread), (0, 0));
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
