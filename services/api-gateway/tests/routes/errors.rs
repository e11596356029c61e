//! Errors that every route answers in the same way, and the headers of every answer.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::boxes::{idle, small};
use crate::support::caller::{Caller, PASSWORD, new_user, send};
use crate::support::system::{ARRIVAL_S, shared};
use crate::support::{TIMEOUT, repeat_until_below};

/// When a request that does not arrive is over on the shared system.
const ARRIVAL_END: Duration = Duration::from_secs(ARRIVAL_S + 3);

/// The routes that accept a body, except those of administrators.
async fn routes_with_a_body() -> Vec<(Method, String)> {
    let id = &idle().await.id;
    let at = |method: Method, path: &str| (method, path.to_owned());
    vec![
        at(Method::POST, "/auth/login"),
        at(Method::POST, "/auth/change-password"),
        at(Method::POST, "/auth/tickets"),
        at(Method::POST, "/api-keys"),
        at(Method::PUT, "/registries/ghcr.io"),
        at(Method::POST, "/webhooks"),
        at(Method::POST, "/environments"),
        at(Method::PATCH, &format!("/environments/{id}")),
        at(Method::POST, &format!("/environments/{id}/exec")),
        at(Method::POST, &format!("/environments/{id}/executions")),
    ]
}

#[tokio::test]
async fn malformed_or_invalid_body_returns_400() {
    let caller = &idle().await.user.caller;
    for (method, path) in routes_with_a_body().await {
        for (body, code) in [
            ("{", "bad_request"),
            ("", "bad_request"),
            ("nonsense", "bad_request"),
            ("7", "validation_failed"),
            ("null", "validation_failed"),
            ("{\"no_such_field\":1}", "validation_failed"),
        ] {
            let request = caller
                .request(method.clone(), &path)
                .header("content-type", "application/json")
                .body(body);
            let answer = send(request).await;
            let message = answer.expect_error(400, code);
            if body.contains("no_such_field") {
                assert!(message.starts_with("no_such_field: "), "{path}: {message}");
            }
        }
    }
}

#[tokio::test]
async fn value_of_the_wrong_kind_returns_400_with_its_field() {
    let user = &idle().await.user.caller;
    let exec = format!("/environments/{}/exec", idle().await.id);
    for (field, value) in [
        ("output_encoding", json!(5)),
        ("output_encoding", json!({"utf8": null})),
        ("timeout", json!("30")),
        ("timeout", json!([30])),
    ] {
        let mut body = json!({"command": ["true"]});
        body[field] = value;
        let answer = user.post(&exec, &body).await;
        let message = answer.expect_error(400, "validation_failed");
        assert!(message.starts_with(&format!("{field}: ")), "{message}");
    }
    let body = json!({"command": ["true"], "timeout": 30.0});
    user.post(&exec, &body).await.expect_status(200);
}

#[tokio::test]
async fn body_without_json_content_type_returns_415() {
    let caller = &idle().await.user.caller;
    for (method, path) in routes_with_a_body().await {
        for content_type in [
            None,
            Some("text/plain"),
            Some("application/x-www-form-urlencoded"),
        ] {
            let mut request = caller.request(method.clone(), &path).body("{}");
            if let Some(content_type) = content_type {
                request = request.header("content-type", content_type);
            }
            send(request)
                .await
                .expect_error(415, "unsupported_media_type");
        }
    }
    let request = caller
        .request(Method::POST, "/environments")
        .header("content-type", "Application/JSON; charset=utf-8")
        .body(small().to_string());
    send(request).await.expect_status(201);
}

/// Sends raw text and reads until the server closes the connection, at most for `within`.
/// Returns the answer and the time that it took.
async fn raw(gateway: usize, text: &str, within: Duration) -> (String, Duration) {
    let caller = Caller::without_token_on(shared().await);
    let mut stream = TcpStream::connect(caller.host(gateway)).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let begun = Instant::now();
    let mut seen = Vec::new();
    // The server may close or reset the connection: the bytes that arrived are returned.
    let _ = tokio::time::timeout(within, stream.read_to_end(&mut seen)).await;
    (String::from_utf8_lossy(&seen).into_owned(), begun.elapsed())
}

#[tokio::test]
async fn body_above_its_limit_returns_413_before_it_is_read() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let token = caller.token.clone().unwrap();
    let path = format!("/{}", idle.id);
    for (path, length) in [
        (String::new(), 1_048_577),
        (String::new(), 1_u64 << 40),
        (format!("{path}/exec"), 4_194_305),
        (format!("{path}/executions"), 4_194_305),
    ] {
        let head = format!(
            "POST /api/v1/environments{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        // Nothing of the body is sent.
        let mut stream = TcpStream::connect(caller.host(0)).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let (answer, body) = read_answer(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(body.contains("\"payload_too_large\""), "{body}");
        assert!(answer.contains("\r\nconnection: close"), "{answer}");
    }
    // The server counts the bytes of a body without Content-Length.
    let pieces = (0..20).map(|_| Ok::<_, std::io::Error>(vec![b' '; 64 * 1024]));
    let request = caller
        .request(Method::POST, "/environments")
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(futures::stream::iter(pieces)));
    match request.send().await {
        Ok(answer) => assert_eq!(answer.status(), 413),
        // The server may close the connection while the client still sends.
        Err(error) => assert!(error.is_request() || error.is_body(), "{error}"),
    }
    let mut exact = small().to_string();
    exact.push_str(&" ".repeat(1_048_576 - exact.len()));
    let request = caller
        .request(Method::POST, "/environments")
        .header("content-type", "application/json")
        .body(exact);
    send(request).await.expect_status(201);
}

/// Reads one answer from a connection: its head and its body.
pub async fn read_answer(stream: &mut TcpStream) -> (String, String) {
    let mut seen = String::new();
    loop {
        if let Some((head, body)) = seen.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.unwrap().parse::<usize>().unwrap() {
                return (head.to_owned(), body.to_owned());
            }
        }
        let mut bytes = [0; 4096];
        let read = tokio::time::timeout(TIMEOUT, stream.read(&mut bytes)).await;
        let read = read.expect("the answer in time").unwrap();
        assert!(read > 0, "the connection ended after `{seen}`");
        seen.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
}

/// The head of a request whose credential is refused before its body is read.
pub fn refused_head(length: usize) -> String {
    format!(
        "POST /api/v1/environments HTTP/1.1\r\nhost: x\r\nauthorization: Bearer wrong\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}

#[tokio::test]
async fn request_refused_before_its_small_body_keeps_the_connection() {
    let caller = Caller::without_token_on(shared().await);
    let mut stream = TcpStream::connect(caller.host(0)).await.unwrap();
    for _ in 0..3 {
        let head = refused_head(2);
        stream.write_all(head.as_bytes()).await.unwrap();
        // The answer waits for the body.
        let mut byte = [0];
        let early = tokio::time::timeout(Duration::from_millis(100), stream.peek(&mut byte)).await;
        assert!(early.is_err(), "an answer before the body");
        stream.write_all(b"{}").await.unwrap();
        let (head, body) = read_answer(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
        assert!(!head.contains("connection: close"), "{head}");
        assert!(body.contains("\"unauthorized\""), "{body}");
    }
}

#[tokio::test]
async fn request_refused_before_its_large_body_closes_the_connection_and_says_so() {
    let caller = Caller::without_token_on(shared().await);
    // The client sends the whole body before it reads the answer.
    for length in [100_000, 4 << 20] {
        let mut stream = TcpStream::connect(caller.host(1)).await.unwrap();
        let mut request = refused_head(length).into_bytes();
        request.resize(request.len() + length, b' ');
        stream.write_all(&request).await.unwrap();
        let (head, body) = read_answer(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
        assert!(head.contains("\r\nconnection: close"), "{head}");
        assert!(body.contains("\"unauthorized\""), "{body}");
    }
}

#[tokio::test]
async fn head_that_cannot_be_read_is_refused_with_the_error_body() {
    let head = "GET /api/v1/health HTTP/1.1\r\nhost: x\r\n";
    let long = "x".repeat(70_000);
    let large = format!("x-a: {}\r\n", "y".repeat(400_000));
    let many: String = (0..150).map(|n| format!("x-{n}: y\r\n")).collect();
    for (text, status, code) in [
        (format!("{head}bad name: y\r\n\r\n"), 400, "bad_request"),
        ("nonsense\r\n\r\n".to_owned(), 400, "bad_request"),
        (
            format!("GET /{long} HTTP/1.1\r\nhost: x\r\n\r\n"),
            414,
            "uri_too_long",
        ),
        (format!("{head}{many}\r\n"), 431, "headers_too_large"),
        (format!("{head}{large}\r\n"), 431, "headers_too_large"),
    ] {
        let (answer, _) = raw(0, &text, TIMEOUT).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        for header in [
            "x-trace-id: ",
            "connection: close",
            "content-type: application/json",
        ] {
            assert!(head.contains(&format!("\r\n{header}")), "{head}");
        }
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"], code, "{body}");
        assert_eq!(body["code"], status, "{body}");
        assert!(!body["message"].as_str().unwrap().is_empty(), "{body}");
    }
}

#[tokio::test]
async fn unaccepted_method_returns_405_with_the_allow_header() {
    let caller = &idle().await.user.caller;
    let id = &idle().await.id;
    for (path, allowed) in [
        ("/auth/login".to_owned(), "POST"),
        ("/auth/me".to_owned(), "GET,HEAD"),
        ("/environments".to_owned(), "POST,GET,HEAD"),
        (format!("/environments/{id}"), "GET,HEAD,PATCH,DELETE"),
        (format!("/environments/{id}/exec"), "POST"),
        (format!("/environments/{id}/logs"), "GET,HEAD"),
        ("/api-keys".to_owned(), "POST,GET,HEAD"),
        ("/health".to_owned(), "GET,HEAD"),
    ] {
        for caller in [caller.clone(), caller.without_token()] {
            let answer = send(caller.request(Method::PUT, &path)).await;
            answer.expect_error(405, "method_not_allowed");
            let mut given: Vec<&str> = answer.header("allow").split(',').map(str::trim).collect();
            let mut expected: Vec<&str> = allowed.split(',').collect();
            given.sort_unstable();
            expected.sort_unstable();
            assert_eq!(given, expected, "{path}");
        }
        let answer = send(caller.request(Method::OPTIONS, &path)).await;
        assert!(answer.has_header("allow"));
        answer.expect_status(204);
    }
}

#[tokio::test]
async fn unknown_path_returns_404_with_the_error_body() {
    let caller = &idle().await.user.caller;
    for path in [
        "",
        "/",
        "/nope",
        "/environments/",
        "/environments/a/b/c",
        "/auth",
    ] {
        caller.get(path).await.expect_error(404, "not_found");
        caller
            .without_token()
            .get(path)
            .await
            .expect_error(404, "not_found");
    }
}

#[tokio::test]
async fn incomplete_head_returns_408_at_the_deadline() {
    repeat_until_below(ARRIVAL_END, async || {
        let (answer, took) = raw(
            0,
            "GET /api/v1/auth/me HTTP/1.1\r\nhost: x\r\nx-a: b",
            Duration::from_secs(20),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains("\r\nx-trace-id: "), "{answer}");
        assert!(answer.contains("x-frame-options: DENY\r\n"), "{answer}");
        assert!(answer.contains("\"request_timeout\""), "{answer}");
        assert!(took > Duration::from_secs(ARRIVAL_S - 1), "{took:?}");
        took
    })
    .await;
    // A client that sends header by header has the same deadline.
    let caller = Caller::without_token_on(shared().await);
    repeat_until_below(ARRIVAL_END, async || {
        let mut stream = TcpStream::connect(caller.host(1)).await.unwrap();
        let begun = Instant::now();
        stream
            .write_all(b"GET /api/v1/auth/me HTTP/1.1\r\n")
            .await
            .unwrap();
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        while begun.elapsed() < Duration::from_secs(20) {
            pace.tick().await;
            let mut byte = [0];
            let reading = stream.read(&mut byte);
            let closed = tokio::time::timeout(Duration::from_millis(1), reading).await;
            if closed.is_ok() || stream.write_all(b"x-a: b\r\n").await.is_err() {
                break;
            }
        }
        begun.elapsed()
    })
    .await;
}

#[tokio::test]
async fn incomplete_body_returns_408_at_the_deadline() {
    let token = idle().await.user.caller.token.clone().unwrap();
    let text = format!(
        "POST /api/v1/environments HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: 100\r\nconnection: close\r\n\r\n{{"
    );
    repeat_until_below(ARRIVAL_END, async || {
        let (answer, took) = raw(1, &text, Duration::from_secs(20)).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(answer.contains("\"request_timeout\""), "{answer}");
        took
    })
    .await;
}

#[tokio::test]
async fn trace_of_the_caller_is_continued_and_others_are_new() {
    let caller = new_user().await.caller;
    let trace = format!("{:032x}", rand::random::<u128>() | 1);
    let request = caller
        .request(Method::GET, "/auth/me")
        .header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
    assert_eq!(send(request).await.header("x-trace-id"), trace);
    let mut seen = std::collections::BTreeSet::new();
    for path in [
        "/auth/me",
        "/auth/me",
        "/nope",
        "/health/live",
        "/environments",
    ] {
        assert!(seen.insert(caller.get(path).await.header("x-trace-id").to_owned()));
    }
}

#[tokio::test]
async fn head_request_is_answered_like_get_without_the_body() {
    let caller = new_user().await.caller;
    let answer = send(caller.request(Method::HEAD, "/auth/me")).await;
    assert_eq!((answer.status, answer.text.as_str()), (200, ""));
    assert_eq!(answer.header("content-type"), "application/json");
}

#[tokio::test]
async fn answers_forbid_caching_and_sniffing() {
    let user = new_user().await;
    let caller = &user.caller;
    for answer in [
        caller.get("/auth/me").await,
        caller.get("/nope").await,
        // These hold secrets.
        caller.login(&user.username, PASSWORD).await,
        caller.post("/api-keys", &json!({})).await,
    ] {
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(answer.header("content-type"), "application/json");
    }
}

#[tokio::test]
async fn answer_over_tls_of_a_trusted_proxy_requires_tls() {
    let caller = new_user().await.caller;
    let name = "strict-transport-security";
    for path in ["/auth/me", "/nope"] {
        assert!(!caller.get(path).await.has_header(name), "{path}");
        let request = caller.request(Method::GET, path);
        let answer = send(request.header("x-forwarded-proto", "https")).await;
        assert_eq!(answer.header(name), "max-age=31536000", "{path}");
    }
}
