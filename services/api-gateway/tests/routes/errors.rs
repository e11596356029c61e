//! What is wrong with a request, whichever route it is for.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::boxes::{idle, small};
use crate::support::caller::{Caller, send, someone};
use crate::support::system::{ARRIVAL_S, shared};

/// Where bodies are taken.
async fn with_bodies() -> Vec<(Method, String)> {
    let id = &idle().await.id;
    let at = |method: Method, path: &str| (method, path.to_owned());
    vec![
        at(Method::POST, "/auth/login"),
        at(Method::POST, "/auth/change-password"),
        at(Method::POST, "/auth/tickets"),
        at(Method::POST, "/api-keys"),
        at(Method::POST, "/environments"),
        at(Method::PATCH, &format!("/environments/{id}")),
        at(Method::POST, &format!("/environments/{id}/exec")),
    ]
}

#[tokio::test]
async fn a_body_that_is_not_json_or_no_body_of_the_route_is_400() {
    let caller = &idle().await.user.caller;
    for (method, path) in with_bodies().await {
        for (body, word) in [
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
            let message = answer.is_error(400, word);
            if body.contains("no_such_field") {
                assert!(message.starts_with("no_such_field: "), "{path}: {message}");
            }
        }
    }
}

#[tokio::test]
async fn a_body_of_another_type_or_of_none_is_415() {
    let caller = &idle().await.user.caller;
    for (method, path) in with_bodies().await {
        for content_type in [
            None,
            Some("text/plain"),
            Some("application/x-www-form-urlencoded"),
        ] {
            let mut request = caller.request(method.clone(), &path).body("{}");
            if let Some(content_type) = content_type {
                request = request.header("content-type", content_type);
            }
            send(request).await.is_error(415, "unsupported_media_type");
        }
    }
    let request = caller
        .request(Method::POST, "/environments")
        .header("content-type", "Application/JSON; charset=utf-8")
        .body(small().to_string());
    send(request).await.is(201);
}

/// Sends text as it is, and reads until the server closes, or for so long.
async fn raw(gateway: usize, text: &str, within: Duration) -> (String, Duration) {
    let caller = Caller::of(shared().await);
    let mut stream = TcpStream::connect(caller.host(gateway)).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let begun = Instant::now();
    let mut seen = Vec::new();
    // What arrived counts, whether the server closes or resets.
    let _ = tokio::time::timeout(within, stream.read_to_end(&mut seen)).await;
    (String::from_utf8_lossy(&seen).into_owned(), begun.elapsed())
}

#[tokio::test]
async fn a_body_that_is_too_long_is_413_before_it_is_sent() {
    let caller = &idle().await.user.caller;
    let token = caller.token.clone().unwrap();
    for (length, status) in [(1_048_577, "413"), (1_u64 << 40, "413")] {
        let head = format!(
            "POST /api/v1/environments HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        let (answer, took) = raw(0, &head, Duration::from_secs(2)).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert!(answer.contains("\"payload_too_large\""), "{answer}");
        assert!(took <= Duration::from_secs(3), "{took:?}");
    }
    // Without a declared length it is counted.
    let pieces = (0..20).map(|_| Ok::<_, std::io::Error>(vec![b' '; 64 * 1024]));
    let request = caller
        .request(Method::POST, "/environments")
        .header("content-type", "application/json")
        .body(reqwest::Body::wrap_stream(futures::stream::iter(pieces)));
    match request.send().await {
        Ok(answer) => assert_eq!(answer.status(), 413),
        // It was answered and closed while the rest was on its way.
        Err(error) => assert!(error.is_request() || error.is_body(), "{error}"),
    }
    let mut exact = small().to_string();
    exact.push_str(&" ".repeat(1_048_576 - exact.len()));
    let request = caller
        .request(Method::POST, "/environments")
        .header("content-type", "application/json")
        .body(exact);
    send(request).await.is(201);
}

#[tokio::test]
async fn a_method_that_a_path_does_not_take_is_405_with_those_it_takes() {
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
        for caller in [caller.clone(), caller.anonymous()] {
            let answer = send(caller.request(Method::PUT, &path)).await;
            answer.is_error(405, "method_not_allowed");
            let mut given: Vec<&str> = answer.header("allow").split(',').map(str::trim).collect();
            let mut expected: Vec<&str> = allowed.split(',').collect();
            given.sort_unstable();
            expected.sort_unstable();
            assert_eq!(given, expected, "{path}");
        }
        let answer = send(caller.request(Method::OPTIONS, &path)).await;
        assert!(answer.has("allow"));
        answer.is(204);
    }
}

#[tokio::test]
async fn a_path_that_is_none_is_404_in_the_one_shape() {
    let caller = &idle().await.user.caller;
    for path in [
        "",
        "/",
        "/nope",
        "/environments/",
        "/environments/a/b/c",
        "/auth",
    ] {
        caller.get(path).await.is_error(404, "not_found");
        caller
            .anonymous()
            .get(path)
            .await
            .is_error(404, "not_found");
    }
}

#[tokio::test]
async fn a_head_that_does_not_arrive_is_cut_off() {
    let (answer, took) = raw(
        0,
        "GET /api/v1/auth/me HTTP/1.1\r\nhost: x\r\nx-a: b",
        Duration::from_secs(20),
    )
    .await;
    assert!(
        took < Duration::from_secs(ARRIVAL_S + 3),
        "{took:?} {answer}"
    );
    assert!(took > Duration::from_secs(ARRIVAL_S - 1), "{took:?}");
    // Drop by drop is no better.
    let caller = Caller::of(shared().await);
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
        let closed = tokio::time::timeout(Duration::from_millis(1), stream.read(&mut byte)).await;
        if closed.is_ok() || stream.write_all(b"x-a: b\r\n").await.is_err() {
            break;
        }
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(ARRIVAL_S + 3), "{took:?}");
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_408() {
    let token = idle().await.user.caller.token.clone().unwrap();
    let text = format!(
        "POST /api/v1/environments HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: 100\r\nconnection: close\r\n\r\n{{"
    );
    let (answer, took) = raw(1, &text, Duration::from_secs(20)).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\"request_timeout\""), "{answer}");
    assert!(took < Duration::from_secs(ARRIVAL_S + 3), "{took:?}");
}

#[tokio::test]
async fn the_trace_of_the_caller_goes_on_and_every_other_is_new() {
    let caller = someone().await.caller;
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
async fn a_head_request_is_a_get_without_its_body() {
    let caller = someone().await.caller;
    let answer = send(caller.request(Method::HEAD, "/auth/me")).await;
    assert_eq!((answer.status, answer.text.as_str()), (200, ""));
    assert_eq!(answer.header("content-type"), "application/json");
}

#[tokio::test]
async fn nothing_is_cached_or_sniffed() {
    let caller = someone().await.caller;
    for answer in [
        caller.get("/auth/me").await,
        caller.get("/nope").await,
        caller.post("/api-keys", &json!({})).await,
    ] {
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("content-type"), "application/json");
    }
}
