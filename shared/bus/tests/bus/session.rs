//! Sessions between a gateway and an exec-proxy.

mod bulk;
mod faults;
mod long_request;
mod opening;

use std::time::{Duration, Instant};

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{Exit, FromBox, ToBox};
use agentbox_testing::{TestNats, repeat_until_below};
use bytes::Bytes;

use crate::support::{DEADLINE, Ends, chunk, received_by, within};

fn last() -> FromBox {
    FromBox::Exit(Exit::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn short_exchange_costs_three_messages() {
    let (_system, nats) = TestNats::own().await.unwrap();
    let mut ends = Ends::on(&nats).await;
    let mut costs = Vec::new();
    for _ in 0..20 {
        let (before, _) = received_by(&nats).await;
        let (mut opened, served) = ends.session().await;
        let finish = tokio::spawn(served.finish(last()));
        assert_eq!(opened.recv().await.unwrap(), Some(last()));
        assert_eq!(opened.recv().await.unwrap(), None);
        finish.await.unwrap().unwrap();
        let (after, _) = received_by(&nats).await;
        costs.push(after - before);
    }
    // An exchange that a slow machine holds up for 50 ms costs one more: its session is accepted.
    costs.sort_unstable();
    assert_eq!((costs[0], costs[10]), (3, 3), "{costs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn receiver_dropped_after_last_message_acknowledges_it() {
    let mut ends = Ends::shared().await;
    repeat_until_below(Duration::from_millis(500), async || {
        let (mut opened, served) = ends.session().await;
        let finish = tokio::spawn(served.finish(last()));
        assert_eq!(opened.recv().await.unwrap(), Some(last()));
        let started = Instant::now();
        drop(opened);
        within(DEADLINE, finish).await.unwrap().unwrap();
        started.elapsed()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn last_message_arrives_last_without_reader_of_other_direction() {
    let mut ends = Ends::shared().await;
    let (opened, mut served) = ends.session().await;
    let (mut to_box, mut from_box) = opened.split();
    let pump = tokio::spawn(async move {
        // Blocks on a full window until the session ends.
        while to_box.send(ToBox::Data(chunk(1, 1024))).await.is_ok() {}
    });
    for n in 0..100 {
        served.send(FromBox::LogsLost(n)).await.unwrap();
        assert_eq!(from_box.recv().await.unwrap(), Some(FromBox::LogsLost(n)));
    }
    let finish = tokio::spawn(served.finish(last()));
    assert_eq!(
        within(DEADLINE, from_box.recv()).await.unwrap(),
        Some(last())
    );
    within(DEADLINE, finish).await.unwrap().unwrap();
    within(DEADLINE, pump).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn finish_does_not_wait_for_peer_that_only_sends() {
    let mut ends = Ends::shared().await;
    let (mut opened, served) = ends.session().await;
    let blocked = tokio::spawn(async move {
        for _ in 0..1000 {
            opened.send(ToBox::Data(chunk(1, 1024))).await?;
        }
        Ok::<_, Error>(opened)
    });
    // The peer fills its window before it reads the last message.
    let finish = tokio::spawn(served.finish(last()));
    let mut opened = within(DEADLINE, blocked).await.unwrap().unwrap();
    assert_eq!(within(DEADLINE, opened.recv()).await.unwrap(), Some(last()));
    within(DEADLINE, finish).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_session_ends_peer_within_100_ms() {
    let mut ends = Ends::shared().await;
    for drop_opener in [true, false] {
        repeat_until_below(Duration::from_millis(100), async || {
            let (mut opened, mut served) = ends.session().await;
            served.send(FromBox::LogsLost(1)).await.unwrap();
            assert!(opened.recv().await.unwrap().is_some());
            let started = Instant::now();
            let error = if drop_opener {
                drop(opened);
                within(DEADLINE, served.closed()).await;
                served.recv().await.unwrap_err()
            } else {
                drop(served);
                within(DEADLINE, opened.closed()).await;
                opened.recv().await.unwrap_err()
            };
            let took = started.elapsed();
            assert_eq!(error.code, ErrorCode::BoxLost);
            took
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_half_ends_session() {
    let mut ends = Ends::shared().await;
    repeat_until_below(Duration::from_secs(1), async || {
        let (opened, served) = ends.session().await;
        let (_to_box, from_box) = opened.split();
        let (sender, mut receiver) = served.split();
        let started = Instant::now();
        drop(from_box);
        within(DEADLINE, sender.closed()).await;
        let took = started.elapsed();
        assert!(receiver.recv().await.is_err());
        took
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failure_arrives_after_earlier_messages() {
    let mut ends = Ends::shared().await;
    let (mut opened, mut served) = ends.session().await;
    for n in 0..5 {
        served.send(FromBox::LogsLost(n)).await.unwrap();
    }
    let failure = Error::new(ErrorCode::NotFound, "environment not found");
    served.fail(failure.clone()).await;
    for n in 0..5 {
        assert_eq!(opened.recv().await.unwrap(), Some(FromBox::LogsLost(n)));
    }
    assert_eq!(within(DEADLINE, opened.recv()).await.unwrap_err(), failure);
    assert!(opened.send(ToBox::End).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_message_is_refused_and_session_continues() {
    let mut ends = Ends::shared().await;
    let (mut opened, mut served) = ends.session().await;
    let error = served
        .send(FromBox::Stdout(Bytes::from(vec![0; 800 * 1024])))
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::PayloadTooLarge);
    let large = chunk(3, 700 * 1024);
    served.send(FromBox::Stdout(large.clone())).await.unwrap();
    assert_eq!(opened.recv().await.unwrap(), Some(FromBox::Stdout(large)));
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_session_stays_open() {
    let mut ends = Ends::shared().await;
    let (mut opened, mut served) = ends.session().await;
    let silence = Duration::from_secs(7);
    let ended = tokio::time::timeout(silence, async {
        tokio::select! { () = opened.closed() => (), () = served.closed() => () }
    });
    assert!(ended.await.is_err(), "the session ended");
    served.send(FromBox::LogsLost(1)).await.unwrap();
    assert!(opened.recv().await.unwrap().is_some());
    opened.send(ToBox::End).await.unwrap();
    assert_eq!(served.recv().await.unwrap(), Some(ToBox::End));
}
