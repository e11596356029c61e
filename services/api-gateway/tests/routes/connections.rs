//! The limits of client connections, and of what one user has open on them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use agentbox_testing::{Options, System};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::errors::read_answer;
use crate::support::answer::Answer;
use crate::support::caller::{Caller, admin_of, new_user, new_user_with_role};
use crate::support::sse::Events;
use crate::support::system::{ARRIVAL_S, options, shared, unlimited};
use crate::support::{TIMEOUT, eventually};

/// Connections of [`limited`], far fewer than the hostile ones.
const CAPACITY: usize = 150;
/// Those of one network.
const PER_NETWORK: usize = 60;
/// Those of one network without a valid credential.
const UNAUTHENTICATED: usize = 20;

/// The variable with the number of hostile connections. With it the gateway has its default limits.
const CONNECTIONS: &str = "AGENTBOX_TEST_CONNECTIONS";

/// The sessions of one user.
const SESSIONS: usize = 5;

type Address = [u8; 4];

/// The only trusted proxy of [`limited`].
const PROXY: Address = [127, 0, 0, 1];

static LIMITED: OnceCell<System> = OnceCell::const_new();

async fn limited() -> &'static System {
    LIMITED
        .get_or_init(async || {
            let options =
                unlimited(options()).env("api-gateway", "AGENTBOX_TRUSTED_PROXIES", "127.0.0.1");
            let options = match connections() {
                Some(_) => options,
                None => low_limits(options),
            };
            System::start(options).await.unwrap()
        })
        .await
}

/// The number of hostile connections against the default limits; `None`: the limits are low.
fn connections() -> Option<usize> {
    let number = std::env::var(CONNECTIONS).ok()?;
    Some(number.parse().expect(CONNECTIONS))
}

fn low_limits(options: Options) -> Options {
    options
        .env("api-gateway", "AGENTBOX_HEADER_TIMEOUT", "12")
        .env("api-gateway", "AGENTBOX_WRITE_TIMEOUT", "4")
        .env(
            "api-gateway",
            "AGENTBOX_MAX_SESSIONS_PER_USER",
            SESSIONS.to_string(),
        )
        .env(
            "api-gateway",
            "AGENTBOX_MAX_CONNECTIONS",
            CAPACITY.to_string(),
        )
        .env(
            "api-gateway",
            "AGENTBOX_MAX_CONNECTIONS_PER_NETWORK",
            PER_NETWORK.to_string(),
        )
        .env(
            "api-gateway",
            "AGENTBOX_MAX_UNAUTHENTICATED_CONNECTIONS_PER_NETWORK",
            UNAUTHENTICATED.to_string(),
        )
}

/// Connects to the first gateway from this address.
async fn connect(caller: &Caller, from: Address) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    let to: SocketAddr = caller.host(0).parse().unwrap();
    socket.connect(to).await.unwrap()
}

fn request(path: &str, headers: &str) -> String {
    format!("GET /api/v1{path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n")
}

/// Sends a request, and returns the head of its answer. `None`: the connection was closed.
async fn ask(stream: &mut TcpStream, headers: &str) -> Option<String> {
    let text = request("/health/live", headers);
    stream.write_all(text.as_bytes()).await.ok()?;
    let mut byte = [0];
    let peeked = timeout(TIMEOUT, stream.peek(&mut byte)).await.unwrap();
    if !matches!(peeked, Ok(1)) {
        return None;
    }
    Some(read_answer(stream).await.0)
}

/// The beginnings of connections that send no request: none, a part of the preface of HTTP/2, and
/// HTTP/2 without a stream.
fn silent_beginnings() -> [Vec<u8>; 3] {
    let mut idle = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // An empty SETTINGS frame.
    idle.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    [Vec::new(), b"PRI * HTTP/2.0\r\n".to_vec(), idle]
}

#[tokio::test]
async fn connections_of_one_network_delay_no_other_network() {
    const HOSTILE: Address = [127, 0, 0, 66];
    let caller = Caller::without_token_on(limited().await);
    let beginnings = silent_beginnings();
    let mut held = Vec::new();
    let connections = connections().unwrap_or(CAPACITY * 2);
    for number in 0..connections {
        let mut stream = connect(&caller, HOSTILE).await;
        // The gateway may have closed it.
        let _ = stream.write_all(&beginnings[number % 3]).await;
        held.push(stream);
    }
    let forwarded = "x-forwarded-for: 203.0.113.5\r\n";
    for (from, headers) in [([127, 0, 0, 77], ""), (PROXY, forwarded)] {
        let mut fastest = Duration::MAX;
        for _ in 0..5 {
            let begun = Instant::now();
            let mut stream = connect(&caller, from).await;
            let head = ask(&mut stream, headers).await.unwrap();
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            fastest = fastest.min(begun.elapsed());
        }
        println!("beside {connections} connections an answer to {from:?} takes {fastest:?}");
        assert!(fastest < Duration::from_millis(100), "{fastest:?}");
    }
    // The connections end without a request, and their network is served again.
    for mut stream in held {
        let mut rest = Vec::new();
        // The connection may be reset.
        let ended = timeout(Duration::from_secs(25), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "a connection without a request stays open");
    }
    eventually("the network is served again", async || {
        let mut stream = connect(&caller, HOSTILE).await;
        let head = ask(&mut stream, "").await?;
        head.starts_with("HTTP/1.1 200 ").then_some(())
    })
    .await;
}

#[tokio::test]
async fn connection_beyond_the_limit_of_its_network_is_refused_with_the_error_body() {
    const NETWORK: Address = [127, 0, 0, 88];
    let caller = Caller::without_token_on(limited().await);
    let mut held = Vec::new();
    for _ in 0..UNAUTHENTICATED {
        let mut stream = connect(&caller, NETWORK).await;
        assert!(ask(&mut stream, "").await.is_some());
        held.push(stream);
    }
    let (head, body) = eventually("a refusal", async || {
        let mut stream = connect(&caller, NETWORK).await;
        let text = request("/health/live", "");
        stream.write_all(text.as_bytes()).await.ok()?;
        let mut byte = [0];
        let peeked = timeout(TIMEOUT, stream.peek(&mut byte)).await.unwrap();
        // Other tests may use all refusals that are answered.
        matches!(peeked, Ok(1)).then_some(())?;
        Some(read_answer(&mut stream).await)
    })
    .await;
    assert!(head.starts_with("HTTP/1.1 429 "), "{head}");
    for header in ["x-trace-id: ", "retry-after: ", "connection: close"] {
        assert!(head.contains(&format!("\r\n{header}")), "{head}");
    }
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["error"], "rate_limited", "{body}");
    drop(held);
    eventually("the network is served again", async || {
        let mut stream = connect(&caller, NETWORK).await;
        let head = ask(&mut stream, "").await?;
        head.starts_with("HTTP/1.1 200 ").then_some(())
    })
    .await;
}

#[tokio::test]
async fn connections_through_a_proxy_count_by_the_forwarded_address() {
    let system = limited().await;
    let user = new_user_with_role(&admin_of(system).await, "user").await;
    let caller = &user.caller;
    let from = |last: u8| format!("x-forwarded-for: 198.51.100.{last}\r\n");
    let status = async |stream: &mut TcpStream, headers: &str| {
        let head = ask(stream, headers).await.unwrap();
        head[9..12].to_owned()
    };
    let mut held = Vec::new();
    for _ in 0..UNAUTHENTICATED {
        let mut stream = connect(caller, PROXY).await;
        assert_eq!(status(&mut stream, &from(1)).await, "200");
        held.push(stream);
    }
    let mut stream = connect(caller, PROXY).await;
    assert_eq!(status(&mut stream, &from(1)).await, "429");
    // The proxy's connection is kept for the requests of other clients.
    assert_eq!(status(&mut stream, &from(2)).await, "200");
    // A connection that carries another client's request gives its place back.
    assert_eq!(status(&mut held[0], &from(2)).await, "200");
    assert_eq!(status(&mut stream, &from(1)).await, "200");
    // A valid credential gives the place of an unauthenticated connection back.
    let token = caller.token.clone().unwrap();
    let text = format!("{}authorization: Bearer {token}\r\n", from(1));
    let text = request("/auth/me", &text);
    stream.write_all(text.as_bytes()).await.unwrap();
    let (head, _) = read_answer(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let mut another = connect(caller, PROXY).await;
    assert_eq!(status(&mut another, &from(1)).await, "200");
}

#[tokio::test]
async fn streams_of_one_user_are_limited() {
    let system = limited().await;
    let admin = admin_of(system).await;
    let user = new_user_with_role(&admin, "user").await.caller;
    let other = new_user_with_role(&admin, "user").await.caller;
    let path = "/events?follow=true";
    let mut open = Vec::new();
    for _ in 0..SESSIONS {
        open.push(Events::resume(&user, 0, path, None).await);
    }
    let refused = Events::try_open(&user, 0, path, None).await.err().unwrap();
    refused.expect_error(429, "rate_limited");
    Events::resume(&other, 0, path, None).await;
    user.get_on(0, "/auth/me").await.expect_status(200);
    open.pop();
    eventually("a stream of the user", async || {
        Events::try_open(&user, 0, path, None).await.ok()
    })
    .await;
}

fn http2() -> reqwest::Client {
    reqwest::Client::builder()
        .http2_prior_knowledge()
        .build()
        .unwrap()
}

#[tokio::test]
async fn idle_http2_connection_ends_and_one_with_an_open_request_does_not() {
    let caller = Caller::without_token_on(shared().await);
    let mut stream = connect(&caller, PROXY).await;
    let [_, _, beginning] = silent_beginnings();
    stream.write_all(&beginning).await.unwrap();
    let begun = Instant::now();
    let mut seen = Vec::new();
    let ended = timeout(Duration::from_secs(20), stream.read_to_end(&mut seen)).await;
    assert!(ended.is_ok(), "an idle connection stays open");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(ARRIVAL_S + 8), "{took:?}");
    assert!(took > Duration::from_secs(ARRIVAL_S - 1), "{took:?}");

    let user = new_user().await.caller;
    let open = http2()
        .get(user.url(0, "/events?follow=true"))
        .bearer_auth(user.token.clone().unwrap());
    let mut open = open.send().await.unwrap();
    assert_eq!(open.status(), 200);
    let next = timeout(Duration::from_secs(ARRIVAL_S * 2 + 4), open.chunk()).await;
    assert!(next.is_err(), "the stream ended: {next:?}");
}

#[tokio::test]
async fn http2_connection_of_a_client_that_allows_no_part_of_its_answer_ends() {
    let caller = Caller::without_token_on(limited().await);
    let mut stream = connect(&caller, [127, 0, 0, 99]).await;
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS: an initial window of 0 bytes.
    bytes.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
    let path = b"/api/v1/health/live";
    // The method GET, the scheme http, a path and an authority (RFC 7541).
    let mut head = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    head.extend(path);
    head.extend([0x01, 1, b'x']);
    // HEADERS of stream 1, which end the head and the stream.
    let length = u8::try_from(head.len()).unwrap();
    bytes.extend([0, 0, length, 1, 5, 0, 0, 0, 1]);
    bytes.extend(head);
    stream.write_all(&bytes).await.unwrap();
    let begun = Instant::now();
    let mut seen = Vec::new();
    // The gateway's first ping would be later.
    let ended = timeout(Duration::from_secs(25), stream.read_to_end(&mut seen)).await;
    assert!(
        ended.is_ok(),
        "a connection with an unread answer stays open"
    );
    assert!(begun.elapsed() > Duration::from_secs(3));
}

#[tokio::test]
async fn large_head_over_http2_returns_431_with_the_error_body() {
    let caller = Caller::without_token_on(shared().await);
    let request = http2()
        .get(caller.url(0, "/health/live"))
        .header("x-a", "y".repeat(20_000));
    let response = request.send().await.unwrap();
    assert!(response.headers().contains_key("x-trace-id"));
    assert_eq!(response.status(), 431);
    let body: serde_json::Value = response.json().await.unwrap();
    assert_eq!(body["error"], "headers_too_large", "{body}");
    let small = http2().get(caller.url(0, "/health/live"));
    let answer = Answer::read(small.send().await.unwrap()).await;
    answer.expect_status(200);
}
