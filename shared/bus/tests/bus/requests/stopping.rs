//! Servers that stop, exit or hang, and the requests that they have received.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::rpc::ClusterRpc;
use agentbox_testing::TestNats;
use futures::future::{join_all, try_join_all};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{Echo, Parties};
use crate::support::process::Process;
use crate::support::{DEADLINE, connect, eventually, within};

/// [`Echo`] with a long reply.
struct EchoLong;

impl ClusterRpc for EchoLong {
    const METHOD: &'static str = "echo";
    type Request = u64;
    type Reply = (u64, String);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_server_completes_requests_in_flight_and_takes_no_more() {
    let parties = Parties::new().await;
    let (started, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (count, gate) = (started.clone(), go.clone());
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
        eventually("five requests are processed", || {
            started.load(Ordering::Relaxed) == 5
        })
        .await;
        let stopped = tokio::spawn(served.stop());
        // The server replies while it is in the queue group. After that no server does.
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
async fn stuck_handler_delays_stop_by_10_s_and_its_caller_gets_an_error() {
    let parties = Parties::new().await;
    let started = Arc::new(AtomicUsize::new(0));
    let count = started.clone();
    let served = parties
        .serve(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            pending()
        })
        .await;
    let stop = async {
        eventually("the request is processed", || {
            started.load(Ordering::Relaxed) == 1
        })
        .await;
        served.stop().await;
    };
    let asked = parties
        .gateway
        .call_cluster::<Echo>(&parties.cluster, &1, 3 * DEADLINE);
    let (outcome, ()) = tokio::join!(asked, stop);
    assert_eq!(outcome.unwrap_err().code, ErrorCode::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn exiting_process_delivers_its_last_replies() {
    let parties = Parties::new().await;
    let nats = TestNats::shared().await.unwrap();
    let (process, cluster) = (Process::start(), parties.cluster.clone());
    let (started, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (count, gate) = (started.clone(), go.clone());
    let shutdown = CancellationToken::new();
    let until = shutdown.clone();
    let served = process.run(async move {
        let bus = connect(&nats, "exec-proxy").await;
        let answer = move |n: u64| {
            count.fetch_add(1, Ordering::Relaxed);
            let gate = gate.clone();
            async move {
                let _ = gate.acquire().await;
                Ok((n, "x".repeat(500 * 1024)))
            }
        };
        let server = bus
            .serve("exec-proxy")
            .on_cluster::<EchoLong, _, _>(&cluster, answer);
        let server = server.listen().await.unwrap();
        server.run(until).await.unwrap();
        bus.close().await;
    });
    let end = async {
        eventually("all requests are processed", || {
            started.load(Ordering::Relaxed) == 20
        })
        .await;
        shutdown.cancel();
        go.close();
        within(DEADLINE, served).await.unwrap();
        process.kill();
    };
    let ask = |n: u64| {
        let (gateway, cluster) = (&parties.gateway, &parties.cluster);
        async move {
            // The server may not have subscribed yet.
            loop {
                let asked = gateway
                    .call_cluster::<EchoLong>(cluster, &n, DEADLINE)
                    .await;
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
async fn replicas_starting_and_stopping_lose_no_request() {
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
        let mut starts = 0;
        while asking.load(Ordering::Relaxed) > 0 {
            parties.serve(|n| async move { Ok(n) }).await.stop().await;
            starts += 1;
        }
        starts
    };
    let (_, starts) = tokio::join!(join_all(askers), replicas);
    assert!(
        starts > 2,
        "only {starts} replicas were started and stopped"
    );
}
