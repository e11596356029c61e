//! Requests to ports of boxes, and previews.

mod half_close;
mod traffic;

use std::time::{Duration, Instant};

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::boxes::small;
use crate::support::caller::{Caller, User, new_user};
use crate::support::{TIMEOUT, eventually, repeat_until_below};

/// A server that answers with each request, and with headers of its own. A request that asks for the
/// protocol `echo` gets it. With the protocol `first` the server sends one line, ends its side, receives to
/// the end, and then adds a line to a file: how many bytes it has received. On port 8001 it speaks no HTTP.
const SERVER: &str = r#"
cat > /tmp/server.py <<'END'
import socket, threading

def answer(connection, port):
    request = b""
    while b"\r\n\r\n" not in request:
        part = connection.recv(4096)
        if not part:
            return
        request += part
    head, body = request.split(b"\r\n\r\n", 1)
    lines = head.split(b"\r\n")
    length = next((line for line in lines if line.startswith(b"content-length: ")), b": 0")
    while len(body) < int(length.split(b": ")[1]):
        body += connection.recv(4096)
    if port == 8001:
        connection.sendall(b"no HTTP\n")
    elif b"upgrade: first" in lines:
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n"
                           b"Connection: Upgrade\r\nUpgrade: first\r\n\r\nfirst\n")
        connection.shutdown(socket.SHUT_WR)
        received = len(body)
        while part := connection.recv(65536):
            received += len(part)
        with open("/tmp/received", "a") as file:
            file.write(f"{received}\n")
    elif b"upgrade: echo" in lines:
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n"
                           b"Connection: Upgrade\r\nUpgrade: echo\r\n\r\n" + body)
        while part := connection.recv(4096):
            connection.sendall(part)
    else:
        text = b"\n".join(lines + [b"", body])
        connection.sendall(b"HTTP/1.1 418 Teapot\r\nContent-Length: %d\r\n" % len(text)
                           + b"Set-Cookie: a=1; Domain=example.org\r\n"
                           + b"Access-Control-Allow-Origin: *\r\nX-Own: 1\r\n\r\n" + text)

def serve(port):
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        connection, _ = listener.accept()
        def run(connection=connection):
            with connection:
                answer(connection, port)
        threading.Thread(target=run, daemon=True).start()

threading.Thread(target=serve, args=(8001,), daemon=True).start()
serve(8000)
END
python3 /tmp/server.py > /dev/null 2>&1 &
"#;

struct Served {
    user: User,
    id: String,
}

impl Served {
    async fn start() -> Self {
        let user = new_user().await;
        let mut body = small();
        body["image"] = json!("python:3.11-slim");
        body["resources"]["memory"] = json!("128Mi");
        let id = user.caller.create_running(&body).await;
        let started = user.caller.sh(&id, SERVER).await;
        assert_eq!(started["exit_code"], 0, "{started}");
        let path = format!("/environments/{id}/ports");
        eventually("the server listens", async || {
            let list = user.caller.get(&path).await.expect_status(200);
            let ports = list["ports"].as_array().unwrap();
            let listens = |port| ports.iter().any(|listening| listening["port"] == port);
            (listens(8000) && listens(8001)).then_some(())
        })
        .await;
        Self { user, id }
    }

    fn request(&self, method: Method, port_and_path: &str) -> RequestBuilder {
        let path = format!("/environments/{}/ports/{port_and_path}", self.id);
        self.user.caller.request(method, &path)
    }

    async fn preview(&self, body: &Value) -> Value {
        let path = format!("/environments/{}/previews", self.id);
        self.user.caller.post(&path, body).await.expect_status(201)
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

/// Sends a request to the host of an address on a gateway. Without a header of a proxy the client is
/// this machine.
async fn visit(caller: &Caller, url: &str, headers: &[(&str, &str)]) -> reqwest::Response {
    let (host, path) = url
        .trim_start_matches("http://")
        .split_once('/')
        .expect("an address with a path");
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(0)
        .build()
        .unwrap();
    let gateway = caller.host(caller.next_gateway());
    let mut request = client
        .get(format!("http://{gateway}/{path}"))
        .header("host", host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

/// Asks for the protocol `echo`, and returns the connection after an echo.
async fn tunnel(gateway: &str, path: &str, lines: &[String]) -> TcpStream {
    let mut stream = upgrade(gateway, path, "echo", lines).await;
    echo(&mut stream).await;
    stream
}

/// Asks for a protocol, and returns the connection after the head of the answer.
async fn upgrade(gateway: &str, path: &str, protocol: &str, lines: &[String]) -> TcpStream {
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    let lines = lines.join("\r\n");
    let head = format!(
        "GET {path} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n{lines}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(TIMEOUT, stream.read_u8()).await;
        head.push(byte.expect("an answer in time").unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream
}

async fn echo(stream: &mut TcpStream) {
    stream.write_all(b"ping\n").await.unwrap();
    let mut echoed = [0; 5];
    let read = timeout(TIMEOUT, stream.read_exact(&mut echoed)).await;
    read.expect("an echo in time").unwrap();
    assert_eq!(&echoed, b"ping\n");
}

#[tokio::test]
async fn server_gets_the_request_without_our_credential_and_answers_without_power() {
    let served = Served::start().await;
    let answer = served
        .request(Method::PUT, "8000/a/x%2F..%2fy//b?x=%20&ticket=ticket_1")
        .header("x-forwarded-host", "evil.example")
        .header("cookie", "a=1; __Host-agentbox-preview=s")
        .body("body")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::IM_A_TEAPOT);
    let headers = answer.headers().clone();
    for (name, expected) in [
        ("content-security-policy", Some("sandbox")),
        ("x-own", Some("1")),
        ("set-cookie", None),
        ("access-control-allow-origin", None),
        ("x-ratelimit-limit", None),
    ] {
        assert_eq!(text(&headers, name), expected, "{name}");
    }
    let head = answer.text().await.unwrap();
    assert!(
        head.starts_with("PUT /a/x%2F..%2fy//b?x=%20 HTTP/1.1\n"),
        "{head}"
    );
    for line in [
        "host: localhost:8000",
        "cookie: a=1",
        "content-length: 4",
        "x-forwarded-proto: http",
        &format!("x-forwarded-for: {}", served.user.caller.address),
    ] {
        assert!(head.lines().any(|found| found == line), "{line} in {head}");
    }
    assert!(head.ends_with("\n\nbody"), "{head}");
    for absent in ["authorization", "evil.example", "ticket", "agentbox"] {
        assert!(!head.contains(absent), "{absent} in {head}");
    }

    // With the credential in a header of its own, `Authorization` is the server's.
    let token = served.user.caller.token.clone().unwrap();
    let caller = served.user.caller.without_token();
    let path = format!("/environments/{}/ports/8000", served.id);
    let request = caller.request(Method::GET, &path);
    let request = request.header("x-agentbox-token", &token);
    let answer = request.header("authorization", "Basic YTpi").send().await;
    let head = answer.unwrap().text().await.unwrap();
    assert!(head.starts_with("GET / HTTP/1.1\n"), "{head}");
    assert!(head.contains("authorization: Basic YTpi\n"), "{head}");
    assert!(!head.contains(&token), "{head}");
}

#[tokio::test]
async fn port_without_a_server_of_http_is_nothing_listening() {
    let served = Served::start().await;
    for (port, expected) in [(8001, "HTTP"), (8002, "nothing listens on port 8002")] {
        let path = format!("/environments/{}/ports/{port}/", served.id);
        let message = served.user.caller.get(&path).await;
        let message = message.expect_error(502, "nothing_listening");
        assert!(message.contains(expected), "{message}");
    }
    let path = format!("/environments/{}/ports/0/", served.id);
    let refused = served.user.caller.get(&path).await;
    refused.expect_error(400, "validation_failed");
}

#[tokio::test]
async fn upgraded_connection_carries_bytes_until_its_key_is_revoked() {
    let served = Served::start().await;
    let caller = &served.user.caller;
    let (key, holder) = served.user.key(json!({})).await;
    let gateway = caller.host(0).to_owned();
    let lines = [
        format!("Host: {gateway}"),
        format!("Authorization: Bearer {}", holder.token.unwrap()),
    ];
    let path = format!("/api/v1/environments/{}/ports/8000/", served.id);
    let mut stream = tunnel(&gateway, &path, &lines).await;
    caller
        .delete(&format!("/api-keys/{key}"))
        .await
        .expect_status(204);
    let mut byte = [0];
    let end = timeout(Duration::from_secs(6), stream.read(&mut byte)).await;
    assert_eq!(end.expect("the connection ends").unwrap_or(0), 0);
}

#[tokio::test]
async fn browser_opens_the_link_of_a_preview_once() {
    let served = Served::start().await;
    let caller = &served.user.caller;
    let preview = served.preview(&json!({"port": 8000})).await;
    let link = preview["url"].as_str().unwrap();
    let (origin, _) = link.split_once("/.agentbox/").unwrap();
    let page = format!("{origin}/page");

    let refused = visit(caller, &page, &[("accept", "text/html")]).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(
        text(refused.headers(), "content-type"),
        Some("text/html; charset=utf-8")
    );
    let opened = visit(caller, link, &[]).await;
    assert_eq!(opened.status(), StatusCode::SEE_OTHER);
    assert_eq!(text(opened.headers(), "location"), Some("/"));
    let cookie = text(opened.headers(), "set-cookie").unwrap();
    for attribute in ["Secure", "HttpOnly", "SameSite=Lax", "Path=/"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    let cookie = cookie.split(';').next().unwrap();
    assert_eq!(
        visit(caller, link, &[]).await.status(),
        StatusCode::UNAUTHORIZED
    );

    let answer = visit(caller, &page, &[("cookie", cookie)]).await;
    assert_eq!(answer.status(), StatusCode::IM_A_TEAPOT);
    assert_eq!(text(answer.headers(), "set-cookie"), Some("a=1"));
    assert_eq!(
        text(answer.headers(), "content-security-policy"),
        Some("frame-ancestors 'self'")
    );
    let head = answer.text().await.unwrap();
    assert!(head.starts_with("GET /page HTTP/1.1\n"), "{head}");
    assert!(!head.contains("agentbox"), "{head}");
    // A page of another origin.
    let foreign = [("cookie", cookie), ("origin", "http://evil.localhost")];
    let refused = visit(caller, &page, &foreign).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    // A browser of another machine.
    let remote = [("cookie", cookie), ("x-forwarded-for", "192.0.2.1")];
    let refused = visit(caller, &page, &remote).await;
    assert_eq!(refused.status(), StatusCode::NOT_IMPLEMENTED);
}

#[tokio::test]
async fn preview_ends_with_its_deletion_open_connections_included() {
    let served = Served::start().await;
    repeat_until_below(Duration::from_secs(3), async || {
        delete_preview(&served).await
    })
    .await;
}

/// Deletes a preview beside an open connection. Returns how long that stays open.
async fn delete_preview(served: &Served) -> Duration {
    let caller = &served.user.caller;
    let preview = served.preview(&json!({"port": 8000})).await;
    let url = preview["url"].as_str().unwrap();
    let (origin, _) = url.split_once("/.agentbox/").unwrap();
    let token = preview["token"].as_str().unwrap();
    let page = format!("{origin}/");
    let sent = [("x-agentbox-preview-token", token)];
    let answer = visit(caller, &page, &sent).await;
    assert_eq!(answer.status(), StatusCode::IM_A_TEAPOT);
    // A credential of the API opens no preview, and a preview no route of the API.
    let bearer = format!("Bearer {}", caller.token.as_ref().unwrap());
    let answer = visit(caller, &page, &[("authorization", &bearer)]).await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    let answer = visit(caller, &format!("{origin}/api/v1/health"), &sent).await;
    assert_eq!(answer.status(), StatusCode::IM_A_TEAPOT);

    let host = origin.trim_start_matches("http://");
    let lines = [
        format!("Host: {host}"),
        format!("X-Agentbox-Preview-Token: {token}"),
    ];
    let mut stream = tunnel(caller.host(0), "/", &lines).await;
    let path = format!("/environments/{}/previews", served.id);
    let list = caller.get(&path).await.expect_status(200);
    assert_eq!(list["total"], 1);
    assert_eq!(list["previews"][0]["id"], preview["id"]);
    let id = preview["id"].as_str().unwrap();
    let begun = Instant::now();
    caller
        .delete(&format!("{path}/{id}"))
        .await
        .expect_status(204);
    let mut byte = [0];
    let end = timeout(TIMEOUT, stream.read(&mut byte)).await;
    assert_eq!(end.expect("the connection ends").unwrap_or(0), 0);
    let took = begun.elapsed();
    let answer = visit(caller, &page, &sent).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    caller
        .delete(&format!("{path}/{id}"))
        .await
        .expect_error(404, "not_found");
    took
}

#[tokio::test]
async fn public_preview_needs_no_secret() {
    let served = Served::start().await;
    let caller = &served.user.caller;
    let preview = served.preview(&json!({"port": 8000, "public": true})).await;
    assert!(preview.get("token").is_none(), "{preview}");
    let url = preview["url"].as_str().unwrap();
    assert_eq!(
        visit(caller, url, &[]).await.status(),
        StatusCode::IM_A_TEAPOT
    );
    let path = format!("/environments/{}/previews", served.id);
    for body in [
        json!({"port": 0}),
        json!({"port": 65_536}),
        json!({"port": 80, "expires_in": 0}),
        json!({"port": 80, "expires_in": 604_801}),
    ] {
        let refused = caller.post(&path, &body).await;
        refused.expect_error(400, "validation_failed");
    }
}
