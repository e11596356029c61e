//! A request and its reply.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agentbox_bus::Bus;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::subjects::{self, HEADER_DEADLINE};
use agentbox_testing::TestNats;
use async_nats::HeaderMap;
use async_nats::service::{Info, PingResponse, Stats};
use futures::future::{join_all, try_join_all};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::process::Process;
use crate::support::{DEADLINE, cluster, connect, eventually, within};

/// How many a server works on at once.
const LIMIT: usize = 256;

/// Who asks, who answers, and a subject that no other test has.
struct Parties {
    gateway: Bus,
    auth: Bus,
    subject: String,
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
            auth: connect(&nats, "auth").await,
            subject: subjects::rpc("auth", &cluster()),
        }
    }

    async fn serve<F, Fut>(&self, handler: F) -> Served
    where
        F: Fn(u64) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<u64, Error>> + Send + 'static,
    {
        serve(&self.auth, &self.subject, handler).await
    }

    async fn ask(&self, n: u64) -> Result<u64, Error> {
        self.gateway
            .call_on(self.subject.clone(), &n, DEADLINE)
            .await
    }
}

async fn serve<F, Fut>(bus: &Bus, subject: &str, handler: F) -> Served
where
    F: Fn(u64) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<u64, Error>> + Send + 'static,
{
    let server = bus
        .serve("auth")
        .on_subject(subject.to_owned(), handler)
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
async fn an_answer_and_a_refusal_arrive_as_they_were_given() {
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
        .call_on::<_, u64>(parties.subject.clone(), &"text", DEADLINE)
        .await;
    assert_eq!(unreadable.unwrap_err().code, ErrorCode::BadRequest);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_serves_is_unavailable_at_once() {
    let parties = Parties::new().await;
    let begun = Instant::now();
    let error = parties.ask(1).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_an_answer_ends_at_its_deadline() {
    let parties = Parties::new().await;
    let _served = parties.serve(|_| pending()).await;
    let (begun, deadline) = (Instant::now(), Duration::from_millis(300));
    let outcome = parties
        .gateway
        .call_on::<_, u64>(parties.subject.clone(), &1, deadline)
        .await;
    assert_eq!(outcome.unwrap_err().code, ErrorCode::Timeout);
    assert!((deadline..Duration::from_secs(2)).contains(&begun.elapsed()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_past_its_deadline_is_not_begun() {
    let parties = Parties::new().await;
    let begun = Arc::new(AtomicUsize::new(0));
    let count = begun.clone();
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
        .publish_with_headers(parties.subject.clone(), headers, "1".into())
        .await
        .unwrap();
    // Behind it on the same connection.
    assert_eq!(parties.ask(2).await, Ok(2));
    served.stop().await;
    assert_eq!(begun.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_listens_is_heard_by_the_next_request() {
    let parties = Parties::new().await;
    for n in 0..50 {
        let subject = format!("{}{n}", parties.subject);
        let served = serve(&parties.auth, &subject, |n| async move { Ok(n) }).await;
        let outcome = parties.gateway.call_on(subject, &n, DEADLINE).await;
        assert_eq!(outcome, Ok(n));
        served.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_answers_what_it_has_begun_and_takes_no_more() {
    let parties = Parties::new().await;
    let (begun, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (count, gate) = (begun.clone(), go.clone());
    let served = parties
        .serve(move |n| {
            let (count, gate) = (count.clone(), gate.clone());
            async move {
                if n < 5 {
                    count.fetch_add(1, Ordering::Relaxed);
                    let _ = gate.acquire().await;
                }
                Ok(n)
            }
        })
        .await;
    let stop = async {
        eventually("five are at work", || begun.load(Ordering::Relaxed) == 5).await;
        let stopped = tokio::spawn(served.stop());
        // While it is in the group it answers; then nobody is, and who asks is told.
        let unserved = async {
            while let answered @ Ok(_) = parties.ask(9).await {
                assert_eq!(answered, Ok(9));
            }
            parties.ask(9).await.unwrap_err().code
        };
        assert_eq!(within(DEADLINE, unserved).await, ErrorCode::Unavailable);
        go.close();
        within(DEADLINE, stopped).await.unwrap();
    };
    let (answers, ()) = tokio::join!(try_join_all((0..5).map(|n| parties.ask(n))), stop);
    assert_eq!(answers, Ok(vec![0, 1, 2, 3, 4]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_does_not_end_holds_up_a_stop_for_10_s_and_its_caller_is_told() {
    let parties = Parties::new().await;
    let begun = Arc::new(AtomicUsize::new(0));
    let count = begun.clone();
    let served = parties
        .serve(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            pending()
        })
        .await;
    let stop = async {
        eventually("it is at work", || begun.load(Ordering::Relaxed) == 1).await;
        served.stop().await;
    };
    let asked = parties
        .gateway
        .call_on::<_, u64>(parties.subject.clone(), &1, 3 * DEADLINE);
    let (outcome, ()) = tokio::join!(asked, stop);
    assert_eq!(outcome.unwrap_err().code, ErrorCode::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_answers_of_a_process_that_ends_arrive() {
    let parties = Parties::new().await;
    let nats = TestNats::shared().await.unwrap();
    let (process, subject) = (Process::start(), parties.subject.clone());
    let (begun, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (count, gate) = (begun.clone(), go.clone());
    let shutdown = CancellationToken::new();
    let until = shutdown.clone();
    let served = process.run(async move {
        let bus = connect(&nats, "auth").await;
        let answer = move |n: u64| {
            count.fetch_add(1, Ordering::Relaxed);
            let gate = gate.clone();
            async move {
                let _ = gate.acquire().await;
                Ok((n, "x".repeat(500 * 1024)))
            }
        };
        let server = bus.serve("auth").on_subject(subject, answer);
        let server = server.listen().await.unwrap();
        server.run(until).await.unwrap();
        bus.close().await;
    });
    let end = async {
        eventually("all are at work", || begun.load(Ordering::Relaxed) == 20).await;
        shutdown.cancel();
        go.close();
        within(DEADLINE, served).await.unwrap();
        process.kill();
    };
    let ask = |n: u64| {
        let subject = parties.subject.clone();
        let gateway = &parties.gateway;
        async move {
            // No replica may be there yet.
            loop {
                let asked = gateway.call_on(subject.clone(), &n, DEADLINE).await;
                match asked {
                    Err(error) if error.code == ErrorCode::Unavailable => {}
                    answered => return answered,
                }
            }
        }
    };
    let (answers, ()) = tokio::join!(try_join_all((0..20).map(ask)), end);
    let answers: Vec<(u64, String)> = answers.unwrap();
    assert!(answers.iter().all(|(_, text)| text.len() == 500 * 1024));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_while_replicas_come_and_go() {
    let parties = Parties::new().await;
    let _stays = parties.serve(|n| async move { Ok(n) }).await;
    let asking = AtomicUsize::new(8);
    let askers = (0..8u64).map(|asker| {
        let (parties, asking) = (&parties, &asking);
        async move {
            for n in 0..400 {
                let n = asker * 1000 + n;
                assert_eq!(parties.ask(n).await, Ok(n));
            }
            asking.fetch_sub(1, Ordering::Relaxed);
        }
    });
    let replicas = async {
        let mut came = 0;
        while asking.load(Ordering::Relaxed) > 0 {
            parties.serve(|n| async move { Ok(n) }).await.stop().await;
            came += 1;
        }
        came
    };
    let (_, came) = tokio::join!(join_all(askers), replicas);
    assert!(came > 2, "only {came} came and went");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_panics_is_an_error_and_the_server_goes_on() {
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
async fn a_full_server_refuses_and_serves_again_when_it_has_room() {
    let parties = Parties::new().await;
    let (begun, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (count, gate) = (begun.clone(), go.clone());
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
        eventually("it is full", || begun.load(Ordering::Relaxed) == LIMIT).await;
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
async fn a_request_over_the_limit_is_refused_before_it_is_sent() {
    let parties = Parties::new().await;
    let large = "x".repeat(1024 * 1024);
    let outcome = parties
        .gateway
        .call_on::<_, u64>(parties.subject.clone(), &large, DEADLINE)
        .await;
    assert_eq!(outcome.unwrap_err().code, ErrorCode::PayloadTooLarge);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_found_by_the_tools_of_nats() {
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
    // Servers of other tests answer to this name too: ask until ours has.
    let info: Info = within(DEADLINE, async {
        loop {
            let answer = tool.request("$SRV.INFO.auth", "".into()).await.unwrap();
            let info: Info = serde_json::from_slice(&answer.payload).unwrap();
            if info.endpoints.iter().any(|e| e.subject == parties.subject) {
                break info;
            }
        }
    })
    .await;
    assert_eq!(info.name, "auth");
    assert_eq!(info.endpoints.len(), 1);
    assert_eq!(info.endpoints[0].queue_group, "auth");
    let ask = async |verb: &str| {
        let subject = format!("$SRV.{verb}.auth.{}", info.id);
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
