//! Requests and their replies.

mod stopping;

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agentbox_bus::Bus;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::InstanceId;
use agentbox_contracts::rpc::{ClusterRpc, InstanceRpc};
use agentbox_contracts::subjects::{self, HEADER_DEADLINE};
use agentbox_testing::{TestNats, repeat_until_below};
use async_nats::HeaderMap;
use async_nats::service::{Info, PingResponse, Stats};
use futures::future::try_join_all;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{DEADLINE, cluster, connect, eventually, within};

/// The most requests that a server processes at once.
const LIMIT: usize = 256;

struct Echo;

impl ClusterRpc for Echo {
    const METHOD: &'static str = "echo";
    type Request = u64;
    type Reply = u64;
}

/// Asks one gateway for its number.
struct Number;

impl InstanceRpc for Number {
    const SERVICE: &'static str = "api-gateway";
    const METHOD: &'static str = "number";
    type Request = ();
    type Reply = u64;
}

/// [`Echo`] with a request that its server cannot decode.
struct EchoText;

impl ClusterRpc for EchoText {
    const METHOD: &'static str = "echo";
    type Request = String;
    type Reply = u64;
}

/// A caller, a server, and a cluster that no other test uses.
struct Parties {
    gateway: Bus,
    proxy: Bus,
    cluster: String,
}

struct Served {
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Parties {
    async fn new() -> Self {
        let nats = TestNats::shared().await.unwrap();
        Self {
            gateway: connect(&nats, "api-gateway").await,
            proxy: connect(&nats, "exec-proxy").await,
            cluster: cluster(),
        }
    }

    async fn serve<F, Fut>(&self, handler: F) -> Served
    where
        F: Fn(u64) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<u64, Error>> + Send + 'static,
    {
        serve(&self.proxy, &self.cluster, handler).await
    }

    async fn ask(&self, n: u64) -> Result<u64, Error> {
        self.gateway
            .call_cluster::<Echo>(&self.cluster, &n, DEADLINE)
            .await
    }

    fn subject(&self) -> String {
        subjects::exec_rpc(&self.cluster, Echo::METHOD)
    }
}

async fn serve<F, Fut>(bus: &Bus, cluster: &str, handler: F) -> Served
where
    F: Fn(u64) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<u64, Error>> + Send + 'static,
{
    let server = bus
        .serve("exec-proxy")
        .on_cluster::<Echo, _, _>(cluster, handler)
        .listen()
        .await
        .unwrap();
    let shutdown = CancellationToken::new();
    let until = shutdown.clone();
    Served {
        shutdown,
        task: tokio::spawn(async move { server.run(until).await.unwrap() }),
    }
}

impl Served {
    async fn stop(self) {
        self.shutdown.cancel();
        within(2 * DEADLINE, self.task).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reply_and_error_reach_the_caller_unchanged() {
    let parties = Parties::new().await;
    let served = parties
        .serve(|n| async move {
            match n {
                0 => Err(Error::new(ErrorCode::Conflict, "nought")),
                n => Ok(n * 2),
            }
        })
        .await;
    assert_eq!(parties.ask(21).await, Ok(42));
    assert_eq!(
        parties.ask(0).await,
        Err(Error::new(ErrorCode::Conflict, "nought"))
    );
    let unreadable = parties
        .gateway
        .call_cluster::<EchoText>(&parties.cluster, &"text".into(), DEADLINE)
        .await;
    assert_eq!(unreadable.unwrap_err().code, ErrorCode::BadRequest);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_to_one_process_is_answered_by_it() {
    let nats = TestNats::shared().await.unwrap();
    let auth = connect(&nats, "auth").await;
    let shutdown = CancellationToken::new();
    let mut gateways = Vec::new();
    for number in 1..=2_u64 {
        let bus = connect(&nats, "api-gateway").await;
        let server = bus
            .serve("api-gateway")
            .on_instance::<Number, _, _>(bus.instance(), move |()| async move { Ok(number) })
            .listen()
            .await
            .unwrap();
        tokio::spawn(server.run(shutdown.clone()));
        gateways.push((bus, number));
    }
    for (bus, number) in &gateways {
        let asked = auth.call_instance::<Number>(bus.instance(), &(), DEADLINE);
        assert_eq!(asked.await, Ok(*number));
    }
    let nobody = InstanceId::random();
    let asked = auth.call_instance::<Number>(&nobody, &(), DEADLINE).await;
    assert_eq!(asked.unwrap_err().code, ErrorCode::Unavailable);
    shutdown.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn unserved_method_is_unavailable_at_once() {
    let parties = Parties::new().await;
    repeat_until_below(Duration::from_secs(1), async || {
        let started = Instant::now();
        let error = parties.ask(1).await.unwrap_err();
        let took = started.elapsed();
        assert_eq!(error.code, ErrorCode::Unavailable);
        took
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unanswered_request_times_out_at_its_deadline() {
    let parties = Parties::new().await;
    let _served = parties.serve(|_| pending()).await;
    let deadline = Duration::from_millis(300);
    repeat_until_below(Duration::from_secs(2), async || {
        let started = Instant::now();
        let outcome = parties
            .gateway
            .call_cluster::<Echo>(&parties.cluster, &1, deadline)
            .await;
        let took = started.elapsed();
        assert_eq!(outcome.unwrap_err().code, ErrorCode::Timeout);
        assert!(took >= deadline, "{took:?}");
        took
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_past_its_deadline_is_not_processed() {
    let parties = Parties::new().await;
    let started = Arc::new(AtomicUsize::new(0));
    let count = started.clone();
    let served = parties
        .serve(move |n| {
            count.fetch_add(1, Ordering::Relaxed);
            async move { Ok(n) }
        })
        .await;
    let mut headers = HeaderMap::new();
    headers.insert(HEADER_DEADLINE, "1");
    let client = parties.gateway.client();
    client
        .publish_with_reply_and_headers(parties.subject(), client.new_inbox(), headers, "1".into())
        .await
        .unwrap();
    // Sent after it on the same connection, so the server has received both.
    assert_eq!(parties.ask(2).await, Ok(2));
    served.stop().await;
    assert_eq!(started.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn reply_after_reconnect_does_not_stop_the_server() {
    let parties = Parties::new().await;
    let (started, may_reply) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let handler = {
        let (started, may_reply) = (started.clone(), may_reply.clone());
        move |n: u64| {
            let (started, may_reply) = (started.clone(), may_reply.clone());
            async move {
                started.add_permits(1);
                if n == 1 {
                    let _permit = may_reply.acquire().await.unwrap();
                }
                Ok::<u64, Error>(n)
            }
        }
    };
    let served = parties.serve(handler).await;
    let deadline = Duration::from_secs(2);
    let first = parties
        .gateway
        .call_cluster::<Echo>(&parties.cluster, &1, deadline);
    let reconnect = async {
        let _permit = within(DEADLINE, started.acquire()).await.unwrap();
        let mut reconnects = parties.proxy.reconnects();
        parties.proxy.client().force_reconnect().await.unwrap();
        within(DEADLINE, reconnects.changed()).await.unwrap();
        may_reply.add_permits(1);
    };
    let (first, ()) = tokio::join!(first, reconnect);
    // The server permits a reply only on the connection that has received the request.
    assert_eq!(first.unwrap_err().code, ErrorCode::Timeout);
    assert_eq!(parties.ask(2).await, Ok(2));
    let violation = parties.proxy.violated();
    assert!(
        tokio::time::timeout(Duration::from_millis(100), violation)
            .await
            .is_err()
    );
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn listening_server_gets_the_next_request() {
    let parties = Parties::new().await;
    for n in 0..50 {
        let cluster = format!("{}{n}", parties.cluster);
        let served = serve(&parties.proxy, &cluster, |n| async move { Ok(n) }).await;
        let outcome = parties
            .gateway
            .call_cluster::<Echo>(&cluster, &n, DEADLINE)
            .await;
        assert_eq!(outcome, Ok(n));
        served.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn panicking_handler_returns_internal_and_server_continues() {
    let parties = Parties::new().await;
    let served = parties
        .serve(|n| async move {
            assert!(n != 13, "it panics");
            Ok(n)
        })
        .await;
    let error = parties.ask(13).await.unwrap_err();
    assert_eq!(error, Error::internal());
    assert_eq!(parties.ask(14).await, Ok(14));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_server_refuses_until_a_slot_is_free() {
    let parties = Parties::new().await;
    let (started, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (count, gate) = (started.clone(), go.clone());
    let served = parties
        .serve(move |n| {
            count.fetch_add(1, Ordering::Relaxed);
            let gate = gate.clone();
            async move {
                let _ = gate.acquire().await;
                Ok(n)
            }
        })
        .await;
    let one_more = async {
        eventually("the server is full", || {
            started.load(Ordering::Relaxed) == LIMIT
        })
        .await;
        let refused = parties.ask(0).await;
        go.close();
        refused
    };
    let (answers, refused) = tokio::join!(
        try_join_all((0..LIMIT as u64).map(|n| parties.ask(n))),
        one_more
    );
    assert_eq!(answers.unwrap().len(), LIMIT);
    assert_eq!(refused.unwrap_err().code, ErrorCode::Unavailable);
    assert_eq!(parties.ask(7).await, Ok(7));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_request_is_refused_before_sending() {
    let parties = Parties::new().await;
    let large = "x".repeat(1024 * 1024);
    let outcome = parties
        .gateway
        .call_cluster::<EchoText>(&parties.cluster, &large, DEADLINE)
        .await;
    assert_eq!(outcome.unwrap_err().code, ErrorCode::PayloadTooLarge);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_answers_nats_discovery() {
    let parties = Parties::new().await;
    let served = parties
        .serve(|n| async move {
            match n {
                0 => Err(Error::internal()),
                n => Ok(n),
            }
        })
        .await;
    parties.ask(1).await.unwrap();
    parties.ask(0).await.unwrap_err();
    let nats = TestNats::shared().await.unwrap();
    let (user, password) = nats.all_access();
    let tool = async_nats::ConnectOptions::with_user_and_password(user.into(), password.into())
        .connect(&nats.url)
        .await
        .unwrap();
    // Servers of other tests reply to this subject too. Repeat until this test's server replies.
    let info: Info = within(DEADLINE, async {
        loop {
            let answer = tool
                .request("$SRV.INFO.exec-proxy", "".into())
                .await
                .unwrap();
            let info: Info = serde_json::from_slice(&answer.payload).unwrap();
            if info
                .endpoints
                .iter()
                .any(|e| e.subject == parties.subject())
            {
                break info;
            }
        }
    })
    .await;
    assert_eq!(info.name, "exec-proxy");
    assert_eq!(info.endpoints.len(), 1);
    assert_eq!(info.endpoints[0].queue_group, "exec-proxy");
    let ask = async |verb: &str| {
        let subject = format!("$SRV.{verb}.exec-proxy.{}", info.id);
        tool.request(subject, "".into()).await.unwrap().payload
    };
    let ping: PingResponse = serde_json::from_slice(&ask("PING").await).unwrap();
    assert_eq!(
        (ping.id, ping.version),
        (info.id.clone(), info.version.clone())
    );
    let stats: Stats = serde_json::from_slice(&ask("STATS").await).unwrap();
    let endpoint = &stats.endpoints[0];
    assert_eq!((endpoint.requests, endpoint.errors), (2, 1));
    assert!(tool.request("$SRV.PING", "".into()).await.is_ok());
    served.stop().await;
}
