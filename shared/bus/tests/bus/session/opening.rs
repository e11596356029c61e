//! Opening a session: from the request to the first message.

use std::time::{Duration, Instant};

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{FromBox, ToBox};
use agentbox_contracts::subjects::{self, HEADER_DEADLINE};
use agentbox_testing::repeat_until_below;
use async_nats::HeaderMap;

use super::last;
use crate::support::{DEADLINE, Ends, TestSession, ToOpener, ToServer, cluster, request, within};

#[tokio::test(flavor = "multi_thread")]
async fn unserved_session_is_unavailable_at_once() {
    let ends = Ends::shared().await;
    repeat_until_below(Duration::from_millis(500), async || {
        let started = Instant::now();
        let mut session: ToServer = ends
            .gateway
            .open_session::<TestSession>(&cluster(), &request(), DEADLINE)
            .await
            .unwrap();
        let error = session.recv().await.unwrap_err();
        let took = started.elapsed();
        assert_eq!(error.code, ErrorCode::Unavailable);
        took
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusal_is_the_first_result() {
    let mut ends = Ends::shared().await;
    let refusal = Error::new(ErrorCode::NotRunning, "the environment is not running");
    let mut session = ends.open().await;
    let incoming = ends.acceptor.next().await.unwrap();
    incoming.refuse(refusal.clone()).await;
    assert_eq!(within(DEADLINE, session.recv()).await.unwrap_err(), refusal);

    repeat_until_below(Duration::from_secs(1), async || {
        let mut session = ends.open().await;
        drop(ends.acceptor.next().await.unwrap());
        let started = Instant::now();
        let error = within(DEADLINE, session.recv()).await.unwrap_err();
        let took = started.elapsed();
        assert_eq!(error.code, ErrorCode::Unavailable);
        took
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_server_times_out_at_deadline() {
    let mut ends = Ends::shared().await;
    let mut session: ToServer = ends
        .gateway
        .open_session::<TestSession>(&ends.cluster, &request(), Duration::from_millis(300))
        .await
        .unwrap();
    // The request stays unanswered. After its deadline the acceptor does not return it.
    let (received, _unanswered) = tokio::join!(
        within(DEADLINE, session.recv()),
        tokio::time::timeout(DEADLINE, ends.acceptor.next())
    );
    assert_eq!(received.unwrap_err().code, ErrorCode::Timeout);
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_server_sends_accept() {
    let mut ends = Ends::shared().await;
    repeat_until_below(Duration::from_millis(500), async || {
        let (mut opened, mut served) = ends.session().await;
        // The opener can send only after the accept frame, from which it learns its peer.
        let started = Instant::now();
        opened.send(ToBox::End).await.unwrap();
        let received = within(DEADLINE, served.recv()).await.unwrap();
        let took = started.elapsed();
        assert_eq!(received, Some(ToBox::End));
        took
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn session_request_past_its_deadline_is_not_served() {
    let mut ends = Ends::shared().await;
    let mut headers = HeaderMap::new();
    headers.insert(HEADER_DEADLINE, "1");
    let reply = subjects::session("api-gateway", ends.gateway.instance(), u64::MAX);
    ends.gateway
        .client()
        .publish_with_reply_and_headers(ends.subject(), reply, headers, "late".into())
        .await
        .unwrap();
    ends.gateway.client().flush().await.unwrap();
    // `session` asserts that it accepts its own request, and not the late one.
    let (mut opened, served) = ends.session().await;
    let finish = tokio::spawn(served.finish(last()));
    assert_eq!(opened.recv().await.unwrap(), Some(last()));
    finish.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn opener_dropped_early_ends_server_session() {
    let mut ends = Ends::shared().await;
    repeat_until_below(Duration::from_secs(1), async || {
        drop(ends.open().await);
        let served: ToOpener = ends.acceptor.next().await.unwrap().accept();
        let started = Instant::now();
        within(DEADLINE, served.closed()).await;
        started.elapsed()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_server_loses_no_session_request() {
    let mut ends = Ends::shared().await;
    let mut staying = ends
        .proxy
        .accept_sessions::<TestSession>(&ends.cluster, "exec-proxy")
        .await
        .unwrap();
    let stays = tokio::spawn(async move {
        while let Some(incoming) = staying.next().await {
            let served: ToOpener = incoming.accept();
            let _ = served.finish(last()).await;
        }
    });
    let (gateway, cluster) = (ends.gateway.clone(), ends.cluster.clone());
    let opener = tokio::spawn(async move {
        for n in 0..400 {
            let mut session: ToServer = gateway
                .open_session::<TestSession>(&cluster, &request(), DEADLINE)
                .await
                .unwrap();
            let answer = session.recv().await;
            assert_eq!(answer, Ok(Some(last())), "session {n}");
        }
    });
    for n in 0.. {
        if n == 50 {
            ends.acceptor.stop().await;
        }
        let Some(incoming) = within(DEADLINE, ends.acceptor.next()).await else {
            break;
        };
        let served: ToOpener = incoming.accept();
        served.finish(last()).await.unwrap();
    }
    within(3 * DEADLINE, opener).await.unwrap();
    stays.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_and_foreign_frames_are_ignored() {
    let mut ends = Ends::shared().await;
    let (mut opened, mut served) = ends.session().await;
    served.send(FromBox::LogsLost(1)).await.unwrap();
    assert!(opened.recv().await.unwrap().is_some());
    // A reset and a data frame that another process sends, and bytes that are no frames.
    let stranger = subjects::session("exec-proxy", ends.proxy.instance(), u64::MAX);
    let mut data = vec![2u8];
    data.extend_from_slice(&2u64.to_be_bytes());
    data.extend_from_slice(&[0; 16]);
    data.extend_from_slice(&[7, b'x']);
    let mut reset = vec![6u8; 1];
    reset.extend_from_slice(&[0; 24]);
    for n in 1..3 {
        let victim = subjects::session("api-gateway", ends.gateway.instance(), n);
        for frame in [data.clone(), reset.clone(), vec![], vec![0xff; 3]] {
            ends.proxy
                .client()
                .publish_with_reply(victim.clone(), stranger.clone(), frame.into())
                .await
                .unwrap();
        }
        // As JetStream delivers: with a reply subject that is no session, or without one.
        for frame in [data.clone(), reset.clone()] {
            ends.proxy
                .client()
                .publish_with_reply(victim.clone(), "abx.v1.probe", frame.into())
                .await
                .unwrap();
        }
        let client = ends.proxy.client();
        client.publish(victim, data.clone().into()).await.unwrap();
    }
    ends.proxy.client().flush().await.unwrap();
    served.send(FromBox::LogsLost(2)).await.unwrap();
    assert_eq!(
        within(DEADLINE, opened.recv()).await.unwrap(),
        Some(FromBox::LogsLost(2))
    );
    opened.send(ToBox::End).await.unwrap();
    assert_eq!(served.recv().await.unwrap(), Some(ToBox::End));
}
