//! Requests to open a session that are too long for one message.

use std::time::{Duration, Instant};

use agentbox_bus::OpenError;
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::exec::ToBox;
use agentbox_contracts::ids::InstanceId;
use agentbox_contracts::subjects::{self, HEADER_OPEN_LENGTH};
use agentbox_testing::repeat_until_below;
use async_nats::{HeaderMap, Subscriber};
use futures::StreamExt as _;

use super::last;
use crate::support::{DEADLINE, Ends, TestSession, ToServer, chunk, within};

const MEBIBYTE: usize = 1024 * 1024;

async fn open_with(ends: &Ends, size: usize) -> ToServer {
    ends.gateway
        .open_session::<TestSession>(&ends.cluster, &ToBox::Data(chunk(1, size)), DEADLINE)
        .await
        .unwrap()
}

/// Sends an opening message that announces `length` bytes, from an opener that sends nothing else.
/// Returns the opener's subject and the frames that it receives.
async fn announce(ends: &Ends, length: &str) -> (String, Subscriber) {
    let client = ends.gateway.client();
    let own = subjects::session("api-gateway", &InstanceId::random(), 1);
    let frames = client.subscribe(own.clone()).await.unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(HEADER_OPEN_LENGTH, length);
    let first = chunk(1, 1000);
    client
        .publish_with_reply_and_headers(ends.subject(), own.clone(), headers, first)
        .await
        .unwrap();
    client.flush().await.unwrap();
    (own, frames)
}

#[tokio::test(flavor = "multi_thread")]
async fn request_of_4_mib_arrives_whole_before_the_messages() {
    let mut ends = Ends::shared().await;
    for size in [250 * 1024, 300 * 1024, 4 * MEBIBYTE] {
        let mut opened = open_with(&ends, size).await;
        let sender = tokio::spawn(async move {
            opened.send(ToBox::End).await.unwrap();
            opened
        });
        let mut incoming = within(DEADLINE, ends.acceptor.next()).await.unwrap();
        let request = within(DEADLINE, incoming.open()).await.unwrap();
        assert!(request == ToBox::Data(chunk(1, size)), "{size}");
        // The request can be read again.
        assert!(incoming.open().await.unwrap() == request, "{size}");
        let mut served = incoming.accept();
        let message = within(DEADLINE, served.recv()).await.unwrap();
        assert_eq!(message, Some(ToBox::End), "{size}");
        let mut opened = within(DEADLINE, sender).await.unwrap();
        let finish = tokio::spawn(served.finish(last()));
        assert_eq!(opened.recv().await.unwrap(), Some(last()));
        assert_eq!(opened.recv().await.unwrap(), None);
        finish.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_that_stops_arriving_ends_at_its_deadline() {
    let mut ends = Ends::shared().await;
    let (own, mut frames) = announce(&ends, "1000000").await;
    let mut incoming = within(DEADLINE, ends.acceptor.next()).await.unwrap();
    let client = ends.gateway.client();
    // The opener lives on: it pings.
    let pings = async {
        let accept = frames.next().await.unwrap();
        let server = accept.reply.unwrap().to_string();
        let mut ping = vec![5u8];
        ping.extend_from_slice(&[0; 24]);
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            client
                .publish_with_reply(server.clone(), own.clone(), ping.clone().into())
                .await
                .unwrap();
        }
    };
    let started = Instant::now();
    let error = tokio::select! {
        request = incoming.open() => request.unwrap_err(),
        () = pings => panic!("the pings ended"),
    };
    assert!(matches!(error, OpenError::Late), "{error}");
    assert_eq!(error.public().code, ErrorCode::Timeout);
    let took = started.elapsed();
    assert!(
        took > Duration::from_secs(9) && took < Duration::from_secs(15),
        "{took:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn request_of_an_opener_that_is_gone_is_interrupted() {
    let mut ends = Ends::shared().await;
    repeat_until_below(Duration::from_secs(1), async || {
        drop(open_with(&ends, 2 * MEBIBYTE).await);
        let mut incoming = within(DEADLINE, ends.acceptor.next()).await.unwrap();
        let started = Instant::now();
        let error = within(2 * DEADLINE, incoming.open()).await.unwrap_err();
        let took = started.elapsed();
        assert!(matches!(error, OpenError::Interrupted(_)), "{error}");
        incoming.refuse(error.public()).await;
        took
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_request_is_refused_by_both_ends() {
    let mut ends = Ends::shared().await;
    let request = ToBox::Data(chunk(1, 8 * MEBIBYTE));
    let refused = ends
        .gateway
        .open_session::<TestSession>(&ends.cluster, &request, DEADLINE)
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code, ErrorCode::PayloadTooLarge);

    // 8 MiB and one byte, and a length that is no number.
    for length in ["8388609", "many"] {
        let (_own, mut frames) = announce(&ends, length).await;
        let mut incoming = within(DEADLINE, ends.acceptor.next()).await.unwrap();
        let error = incoming.open().await.unwrap_err();
        assert!(matches!(error, OpenError::TooLarge(_)), "{error}");
        assert_eq!(error.public().code, ErrorCode::PayloadTooLarge);
        incoming.refuse(error.public()).await;
        let refusal = within(DEADLINE, frames.next()).await.unwrap();
        assert_eq!(refusal.payload.first(), Some(&6), "a reset");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_that_was_received_can_still_be_refused() {
    let mut ends = Ends::shared().await;
    for by_drop in [false, true] {
        let mut opened = open_with(&ends, MEBIBYTE).await;
        let mut incoming = within(DEADLINE, ends.acceptor.next()).await.unwrap();
        within(DEADLINE, incoming.open()).await.unwrap();
        let expected = match by_drop {
            true => {
                drop(incoming);
                ErrorCode::Unavailable
            }
            false => {
                let error = agentbox_contracts::error::Error::not_found("environment");
                incoming.refuse(error).await;
                ErrorCode::NotFound
            }
        };
        let error = within(DEADLINE, opened.recv()).await.unwrap_err();
        assert_eq!(error.code, expected, "{error}");
    }
}
