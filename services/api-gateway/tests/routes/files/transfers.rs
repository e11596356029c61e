//! Transfers that are conditional, aborted, slow or cut short.

use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use reqwest::{Body, Method};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{content, directory, expect, metadata, modest, put, request, run};
use crate::errors::read_answer;
use crate::support::answer::check_head;
use crate::support::boxes::OwnedEnvironment;
use crate::support::caller::Caller;
use crate::support::{TIMEOUT, eventually};

/// The size of a file that no buffer on its way holds.
const LARGE: usize = 1 << 30;

/// Sends the head of an upload that waits for `100 Continue`.
async fn begin_upload(caller: &Caller, path: &str, headers: &str) -> TcpStream {
    let gateway = caller.host(caller.next_gateway());
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    let token = caller.token.as_deref().unwrap();
    let head = format!(
        "PUT /api/v1{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\
         expect: 100-continue\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn read_continue(stream: &mut TcpStream) {
    let mut answer = *b"HTTP/1.1 ??? Continue\r\n\r\n";
    let read = timeout(TIMEOUT, stream.read_exact(&mut answer)).await;
    read.expect("an answer in time").unwrap();
    assert_eq!(&answer, b"HTTP/1.1 100 Continue\r\n\r\n");
}

/// The head of the next answer.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(TIMEOUT, stream.read_u8()).await;
        head.push(byte.expect("an answer in time").unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn body_is_asked_for_after_the_authorization_and_the_conditions() {
    let owned = modest().await;
    let caller = &owned.user.caller;
    let path = content(owned, &format!("{}/file", directory()));
    let stranger = caller.with_token("wrong");
    let huge = format!("content-length: {}\r\n", 1_u64 << 50);
    let length = "content-length: 3\r\n";
    let other = format!("{length}if-match: \"other\"\r\n");
    let below = content(owned, "/dev/null/file");
    for (caller, path, headers, status) in [
        (&stranger, &path, length, "401"),
        (caller, &path, other.as_str(), "412"),
        (caller, &below, length, "409"),
        // The file system has no room for it.
        (caller, &path, huge.as_str(), "507"),
    ] {
        let mut stream = begin_upload(caller, path, headers).await;
        let head = read_head(&mut stream).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    }
    for (headers, body) in [
        (length, "new"),
        ("transfer-encoding: chunked\r\n", "3\r\nnew\r\n0\r\n\r\n"),
    ] {
        // Each file is new: the answer to a replacement has no length.
        let path = content(owned, &format!("{}/file", directory()));
        let mut stream = begin_upload(caller, &path, headers).await;
        read_continue(&mut stream).await;
        stream.write_all(body.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 201 "), "{head}");
        assert_eq!(caller.get(&path).await.text, "new");
    }
}

/// Asserts that a directory has one file, with this content.
async fn expect_only_file(owned: &OwnedEnvironment, root: &str, text: &str) {
    let seen = format!("ls -A {root} && cat {root}/file");
    eventually("one file with its old content", async || {
        let reply = owned.user.caller.sh(&owned.id, &seen).await;
        (reply["stdout"] == format!("file\n{text}")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn aborted_upload_leaves_the_old_file_and_no_other() {
    let owned = modest().await;
    let caller = &owned.user.caller;
    let root = directory();
    let path = content(owned, &format!("{root}/file"));
    assert_eq!(put(caller, &path, "old").await.status, 201);
    let new = content(owned, &format!("{root}/new"));
    let new_in_place = format!("{new}&atomic=false");
    let half = vec![b'x'; 500_000];
    for (path, headers, begin) in [
        (&path, "content-length: 1000000\r\n", ""),
        (&path, "transfer-encoding: chunked\r\n", "f4240\r\n"),
        (&new, "content-length: 1000000\r\n", ""),
        (&new_in_place, "content-length: 1000000\r\n", ""),
    ] {
        let mut stream = begin_upload(caller, path, headers).await;
        read_continue(&mut stream).await;
        stream.write_all(begin.as_bytes()).await.unwrap();
        stream.write_all(&half).await.unwrap();
        drop(stream);
    }
    expect_only_file(owned, &root, "old").await;
}

#[tokio::test]
async fn stalled_upload_is_refused_and_leaves_the_old_file() {
    let owned = modest().await;
    let root = directory();
    let path = content(owned, &format!("{root}/file"));
    assert_eq!(put(&owned.user.caller, &path, "old").await.status, 201);
    let headers = "content-length: 1000\r\n";
    let mut stream = begin_upload(&owned.user.caller, &path, headers).await;
    read_continue(&mut stream).await;
    stream.write_all(b"half").await.unwrap();
    let (head, body) = read_answer(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
    assert!(body.contains("\"request_timeout\""), "{body}");
    expect_only_file(owned, &root, "old").await;
}

#[tokio::test]
async fn slow_upload_that_makes_progress_is_stored() {
    let owned = modest().await;
    let caller = &owned.user.caller;
    let path = content(owned, &format!("{}/file", directory()));
    // Together longer than the deadline of progress.
    let pieces = stream::unfold(0, |number| async move {
        if number == 20 {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
        Some((
            Ok::<_, std::io::Error>(Bytes::from_static(b"ab")),
            number + 1,
        ))
    });
    let answer = request(caller, Method::PUT, &path, &[], Body::wrap_stream(pieces)).await;
    expect(&answer, 201, "", "a slow upload");
    assert_eq!(caller.get(&path).await.text, "ab".repeat(20));
}

#[tokio::test]
async fn upload_in_place_keeps_the_file_and_atomic_upload_replaces_it() {
    let owned = modest().await;
    let caller = &owned.user.caller;
    let root = directory();
    let made = "printf before > file && chown 1234:1235 file && chmod 640 file && ln file other";
    run(owned, &format!("mkdir {root} && cd {root} && {made}")).await;
    let path = content(owned, &format!("{root}/file"));
    let in_place = format!("{path}&atomic=false");
    assert_eq!(put(caller, &in_place, "place").await.status, 204);
    assert_eq!(run(owned, &format!("cat {root}/other")).await, "place");
    assert_eq!(put(caller, &path, "after").await.status, 204);
    assert_eq!(run(owned, &format!("cat {root}/other")).await, "place");
    let found = metadata(owned, &format!("{root}/file")).await;
    let owner = (&found["uid"], &found["gid"], &found["mode"]);
    assert_eq!(owner, (&json!(1234), &json!(1235), &json!("0640")));
    let with_mode = format!("{path}&mode=0600");
    assert_eq!(put(caller, &with_mode, "").await.status, 204);
    let found = metadata(owned, &format!("{root}/file")).await;
    assert_eq!(
        (&found["mode"], &found["size"]),
        (&json!("0600"), &json!(0))
    );
}

#[tokio::test]
async fn one_of_two_conditional_writers_wins() {
    let owned = modest().await;
    let caller = &owned.user.caller;
    let root = directory();
    for round in 0..6 {
        let path = content(owned, &format!("{root}/{round}"));
        let absent = [("if-none-match", "*")];
        let both = futures::join!(
            request(caller, Method::PUT, &path, &absent, "first"),
            request(caller, Method::PUT, &path, &absent, "second"),
        );
        let (created, refused, text) = match both.0.status {
            201 => (both.0, both.1, "first"),
            _ => (both.1, both.0, "second"),
        };
        expect(&created, 201, "", text);
        refused.expect_error(412, "precondition_failed");
        assert_eq!(caller.get(&path).await.text, text);

        let unchanged = [("if-match", created.header("etag"))];
        let in_place = format!("{path}&atomic=false");
        let both = futures::join!(
            request(caller, Method::PUT, &path, &unchanged, "third"),
            request(caller, Method::PUT, &path, &unchanged, "fourth"),
        );
        let (replaced, refused, text) = match both.0.status {
            204 => (both.0, both.1, "third"),
            _ => (both.1, both.0, "fourth"),
        };
        expect(&replaced, 204, "", text);
        refused.expect_error(412, "precondition_failed");
        assert_eq!(caller.get(&path).await.text, text);
        request(caller, Method::PUT, &in_place, &unchanged, "fifth")
            .await
            .expect_error(412, "precondition_failed");
    }
}

/// A download whose first piece has arrived.
async fn begin_download(owned: &OwnedEnvironment, path: &str) -> (reqwest::Response, usize) {
    let caller = &owned.user.caller;
    let request = caller.request(Method::GET, &content(owned, path));
    let mut response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.content_length(), Some(LARGE as u64));
    let first = response.chunk().await.unwrap().unwrap().len();
    (response, first)
}

#[tokio::test]
async fn file_that_shrinks_during_its_download_aborts_the_connection() {
    let owned = modest().await;
    let path = format!("{}-large", directory());
    run(owned, &format!("truncate -s {LARGE} {path}")).await;
    let (mut response, mut seen) = begin_download(owned, &path).await;
    run(owned, &format!("truncate -s 4096 {path}")).await;
    loop {
        match timeout(TIMEOUT, response.chunk()).await.unwrap() {
            Ok(Some(chunk)) => seen += chunk.len(),
            Ok(None) => panic!("the download ended as if it were complete, after {seen} bytes"),
            Err(_) => break,
        }
    }
    assert!(seen < LARGE, "{seen}");
}

#[tokio::test]
async fn reader_that_stops_holds_no_other_transfer() {
    let owned = modest().await;
    let caller = &owned.user.caller;
    let root = directory();
    run(
        owned,
        &format!("mkdir {root} && truncate -s {LARGE} {root}/large"),
    )
    .await;
    let mut stopped = Vec::new();
    for _ in 0..4 {
        stopped.push(begin_download(owned, &format!("{root}/large")).await.0);
    }
    let text = "0123456789abcdef".repeat(1 << 16);
    let others = async {
        for _ in 0..3 {
            let path = content(owned, &format!("{root}/other"));
            assert!(matches!(put(caller, &path, &text).await.status, 201 | 204));
            assert!(caller.get(&path).await.text == text);
        }
    };
    let ended = timeout(Duration::from_secs(20), others).await;
    ended.expect("transfers beside readers that stopped");
    drop(stopped);
}

#[tokio::test]
async fn file_of_unknown_length_is_sent_whole() {
    let owned = modest().await;
    let caller = &owned.user.caller;
    for path in ["/proc/version", "/proc/self/mounts", "/proc/self/status"] {
        let request = caller.request(Method::GET, &content(owned, path));
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        check_head(200, response.headers());
        assert_eq!(response.content_length(), None, "{path}");
        let text = response.text().await.unwrap();
        assert!(text.len() > 16 && text.ends_with('\n'), "{path}: {text}");
    }
    // The length of an empty file is known.
    let path = content(owned, &format!("{}/empty", directory()));
    assert_eq!(put(caller, &path, "").await.status, 201);
    let answer = caller.get(&path).await;
    assert_eq!((answer.status, answer.text.as_str()), (200, ""));
    assert_eq!(answer.header("content-length"), "0");
}
