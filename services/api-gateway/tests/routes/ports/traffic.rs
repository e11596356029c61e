//! Many and large requests to ports, streams, and WebSockets, with the default limits.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::join_all;
use futures::stream;
use reqwest::{Body, Method, RequestBuilder, StatusCode};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::support::site::{Preview, Site};
use crate::support::system::with_default_limits;
use crate::support::{TIMEOUT, repeat_until_below};

/// Requests that are open at once.
const TOGETHER: usize = 200;
/// How soon an open connection ends after its preview.
const END: Duration = Duration::from_secs(2);
/// The variable with the size of a large body, in MiB.
const TRANSFER: &str = "AGENTBOX_TEST_TRANSFER_MIB";
/// The bytes of a piece of content, as in the server.
const PIECE: usize = 64 << 10;

/// A request to a preview, with its token.
fn visit(site: &Site, preview: &Preview, path: &str) -> RequestBuilder {
    let caller = &site.user.caller;
    let gateway = caller.host(caller.next_gateway());
    reqwest::Client::new()
        .get(format!("http://{gateway}/{path}"))
        .header("host", preview.host())
        .header("x-agentbox-preview-token", preview.token.as_ref().unwrap())
}

#[tokio::test]
async fn two_hundred_requests_at_once_are_answered() {
    let site = Site::start(with_default_limits().await).await;
    let preview = site.preview(false).await;
    let path = format!("together?{TOGETHER}");
    let requests = (0..TOGETHER).map(|number| match number % 2 {
        0 => site.request(Method::GET, &path),
        _ => visit(&site, &preview, &path),
    });
    // The server answers when it has received all of them.
    let answers = join_all(requests.map(async |request| {
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }))
    .await;
    for answer in answers {
        assert_eq!(answer, (StatusCode::OK, "met".to_owned()));
    }
}

/// The piece of the content with this number. All are different.
fn piece(number: usize) -> Bytes {
    (number as u64).to_le_bytes().repeat(PIECE / 8).into()
}

async fn upload(site: &Site, pieces: usize) -> String {
    let content = (0..pieces).map(|number| Ok::<_, io::Error>(piece(number)));
    let answer = site
        .request(Method::PUT, "content")
        .header("content-length", (pieces * PIECE).to_string())
        .body(Body::wrap_stream(stream::iter(content)))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    answer.text().await.unwrap()
}

async fn download(site: &Site, pieces: usize) -> String {
    let request = site.request(Method::GET, &format!("content?{pieces}"));
    let mut answer = request.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let mut sum = Sha256::new();
    while let Some(chunk) = answer.chunk().await.unwrap() {
        sum.update(&chunk);
    }
    hex_of(sum)
}

fn hex_of(sum: Sha256) -> String {
    let sum: [u8; 32] = sum.finalize().into();
    sum.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn large_bodies_pass_unchanged_in_both_directions_at_once() {
    let mib: usize = match std::env::var(TRANSFER) {
        Ok(number) => number.parse().expect(TRANSFER),
        Err(_) => 64,
    };
    let pieces = (mib << 20) / PIECE;
    let mut sum = Sha256::new();
    for number in 0..pieces {
        sum.update(piece(number));
    }
    let expected = hex_of(sum);
    let site = Site::start(with_default_limits().await).await;
    let (uploaded, downloaded) = tokio::join!(upload(&site, pieces), download(&site, pieces));
    assert_eq!(uploaded, expected);
    assert_eq!(downloaded, expected);
}

/// Reads a stream until it has sent `text`.
async fn read_until(stream: &mut reqwest::Response, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        let chunk = timeout(TIMEOUT, stream.chunk()).await;
        let chunk = chunk.expect("an event in time").unwrap();
        let chunk = chunk.expect("the stream is open");
        seen.push_str(std::str::from_utf8(&chunk).unwrap());
    }
}

#[tokio::test]
async fn server_sent_events_arrive_while_their_stream_is_open() {
    let site = Site::start(with_default_limits().await).await;
    let preview = site.preview(false).await;
    for request in [
        site.request(Method::GET, "events"),
        visit(&site, &preview, "events"),
    ] {
        let mut events = request.send().await.unwrap();
        assert_eq!(events.headers()["content-type"], "text/event-stream");
        read_until(&mut events, "data: begun\n\n").await;
        site.write_page("next").await;
        read_until(&mut events, "data: changed\n\n").await;
    }
}

/// Opens a WebSocket through a preview, and receives a message of it.
async fn live(site: &Site, preview: &Preview) -> WebSocketStream<MaybeTlsStream<TcpStream>> {
    let gateway = site.user.caller.host(0);
    let mut request = format!("ws://{gateway}/live")
        .into_client_request()
        .unwrap();
    let headers = request.headers_mut();
    headers.insert("host", preview.host().parse().unwrap());
    let token = preview.token.as_ref().unwrap();
    headers.insert("x-agentbox-preview-token", token.parse().unwrap());
    let (mut socket, _) = connect_async(request).await.unwrap();
    site.write_page("next").await;
    let message = timeout(TIMEOUT, socket.next()).await.unwrap();
    assert_eq!(message.unwrap().unwrap(), Message::text("reload"));
    socket
}

/// Waits for the end of a WebSocket, and returns how long it took.
async fn end_of(mut socket: WebSocketStream<MaybeTlsStream<TcpStream>>) -> Duration {
    let begun = Instant::now();
    let end = timeout(TIMEOUT, socket.next()).await;
    let end = end.expect("the WebSocket ends with its preview");
    let took = begun.elapsed();
    assert!(matches!(end, None | Some(Err(_))), "{end:?}");
    took
}

#[tokio::test]
async fn websocket_of_a_preview_ends_with_the_preview_its_creators_key_and_its_environment() {
    let system = with_default_limits().await;
    let site = Site::start(system).await;
    repeat_until_below(END, async || {
        let deleted = site.preview(false).await;
        let socket = live(&site, &deleted).await;
        site.delete_preview(&deleted).await;
        end_of(socket).await
    })
    .await;

    repeat_until_below(END, async || {
        let (key, holder) = site.user.key(json!({})).await;
        let path = format!("/environments/{}/previews", site.id);
        let created = holder.post(&path, &json!({"port": 8000})).await;
        let of_key = Preview::read(&created.expect_status(201));
        let socket = live(&site, &of_key).await;
        let revoked = site.user.caller.delete(&format!("/api-keys/{key}")).await;
        revoked.expect_status(204);
        end_of(socket).await
    })
    .await;

    repeat_until_below(END, async || {
        let site = Site::start(system).await;
        let of_environment = site.preview(false).await;
        let socket = live(&site, &of_environment).await;
        let path = format!("/environments/{}", site.id);
        let ended = site.user.caller.delete(&path).await;
        assert!(ended.status < 300, "{ended:?}");
        end_of(socket).await
    })
    .await;
}
