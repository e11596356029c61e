use std::pin::pin;

use agentbox_contracts::environment::StatusReason;
use futures::future::join_all;
use futures::poll;
use tokio::sync::mpsc;

use super::*;
use crate::box_loss::tests::ended;

/// Longer than any test.
const HOUR: Duration = Duration::from_secs(3600);
const MANY: usize = 1000;

/// A request that the test answers.
struct Request {
    ids: Vec<EnvironmentId>,
    answer: oneshot::Sender<Outcomes>,
}

impl Request {
    /// Answers that all environments exist.
    fn answer(self) {
        let each = self.ids.iter().map(|id| (id.clone(), found(id)));
        let outcomes = each.collect();
        assert!(self.answer.send(outcomes).is_ok());
    }
}

impl Scheduler for mpsc::UnboundedSender<Request> {
    async fn read(&self, ids: Vec<EnvironmentId>, _: Duration) -> Outcomes {
        let (answer, answered) = oneshot::channel();
        self.send(Request { ids, answer }).ok().unwrap();
        answered.await.unwrap()
    }
}

type Asked = mpsc::UnboundedReceiver<Request>;

fn reads(patience: Duration, max: usize) -> (Reads<mpsc::UnboundedSender<Request>>, Asked) {
    let (requests, asked) = mpsc::unbounded_channel();
    (Reads::with_bounds(requests, patience, max), asked)
}

fn found(id: &EnvironmentId) -> Outcome {
    let mut environment = ended(StatusReason::Exited, None);
    environment.id = id.clone();
    Ok(Arc::new(environment))
}

fn ids<const N: usize>() -> [EnvironmentId; N] {
    let mut ids = std::array::from_fn(|_| EnvironmentId::random());
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn read_alone_is_sent_at_once() {
    let (reads, mut asked) = reads(HOUR, MANY);
    let [id] = ids();
    let mut read = pin!(reads.read(id.clone()));
    assert!(poll!(&mut read).is_pending());
    let request = asked.try_recv().unwrap();
    assert_eq!(request.ids, std::slice::from_ref(&id));
    request.answer();
    assert_eq!(read.await.unwrap().id, id);
}

#[tokio::test]
async fn reads_that_arrive_during_requests_share_the_next() {
    let (reads, mut asked) = reads(HOUR, MANY);
    let [a, b, c] = ids();
    let mut earlier = Vec::from_iter((0..AT_ONCE).map(|_| Box::pin(reads.read(a.clone()))));
    for read in &mut earlier {
        assert!(poll!(read).is_pending());
    }
    // The environment of an earlier read is read again.
    let wanted = [&c, &a, &b, &c];
    let mut later = Vec::from_iter(wanted.map(|id| Box::pin(reads.read(id.clone()))));
    for read in &mut later {
        assert!(poll!(read).is_pending());
    }
    for _ in 0..AT_ONCE {
        let request = asked.recv().await.unwrap();
        assert_eq!(request.ids, std::slice::from_ref(&a));
        request.answer();
    }
    for read in earlier {
        assert_eq!(read.await.unwrap().id, a);
    }
    let request = asked.recv().await.unwrap();
    assert_eq!(request.ids, [a.clone(), b.clone(), c.clone()]);
    request.answer();
    for (read, id) in later.into_iter().zip(wanted) {
        assert_eq!(read.await.unwrap().id, *id);
    }
    reads.finish().await;
    assert!(asked.try_recv().is_err());
}

#[tokio::test]
async fn request_has_at_most_the_most_reads() {
    let (reads, mut asked) = reads(HOUR, MANY);
    let all = ids::<{ MAX_READ + AT_ONCE + 1 }>();
    let answering = async {
        let mut sizes: Vec<usize> = Vec::new();
        while sizes.iter().sum::<usize>() < all.len() {
            let request = asked.recv().await.unwrap();
            sizes.push(request.ids.len());
            request.answer();
        }
        sizes
    };
    let reading = join_all(all.iter().map(|id| reads.read(id.clone())));
    let (outcomes, sizes) = tokio::join!(reading, answering);
    for (outcome, id) in outcomes.into_iter().zip(&all) {
        assert_eq!(outcome.unwrap().id, *id);
    }
    assert_eq!(sizes, [1, 1, MAX_READ, 1]);
}

#[tokio::test]
async fn stalled_requests_hold_no_later_read() {
    let (reads, mut asked) = reads(Duration::from_millis(1), MANY);
    let [stalled, later, last] = ids();
    let mut held = Vec::from_iter((0..AT_ONCE).map(|_| Box::pin(reads.read(stalled.clone()))));
    let mut unanswered = Vec::new();
    for read in &mut held {
        assert!(poll!(read).is_pending());
        unanswered.push(asked.try_recv().unwrap());
    }
    let mut third = pin!(reads.read(later.clone()));
    assert!(poll!(&mut third).is_pending());
    let request = asked.recv().await.unwrap();
    assert_eq!(request.ids, [later]);
    // A shared request without an answer holds no later read either.
    unanswered.push(request);
    let fourth = reads.read(last.clone());
    let answering = async { asked.recv().await.unwrap().answer() };
    let (outcome, ()) = tokio::join!(fourth, answering);
    assert_eq!(outcome.unwrap().id, last);
    assert!(poll!(&mut third).is_pending());
}

#[tokio::test]
async fn environment_that_cannot_be_read_fails_its_own_reads_only() {
    let (reads, mut asked) = reads(HOUR, MANY);
    let [good, bad, missing, other] = ids();
    let mut first = Vec::from_iter((0..AT_ONCE).map(|_| Box::pin(reads.read(other.clone()))));
    for read in &mut first {
        assert!(poll!(read).is_pending());
    }
    let answering = async {
        for _ in 0..AT_ONCE {
            asked.recv().await.unwrap().answer();
        }
        let request = asked.recv().await.unwrap();
        assert_eq!(request.ids.len(), 3);
        let outcomes = [
            (good.clone(), found(&good)),
            (bad.clone(), Err(Error::internal())),
        ];
        assert!(request.answer.send(outcomes.into()).is_ok());
    };
    let (good_read, bad_read, missing_read, _, ()) = tokio::join!(
        reads.read(good.clone()),
        reads.read(bad.clone()),
        reads.read(missing),
        join_all(first),
        answering,
    );
    assert_eq!(good_read.unwrap().id, good);
    assert_eq!(bad_read.unwrap_err().code, ErrorCode::Internal);
    assert_eq!(missing_read.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn read_beyond_the_bound_is_refused_until_one_is_answered() {
    let (reads, mut asked) = reads(HOUR, AT_ONCE + 1);
    let [id] = ids();
    let mut held = Vec::from_iter((0..=AT_ONCE).map(|_| Box::pin(reads.read(id.clone()))));
    for read in &mut held {
        assert!(poll!(read).is_pending());
    }
    let refused = reads.read(id.clone()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unavailable);
    assert!(refused.retry_after_s.is_some());
    asked.try_recv().unwrap().answer();
    held.remove(0).await.unwrap();
    let mut accepted = pin!(reads.read(id));
    assert!(poll!(&mut accepted).is_pending());
}

#[tokio::test]
async fn read_whose_client_has_disconnected_is_not_sent() {
    let (reads, mut asked) = reads(HOUR, MANY);
    let [gone, id] = ids();
    let mut held = Vec::from_iter((0..AT_ONCE).map(|_| Box::pin(reads.read(id.clone()))));
    for read in &mut held {
        assert!(poll!(read).is_pending());
    }
    {
        let mut dropped = pin!(reads.read(gone));
        assert!(poll!(&mut dropped).is_pending());
    }
    let mut kept = pin!(reads.read(id.clone()));
    assert!(poll!(&mut kept).is_pending());
    for _ in 0..AT_ONCE {
        asked.try_recv().unwrap().answer();
    }
    join_all(held).await;
    let request = asked.recv().await.unwrap();
    assert_eq!(request.ids, [id]);
    request.answer();
    kept.await.unwrap();
}
