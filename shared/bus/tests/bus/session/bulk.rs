//! Large transfers, slow readers, and latency.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agentbox_contracts::exec::{FromBox, MAX_CHUNK, ToBox};
use agentbox_testing::{TestNats, assert_fastest_below};

use super::last;
use crate::support::{DEADLINE, Ends, chunk, received_by, within};

/// The window, one message that waits for it, and one that the sender is about to queue.
const MAX_IN_FLIGHT: u64 = 16 + 1 + 1;

#[tokio::test(flavor = "multi_thread")]
async fn bulk_transfer_both_ways_is_exact_and_bounded_in_flight() {
    const CHUNKS: u64 = 64 * 1024 * 1024 / MAX_CHUNK as u64;
    let mut ends = Ends::shared().await;
    let (opened, served) = ends.session().await;
    let (mut to_box, mut from_box) = opened.split();
    let (mut to_opener, mut from_opener) = served.split();
    let (sent, max_in_flight) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let started = Instant::now();

    let to_server_task = tokio::spawn(async move {
        for n in 0..CHUNKS {
            to_box.send(ToBox::Data(chunk(n, MAX_CHUNK))).await.unwrap();
        }
        to_box
    });
    let counter = sent.clone();
    let to_opener_task = tokio::spawn(async move {
        for n in CHUNKS..2 * CHUNKS {
            counter.fetch_add(1, Ordering::SeqCst);
            to_opener
                .send(FromBox::Stdout(chunk(n, MAX_CHUNK)))
                .await
                .unwrap();
        }
        to_opener
    });
    let at_server = tokio::spawn(async move {
        for n in 0..CHUNKS {
            let message = from_opener.recv().await.unwrap();
            assert_eq!(message, Some(ToBox::Data(chunk(n, MAX_CHUNK))), "{n}");
        }
        from_opener
    });
    let in_flight = max_in_flight.clone();
    let at_opener = tokio::spawn(async move {
        for n in CHUNKS..2 * CHUNKS {
            let message = from_box.recv().await.unwrap();
            in_flight.fetch_max(
                sent.load(Ordering::SeqCst) - (n - CHUNKS + 1),
                Ordering::SeqCst,
            );
            assert_eq!(message, Some(FromBox::Stdout(chunk(n, MAX_CHUNK))), "{n}");
        }
        from_box
    });
    let (_to_box, to_opener, _from_opener, mut from_box) = within(6 * DEADLINE, async {
        (
            to_server_task.await.unwrap(),
            to_opener_task.await.unwrap(),
            at_server.await.unwrap(),
            at_opener.await.unwrap(),
        )
    })
    .await;
    let rate = 128.0 / started.elapsed().as_secs_f64();
    println!("both ways at once: {rate:.0} MiB/s, checked bytes included");
    let finish = tokio::spawn(to_opener.finish(last()));
    assert_eq!(from_box.recv().await.unwrap(), Some(last()));
    finish.await.unwrap().unwrap();
    assert!(
        max_in_flight.load(Ordering::SeqCst) <= MAX_IN_FLIGHT,
        "{max_in_flight:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_reader_stops_sender_without_retransmits() {
    let (_system, nats) = TestNats::own().await.unwrap();
    let mut ends = Ends::on(&nats).await;
    let (mut opened, served) = ends.session().await;
    let (mut sender, _receiver) = served.split();
    let mut accepted = 0;
    let stalled = Duration::from_secs(3);
    loop {
        let message = FromBox::Stdout(chunk(accepted, MAX_CHUNK));
        if tokio::time::timeout(stalled, sender.send(message))
            .await
            .is_err()
        {
            break;
        }
        accepted += 1;
        assert!(accepted <= MAX_IN_FLIGHT, "the sender is not stopped");
    }
    assert!(accepted >= 16, "{accepted}");

    let (_, before) = received_by(&nats).await;
    let ended = tokio::time::timeout(Duration::from_secs(4), opened.closed()).await;
    assert!(ended.is_err(), "a slow reader is not a lost one");
    let (_, after) = received_by(&nats).await;
    assert!(
        after - before < MAX_CHUNK as u64,
        "{} bytes were sent while the window was full",
        after - before
    );
    for n in 0..accepted {
        let message = within(DEADLINE, opened.recv()).await.unwrap();
        assert_eq!(message, Some(FromBox::Stdout(chunk(n, MAX_CHUNK))), "{n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn round_trip_waits_for_no_timer() {
    const ROUNDS: usize = 2000;
    let mut ends = Ends::shared().await;
    let (mut opened, mut served) = ends.session().await;
    let echo = tokio::spawn(async move {
        while let Ok(Some(ToBox::Data(bytes))) = served.recv().await {
            served.send(FromBox::Stdout(bytes)).await.unwrap();
        }
    });
    let mut times = Vec::with_capacity(ROUNDS);
    for n in 0..ROUNDS as u64 {
        let started = Instant::now();
        opened.send(ToBox::Data(chunk(n, 64))).await.unwrap();
        let back = within(DEADLINE, opened.recv()).await.unwrap();
        assert_eq!(back, Some(FromBox::Stdout(chunk(n, 64))));
        times.push(started.elapsed());
    }
    drop(opened);
    within(DEADLINE, echo).await.unwrap();
    // Far below every timer of a session.
    assert_fastest_below(times, Duration::from_millis(20));
}
