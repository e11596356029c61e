//! Reads of environments from the scheduler. Reads that wait at the same time share a request.
//!
//! * I1. A read is part of a request that is sent after the read has arrived, and nothing is remembered. So
//!   it sees every write that was answered before, on any replica.
//! * I2. A read that finds one of [`AT_ONCE`] places free is a request of its own, without a delay. The
//!   others wait for a place. The next request has all that wait when it is sent, at most [`MAX_READ`].
//! * I3. They wait for at most [`PATIENCE`]. So requests without an answer delay later ones by no more.
//! * I4. At most [`MAX_UNANSWERED`] reads have no answer yet; more are refused. Each is answered within
//!   [`SCHEDULER_DEADLINE`].
//! * I5. The request has no caller: who may see an environment is decided for each read afterwards.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentbox_bus::Bus;
use agentbox_contracts::environment::Environment;
use agentbox_contracts::environment::rpc::{Get, GetMany, GetManyRequest, GetRequest, MAX_READ};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::EnvironmentId;
use opentelemetry::trace::TraceContextExt;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::metrics;
use crate::state::SCHEDULER_DEADLINE;

/// Requests in flight for which the next one waits. With two, the scheduler has work while an answer is on
/// its way.
const AT_ONCE: usize = 2;
/// How long a request waits for a place: longer than the scheduler needs for an answer.
const PATIENCE: Duration = Duration::from_millis(10);
const MAX_UNANSWERED: usize = 10_000;

/// The answer to a read. Reads of one environment in the same request share the environment.
type Outcome = Result<Arc<Environment>, Error>;
/// The answers of one request. An environment that is missing does not exist.
type Outcomes = HashMap<EnvironmentId, Outcome>;

/// Answers requests. Tests have their own.
pub(crate) trait Scheduler: Send + Sync + 'static {
    /// Reads environments, for at most `deadline`. One that cannot be read does not fail the others.
    fn read(
        &self,
        ids: Vec<EnvironmentId>,
        deadline: Duration,
    ) -> impl Future<Output = Outcomes> + Send;
}

impl Scheduler for Bus {
    async fn read(&self, ids: Vec<EnvironmentId>, deadline: Duration) -> Outcomes {
        let mut outcomes = Outcomes::new();
        if let [id] = ids.as_slice() {
            let request = GetRequest { id: id.clone() };
            let outcome = self.call::<Get>(&request, deadline).await;
            outcomes.insert(request.id, outcome.map(Arc::new));
            return outcomes;
        }
        let begun = Instant::now();
        let mut request = GetManyRequest { ids };
        // Long environments take several messages.
        while !request.ids.is_empty() {
            let left = deadline.saturating_sub(begun.elapsed());
            match self.call::<GetMany>(&request, left).await {
                Ok(reply) => {
                    let read = reply.environments.into_iter();
                    outcomes.extend(read.map(|read| (read.id.clone(), Ok(Arc::new(read)))));
                    let failed = reply.errors.into_iter();
                    outcomes.extend(failed.map(|(id, error)| (id, Err(error))));
                    request.ids = reply.remaining;
                }
                Err(error) => {
                    let unread = request.ids.into_iter();
                    outcomes.extend(unread.map(|id| (id, Err(error.clone()))));
                    return outcomes;
                }
            }
        }
        outcomes
    }
}

fn outcome(outcomes: &Outcomes, id: &EnvironmentId) -> Outcome {
    let known = outcomes.get(id).cloned();
    known.unwrap_or_else(|| Err(Error::not_found("environment")))
}

/// A read that waits for its answer.
struct Waiting {
    id: EnvironmentId,
    arrived_at: Instant,
    span: Span,
    answer: oneshot::Sender<Outcome>,
}

#[derive(Default)]
struct Queue {
    reads: VecDeque<Waiting>,
    /// The tasks that will take reads, [`MAX_READ`] each: enough for all of them.
    tasks: usize,
}

pub(crate) struct Reads<S>(Arc<Inner<S>>);

struct Inner<S> {
    scheduler: S,
    patience: Duration,
    places: Semaphore,
    unanswered: Semaphore,
    queue: Mutex<Queue>,
    tasks: TaskTracker,
}

impl<S: Scheduler> Reads<S> {
    pub(crate) fn new(scheduler: S) -> Self {
        Self::with_bounds(scheduler, PATIENCE, MAX_UNANSWERED)
    }

    fn with_bounds(scheduler: S, patience: Duration, max_unanswered: usize) -> Self {
        Self(Arc::new(Inner {
            scheduler,
            patience,
            places: Semaphore::new(AT_ONCE),
            unanswered: Semaphore::new(max_unanswered),
            queue: Mutex::default(),
            tasks: TaskTracker::new(),
        }))
    }

    /// Reads the environment `id`.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`]; [`ErrorCode::Unavailable`] when too many reads wait; or that the scheduler
    /// cannot be reached.
    pub(crate) async fn read(&self, id: EnvironmentId) -> Outcome {
        let Self(inner) = self;
        let Ok(_unanswered) = inner.unanswered.try_acquire() else {
            metrics::limit_reached("environment_reads");
            return Err(Error::new(
                ErrorCode::Unavailable,
                "too many environments are read at once; try again",
            ));
        };
        // No place is free while a request waits for one.
        if let Ok(_place) = inner.places.try_acquire() {
            let ids = vec![id.clone()];
            let outcomes = inner.scheduler.read(ids, SCHEDULER_DEADLINE).await;
            return outcome(&outcomes, &id);
        }
        let answer = self.enqueue(id);
        // There is none only if the task of its request has panicked.
        answer.await.unwrap_or_else(|_| Err(Error::internal()))
    }

    fn enqueue(&self, id: EnvironmentId) -> oneshot::Receiver<Outcome> {
        let Self(inner) = self;
        let (answer, answered) = oneshot::channel();
        let mut queue = inner.queue.lock();
        queue.reads.push_back(Waiting {
            id,
            arrived_at: Instant::now(),
            span: Span::current(),
            answer,
        });
        if queue.reads.len() > queue.tasks * MAX_READ {
            queue.tasks += 1;
            inner.tasks.spawn(Arc::clone(inner).send_next());
        }
        answered
    }

    /// Waits for the requests in flight, of which each has a deadline.
    pub(crate) async fn finish(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl<S: Scheduler> Inner<S> {
    /// Sends one request for the reads that wait as soon as it has a place, or has waited for one for long
    /// enough.
    async fn send_next(self: Arc<Self>) {
        let _place = timeout(self.patience, self.places.acquire()).await;
        let reads = self.take();
        let Some((first, others)) = reads.split_first() else {
            return;
        };
        // The first one has waited longest.
        let deadline = SCHEDULER_DEADLINE.saturating_sub(first.arrived_at.elapsed());
        let span = first.span.clone();
        link(others, &span);
        let mut ids: Vec<_> = reads.iter().map(|read| read.id.clone()).collect();
        ids.sort_unstable();
        ids.dedup();
        let request = self.scheduler.read(ids, deadline);
        let outcomes = request.instrument(span).await;
        for read in reads {
            // The client may have disconnected meanwhile.
            let _ = read.answer.send(outcome(&outcomes, &read.id));
        }
    }

    /// Takes the reads of one request from the queue, without those whose clients have disconnected.
    fn take(&self) -> Vec<Waiting> {
        let mut queue = self.queue.lock();
        queue.tasks -= 1;
        let count = queue.reads.len().min(MAX_READ);
        let taken = queue.reads.drain(..count);
        taken.filter(|read| !read.answer.is_closed()).collect()
    }
}

/// Links the spans of reads to the span of another one, whose child their request is.
fn link(reads: &[Waiting], parent: &Span) {
    let context = parent.context().span().span_context().clone();
    if context.is_sampled() {
        for read in reads {
            read.span.add_link(context.clone());
        }
    }
}

#[cfg(test)]
mod tests;
