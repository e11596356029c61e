//! Sessions when NATS or a peer is killed.

use std::time::{Duration, Instant};

use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::exec::{FromBox, ToBox};
use agentbox_testing::{TestNats, repeat_until_below};

use super::last;
use crate::support::process::Process;
use crate::support::{
    DEADLINE, Ends, TestSession, ToOpener, ToServer, chunk, cluster, connect, request, within,
};

#[tokio::test(flavor = "multi_thread")]
async fn messages_arrive_once_in_order_across_nats_restarts() {
    const MESSAGES: u64 = 3000;
    const SIZE: usize = 8 * 1024;
    let (system, nats) = TestNats::own().await.unwrap();
    let mut ends = Ends::on(&nats).await;
    let (opened, served) = ends.session().await;
    let (mut to_box, mut from_box) = opened.split();
    let (mut to_opener, mut from_opener) = served.split();
    let to_opener_task = tokio::spawn(async move {
        for n in 0..MESSAGES {
            to_opener
                .send(FromBox::Stdout(chunk(n, SIZE)))
                .await
                .unwrap();
        }
        to_opener
    });
    let to_server_task = tokio::spawn(async move {
        for n in 0..MESSAGES {
            to_box.send(ToBox::Data(chunk(n, SIZE))).await.unwrap();
        }
        to_box
    });
    let at_server = tokio::spawn(async move {
        for n in 0..MESSAGES {
            let message = from_opener.recv().await.unwrap();
            assert_eq!(message, Some(ToBox::Data(chunk(n, SIZE))), "{n}");
        }
        from_opener
    });
    for n in 0..MESSAGES {
        if n == 1000 || n == 2000 {
            assert!(system.kill("nats", 0));
        }
        let message = within(2 * DEADLINE, from_box.recv()).await.unwrap();
        assert_eq!(message, Some(FromBox::Stdout(chunk(n, SIZE))), "{n}");
    }
    let _from_opener = within(2 * DEADLINE, at_server).await.unwrap();
    let _to_box = within(2 * DEADLINE, to_server_task).await.unwrap();
    let to_opener = within(2 * DEADLINE, to_opener_task).await.unwrap();
    let finish = tokio::spawn(to_opener.finish(last()));
    assert_eq!(
        within(DEADLINE, from_box.recv()).await.unwrap(),
        Some(last())
    );
    within(DEADLINE, finish).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_opener_is_lost_within_6_s() {
    let mut ends = Ends::shared().await;
    let nats = TestNats::shared().await.unwrap();
    repeat_until_below(Duration::from_secs(6), async || {
        let process = Process::start();
        let (nats, cluster) = (nats.clone(), ends.cluster.clone());
        let opener = process.run(async move {
            let gateway = connect(&nats, "api-gateway").await;
            let mut session: ToServer = gateway
                .open_session::<TestSession>(&cluster, &request(), DEADLINE)
                .await
                .unwrap();
            session.recv().await.unwrap();
            (gateway, session)
        });
        let mut served: ToOpener = within(DEADLINE, ends.acceptor.next())
            .await
            .unwrap()
            .accept();
        served.send(FromBox::LogsLost(1)).await.unwrap();
        // Forgotten, because a drop would send a reset.
        std::mem::forget(within(DEADLINE, opener).await.unwrap());
        process.kill();
        let started = Instant::now();
        let error = within(3 * DEADLINE, served.recv()).await.unwrap_err();
        let took = started.elapsed();
        assert_eq!(error.code, ErrorCode::BoxLost);
        assert!(took > Duration::from_secs(3), "the peer sent a reset");
        assert!(served.send(FromBox::LogsLost(2)).await.is_err());
        took
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_server_is_lost_within_6_s() {
    let ends = Ends::shared().await;
    let nats = TestNats::shared().await.unwrap();
    repeat_until_below(Duration::from_secs(6), async || {
        let process = Process::start();
        let (nats, cluster) = (nats.clone(), cluster());
        let served_cluster = cluster.clone();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let server = process.run(async move {
            let proxy = connect(&nats, "exec-proxy").await;
            let mut acceptor = proxy
                .accept_sessions::<TestSession>(&served_cluster, "exec-proxy")
                .await
                .unwrap();
            ready.send(()).unwrap();
            let mut session: ToOpener = acceptor.next().await.unwrap().accept();
            session.send(FromBox::LogsLost(1)).await.unwrap();
            (proxy, acceptor, session)
        });
        within(DEADLINE, is_ready).await.unwrap();
        let mut opened: ToServer = ends
            .gateway
            .open_session::<TestSession>(&cluster, &request(), DEADLINE)
            .await
            .unwrap();
        assert!(within(DEADLINE, opened.recv()).await.unwrap().is_some());
        std::mem::forget(within(DEADLINE, server).await.unwrap());
        process.kill();
        let started = Instant::now();
        let error = within(3 * DEADLINE, opened.recv()).await.unwrap_err();
        let took = started.elapsed();
        assert_eq!(error.code, ErrorCode::BoxLost);
        assert_eq!(error.message, "the connection to the box was lost");
        assert!(took > Duration::from_secs(3), "the peer sent a reset");
        took
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_end_when_nats_stays_away() {
    repeat_until_below(Duration::from_secs(7), lose_nats).await;
}

/// Stops NATS beside a session. Returns how long the session lasts, or the longest duration if one of its
/// ends learns that later than the other.
async fn lose_nats() -> Duration {
    let (system, nats) = TestNats::own().await.unwrap();
    let mut ends = Ends::on(&nats).await;
    let (opened, mut served) = ends.session().await;
    let (mut to_box, mut from_box) = opened.split();
    served.send(FromBox::LogsLost(1)).await.unwrap();
    assert!(from_box.recv().await.unwrap().is_some());
    system.stop().await;
    let sending = tokio::spawn(async move {
        // More messages than all queues between the two ends hold.
        loop {
            if let Err(error) = to_box.send(ToBox::Data(chunk(1, 1024))).await {
                return error;
            }
        }
    });
    let stopped = Instant::now();
    let error = within(3 * DEADLINE, from_box.recv()).await.unwrap_err();
    let took = stopped.elapsed();
    assert_eq!(error.code, ErrorCode::BoxLost);
    let started = Instant::now();
    let error = within(DEADLINE, sending).await.unwrap();
    let sending_took = started.elapsed();
    assert_eq!(error.code, ErrorCode::BoxLost);
    let started = Instant::now();
    within(DEADLINE, served.recv()).await.unwrap_err();
    let served_took = started.elapsed();
    let refused = ends
        .gateway
        .open_session::<TestSession>(&ends.cluster, &request(), DEADLINE)
        .await;
    assert_eq!(refused.err().unwrap().code, ErrorCode::Unavailable);
    if sending_took < Duration::from_secs(1) && served_took < Duration::from_secs(2) {
        took
    } else {
        Duration::MAX
    }
}
