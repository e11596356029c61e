use std::sync::atomic::{AtomicUsize, Ordering};

use agentbox_box_protocol::tls;
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::executions::Execution;
use agentbox_contracts::logs::LogEntry;
use agentbox_runtime::{BoxStream, RuntimeError};
use async_trait::async_trait;
use tokio::task::JoinSet;

use super::*;

/// Connects at once, until `hang`: then attempts never end.
#[derive(Default)]
struct FakeConnector {
    attempts: AtomicUsize,
    hang_after: usize,
    /// The box whose boxd answers instead of the one that is asked for.
    answers: Option<EnvironmentId>,
    /// Each task is one boxd: it completes the TLS handshake and then keeps the connection.
    peers: Mutex<JoinSet<()>>,
}

fn secret() -> BoxSecret {
    "5c".repeat(32).parse().unwrap()
}

#[async_trait]
impl BoxConnector for FakeConnector {
    async fn connect(
        &self,
        id: &EnvironmentId,
        _: SocketAddr,
    ) -> Result<Box<dyn BoxStream>, RuntimeError> {
        if self.attempts.fetch_add(1, Ordering::SeqCst) >= self.hang_after {
            std::future::pending::<()>().await;
        }
        let (stream, peer) = tokio::io::duplex(64 * 1024);
        let id = self.answers.as_ref().unwrap_or(id);
        let token = BoxToken::derive(secret().bytes(), id).unwrap();
        let acceptor = tls::acceptor(&token).unwrap();
        self.peers.lock().spawn(async move {
            let _kept = acceptor.accept(peer).await;
            std::future::pending().await
        });
        Ok(Box::new(stream))
    }

    async fn last_output(
        &self,
        _: &EnvironmentId,
        _: usize,
    ) -> Result<Vec<LogEntry>, RuntimeError> {
        Ok(Vec::new())
    }

    async fn last_executions(&self, _: &EnvironmentId) -> Result<Vec<Execution>, RuntimeError> {
        Ok(Vec::new())
    }
}

fn boxes(hang_after: usize) -> (Boxes, Arc<FakeConnector>) {
    with_connector(FakeConnector {
        hang_after,
        ..FakeConnector::default()
    })
}

fn with_connector(connector: FakeConnector) -> (Boxes, Arc<FakeConnector>) {
    let connector = Arc::new(connector);
    let boxes = Boxes::new(
        Arc::clone(&connector) as Arc<dyn BoxConnector>,
        secret(),
        Limits::default(),
        BoxSpans::default(),
    );
    (boxes, connector)
}

fn lease(boxes: &Boxes, id: &EnvironmentId) -> Lease {
    let address = SocketAddr::from(([10, 0, 0, 2], 10_777));
    boxes.lease_request(id, address).unwrap()
}

#[tokio::test]
async fn concurrent_callers_share_one_connection_until_it_is_lost() {
    let (boxes, connector) = boxes(usize::MAX);
    let id = EnvironmentId::random();
    let (first, second) = (lease(&boxes, &id), lease(&boxes, &id));
    let (one, two) = tokio::join!(first.connection(), second.connection());
    assert_eq!((one.unwrap().number, two.unwrap().number), (1, 1));
    assert_eq!(connector.attempts.load(Ordering::SeqCst), 1);

    first.mark_lost(1);
    assert_eq!(second.connection().await.unwrap().number, 2);
    // An old number, marked late, does not affect the newer connection.
    second.mark_lost(1);
    assert_eq!(first.connection().await.unwrap().number, 2);
    assert_eq!(connector.attempts.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn losing_a_connection_does_not_wait_for_a_pending_attempt() {
    let (boxes, connector) = boxes(1);
    let id = EnvironmentId::random();
    let lease = lease(&boxes, &id);
    assert_eq!(lease.connection().await.unwrap().number, 1);
    lease.mark_lost(1);
    let pending = lease.connection();
    tokio::pin!(pending);
    assert!(futures::poll!(&mut pending).is_pending());
    assert_eq!(connector.attempts.load(Ordering::SeqCst), 2);
    lease.mark_lost(1);
    assert!(futures::poll!(&mut pending).is_pending());
    assert_eq!(connector.attempts.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn boxd_of_another_box_is_not_this_box() {
    let (boxes, connector) = with_connector(FakeConnector {
        hang_after: usize::MAX,
        answers: Some(EnvironmentId::random()),
        ..FakeConnector::default()
    });
    let lease = lease(&boxes, &EnvironmentId::random());
    let error = lease.connection().await.err().unwrap();
    assert!(
        matches!(&error, BoxError::Unreachable(detail) if detail.contains("key")),
        "{error}"
    );
    assert_eq!(error.public().code, ErrorCode::NotRunning);
    assert_eq!(connector.attempts.load(Ordering::SeqCst), 1);
}

fn periodic(boxes: &Boxes, id: &EnvironmentId) -> Lease {
    let address = SocketAddr::from(([10, 0, 0, 2], 10_777));
    boxes.lease_periodic(id, address).unwrap()
}

#[tokio::test]
async fn periodic_request_keeps_no_connection_that_it_opened() {
    let (boxes, connector) = boxes(usize::MAX);
    let id = EnvironmentId::random();
    for attempts in 1..=2 {
        let request = periodic(&boxes, &id);
        request.connection().await.unwrap();
        drop(request);
        assert!(boxes.is_empty());
        assert_eq!(connector.attempts.load(Ordering::SeqCst), attempts);
    }
}

#[tokio::test]
async fn periodic_request_leaves_a_connection_to_those_who_use_it() {
    let (boxes, connector) = boxes(usize::MAX);
    let id = EnvironmentId::random();
    let request = periodic(&boxes, &id);
    request.connection().await.unwrap();
    let session = lease(&boxes, &id);
    drop(request);
    session.connection().await.unwrap();
    assert_eq!(
        (boxes.len(), connector.attempts.load(Ordering::SeqCst)),
        (1, 1)
    );

    drop(session);
    let used_at = || boxes.shared.entries.lock()[&id].last_used();
    let used = used_at();
    drop(periodic(&boxes, &id));
    assert_eq!((boxes.len(), used_at()), (1, used));
}
