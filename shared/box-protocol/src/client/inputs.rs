//! The inputs of a call, which can be cancelled although boxd does not read them.
//!
//! hyper sends a request's body in a task of its own. When boxd does not read, that task waits for room
//! in the window of the stream, and dropping the call does not end it: boxd would serve a caller that is
//! gone. So [`CallExecutor`] runs hyper's tasks and ends the one that has polled cancelled [`Inputs`]. Then
//! nothing holds the stream, and HTTP/2 resets it.
//!
//! * I1. The task of the connection is never ended by a call, although it polls each body first, once or
//!   several times: it would end all calls of the connection.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

thread_local! {
    /// The number of the task that runs now; 0: none of a [`CallExecutor`].
    static RUNNING: Cell<u64> = const { Cell::new(0) };
    /// The token of the inputs that the task which runs now has polled.
    static POLLED: RefCell<Option<CancellationToken>> = const { RefCell::new(None) };
}

/// The inputs of one call, for the body of its request.
pub struct Inputs<T> {
    receiver: mpsc::Receiver<T>,
    cancelled: CancellationToken,
    /// The task of the connection: it polls a body until that has to wait. Then the body's own task does.
    first_task: Option<u64>,
}

impl<T> Inputs<T> {
    /// A channel for at most `capacity` inputs. Dropping the guard cancels the call's inputs.
    #[must_use]
    pub fn channel(capacity: usize) -> (mpsc::Sender<T>, Self, DropGuard) {
        let (sender, receiver) = mpsc::channel(capacity);
        let cancelled = CancellationToken::new();
        let guard = cancelled.clone().drop_guard();
        let inputs = Self {
            receiver,
            cancelled,
            first_task: None,
        };
        (sender, inputs, guard)
    }
}

impl<T> Stream for Inputs<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let running = RUNNING.get();
        if *self.first_task.get_or_insert(running) != running {
            POLLED.set(Some(self.cancelled.clone()));
        }
        self.receiver.poll_recv(context)
    }
}

/// Runs the tasks of a connection. They end with the connection.
pub(super) struct CallExecutor;

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for CallExecutor {
    fn execute(&self, future: F) {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        tokio::spawn(Task {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            future: Box::pin(future),
            cancelled: None,
        });
    }
}

/// A task that ends when the inputs that it has polled are cancelled.
struct Task<F> {
    number: u64,
    future: Pin<Box<F>>,
    cancelled: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl<F: Future<Output = ()>> Future for Task<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if let Some(cancelled) = &mut this.cancelled
            && cancelled.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(());
        }
        POLLED.set(None);
        RUNNING.set(this.number);
        let ended = this.future.as_mut().poll(context);
        RUNNING.set(0);
        if let Some(token) = POLLED.take()
            && this.cancelled.is_none()
            && ended.is_pending()
        {
            let mut cancelled = Box::pin(token.cancelled_owned());
            // Registers this task to be woken.
            let is_cancelled = cancelled.as_mut().poll(context);
            this.cancelled = Some(cancelled);
            return is_cancelled;
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::time::Duration;

    use hyper::rt::Executor as _;
    use tokio::time::timeout;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(5);

    /// Polls a body once, as the task of the connection does.
    fn poll_once(inputs: &mut Inputs<u8>) {
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(inputs).poll_next(&mut context).is_pending());
    }

    /// Runs what hyper's body task does when the peer does not read: it polls the body, then waits
    /// for room forever. `alive` is dropped with it.
    fn run_stuck_body(mut inputs: Inputs<u8>, alive: Arc<()>) {
        poll_once(&mut inputs);
        let mut received = 0;
        CallExecutor.execute(poll_fn(move |context| {
            let _alive = &alive;
            while received < 2 {
                match Pin::new(&mut inputs).poll_next(context) {
                    Poll::Ready(Some(_)) => received += 1,
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Pending
        }));
    }

    async fn until_dropped(alive: &Arc<()>) {
        while Arc::strong_count(alive) > 1 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn stuck_body_ends_when_its_call_is_cancelled() {
        let (sender, inputs, guard) = Inputs::channel(4);
        let alive = Arc::new(());
        run_stuck_body(inputs, Arc::clone(&alive));
        for input in 0..4 {
            tokio::task::yield_now().await;
            sender.send(input).await.unwrap();
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(Arc::strong_count(&alive), 2, "it waits for room");
        drop(guard);
        timeout(DEADLINE, until_dropped(&alive)).await.unwrap();
    }

    #[tokio::test]
    async fn task_of_the_connection_outlives_a_call_whose_body_it_polls_twice() {
        let (sender, mut inputs, guard) = Inputs::channel(4);
        let alive = Arc::new(());
        let of_task = Arc::clone(&alive);
        let (polled, mut was_polled) = mpsc::channel(1);
        sender.send(0).await.unwrap();
        CallExecutor.execute(poll_fn(move |context| {
            let _alive = &of_task;
            for _ in 0..3 {
                let _ = Pin::new(&mut inputs).poll_next(context);
            }
            let _ = polled.try_send(());
            Poll::Pending
        }));
        was_polled.recv().await.unwrap();
        drop(guard);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(Arc::strong_count(&alive), 2, "it runs");
    }

    #[tokio::test]
    async fn inputs_end_with_their_sender_and_are_complete() {
        let (sender, mut inputs, _guard) = Inputs::channel(4);
        for input in [1, 2] {
            sender.send(input).await.unwrap();
        }
        drop(sender);
        let mut received = Vec::new();
        while let Some(input) = poll_fn(|context| Pin::new(&mut inputs).poll_next(context)).await {
            received.push(input);
        }
        assert_eq!(received, [1, 2]);
    }
}
