//! From the request to the first word.

use std::time::{Duration, Instant};

use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{FromBox, OPEN, ToBox};
use agentbox_contracts::subjects::{self, HEADER_DEADLINE};
use async_nats::HeaderMap;

use super::last;
use crate::support::{DEADLINE, Ends, ToOpener, ToServer, cluster, within};

#[tokio::test(flavor = "multi_thread")]
async fn nobody_serving_is_known_at_once() {
    let ends = Ends::shared().await;
    let subject = subjects::exec_rpc(&cluster(), OPEN);
    let begun = Instant::now();
    let mut session: ToServer = ends
        .gateway
        .open_session(subject, &"open", DEADLINE)
        .await
        .unwrap();
    let error = session.recv().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(begun.elapsed() < Duration::from_millis(500));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_the_first_word() {
    let mut ends = Ends::shared().await;
    let refusal = Error::new(ErrorCode::NotRunning, "the environment is not running");
    let mut session = ends.open().await;
    let incoming = ends.acceptor.next().await.unwrap();
    incoming.refuse(refusal.clone()).await;
    assert_eq!(within(DEADLINE, session.recv()).await.unwrap_err(), refusal);

    let mut session = ends.open().await;
    drop(ends.acceptor.next().await.unwrap());
    let error = within(Duration::from_secs(1), session.recv())
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_within_the_deadline_is_a_timeout() {
    let mut ends = Ends::shared().await;
    let mut session: ToServer = ends
        .gateway
        .open_session(ends.subject.clone(), &"open", Duration::from_millis(300))
        .await
        .unwrap();
    let _unanswered = ends.acceptor.next().await.unwrap();
    let error = within(DEADLINE, session.recv()).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Timeout);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_busy_says_that_it_has_the_session() {
    let mut ends = Ends::shared().await;
    let (mut opened, mut served) = ends.session().await;
    // The opener may send only when it knows its peer.
    let begun = Instant::now();
    opened.send(ToBox::Eof).await.unwrap();
    assert_eq!(
        within(DEADLINE, served.recv()).await.unwrap(),
        Some(ToBox::Eof)
    );
    assert!(begun.elapsed() < Duration::from_millis(500));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_nobody_waits_for_any_more_is_not_served() {
    let mut ends = Ends::shared().await;
    let mut headers = HeaderMap::new();
    headers.insert(HEADER_DEADLINE, "1");
    let reply = subjects::session("api-gateway", ends.gateway.instance(), u64::MAX);
    ends.gateway
        .client()
        .publish_with_reply_and_headers(ends.subject.clone(), reply, headers, "\"late\"".into())
        .await
        .unwrap();
    ends.gateway.client().flush().await.unwrap();
    // `session` asserts that what it accepts is its own request.
    let (mut opened, served) = ends.session().await;
    let finish = tokio::spawn(served.finish(last()));
    assert_eq!(opened.recv().await.unwrap(), Some(last()));
    finish.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opener_that_gives_up_early_ends_the_session_of_the_server() {
    let mut ends = Ends::shared().await;
    drop(ends.open().await);
    let served: ToOpener = ends.acceptor.next().await.unwrap().accept();
    within(Duration::from_secs(1), served.closed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_opened_without_loss_while_one_of_two_servers_leaves() {
    let mut ends = Ends::shared().await;
    let mut staying = ends
        .proxy
        .accept_sessions(ends.subject.clone(), "exec-proxy")
        .await
        .unwrap();
    let stays = tokio::spawn(async move {
        while let Some(incoming) = staying.next().await {
            let served: ToOpener = incoming.accept();
            let _ = served.finish(last()).await;
        }
    });
    let (gateway, subject) = (ends.gateway.clone(), ends.subject.clone());
    let opener = tokio::spawn(async move {
        for n in 0..400 {
            let mut session: ToServer = gateway
                .open_session(subject.clone(), &"open", Duration::from_secs(2))
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
async fn what_is_no_frame_or_comes_from_a_stranger_is_ignored() {
    let mut ends = Ends::shared().await;
    let (mut opened, mut served) = ends.session().await;
    served.send(FromBox::LogsLost(1)).await.unwrap();
    assert!(opened.recv().await.unwrap().is_some());
    // A reset and a data frame as a peer would send them, but from elsewhere; and noise.
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
    }
    ends.proxy.client().flush().await.unwrap();
    served.send(FromBox::LogsLost(2)).await.unwrap();
    assert_eq!(
        within(DEADLINE, opened.recv()).await.unwrap(),
        Some(FromBox::LogsLost(2))
    );
    opened.send(ToBox::Eof).await.unwrap();
    assert_eq!(served.recv().await.unwrap(), Some(ToBox::Eof));
}
