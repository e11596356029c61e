//! A small HTTP/1.1 client for high rates, which leaves the processors to the measured system.
//!
//! Keeps its idle connections. Sends bodies as JSON values that every version of the system accepts, so
//! that two commits are measured by the same requests.
//!
//! * I1. Every request ends within [`DEADLINE`], and is never repeated.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// The longest time for one request. It is longer than the deadlines of the system.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long an idle connection is used again. The gateway closes one that has had no request for 20
/// seconds, and a request that is sent at that moment would fail.
const MAX_IDLE: Duration = Duration::from_secs(10);
/// The part of an error's body that is reported, in characters.
const REPORTED: usize = 300;

/// A client of one server. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Http(Arc<Server>);

struct Server {
    /// Host and port.
    authority: String,
    host: HeaderValue,
    /// `None`: requests have no credential.
    authorization: Option<HeaderValue>,
    /// Each since the answer of its last request, the newest last.
    idle: Mutex<Vec<(Connection, Instant)>>,
}

struct Connection {
    requests: SendRequest<Full<Bytes>>,
    /// Ends with the connection.
    _driver: AbortOnDropHandle<()>,
}

/// The server refused a request.
#[derive(Debug, thiserror::Error)]
#[error("{status}: {text}")]
pub struct Refused {
    pub status: u16,
    text: String,
}

impl Http {
    /// A client of `url`, which is `http://HOST:PORT` without a path; `token` authenticates.
    ///
    /// # Errors
    /// When the URL has another scheme, or the token is not the value of a header.
    pub fn new(url: &str, token: Option<&str>) -> anyhow::Result<Self> {
        let authority = url.trim_end_matches('/').strip_prefix("http://");
        let authority = authority.with_context(|| format!("{url}: must begin with http://"))?;
        let bearer = token.map(|token| HeaderValue::from_str(&format!("Bearer {token}")));
        Ok(Self(Arc::new(Server {
            authority: authority.to_owned(),
            host: HeaderValue::from_str(authority)?,
            authorization: bearer.transpose()?,
            idle: Mutex::default(),
        })))
    }

    /// # Errors
    /// [`Refused`], or the failure of the connection.
    pub async fn get(&self, path: &str) -> anyhow::Result<Bytes> {
        self.send(Method::GET, path, None).await
    }

    /// # Errors
    /// As [`Self::get`], and when the answer is not such a value.
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let body = self.get(path).await?;
        serde_json::from_slice(&body).with_context(|| format!("the answer of {path}"))
    }

    /// # Errors
    /// As [`Self::get`].
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Bytes> {
        self.send(Method::POST, path, Some(body)).await
    }

    /// # Errors
    /// As [`Self::get`].
    pub async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Bytes> {
        self.send(Method::PUT, path, Some(body)).await
    }

    /// # Errors
    /// As [`Self::get`].
    pub async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.send(Method::DELETE, path, None).await?;
        Ok(())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Bytes> {
        let exchange = self.exchange(method, path, body);
        let (status, body) = timeout(DEADLINE, exchange)
            .await
            .with_context(|| format!("no answer within {DEADLINE:?}"))??;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        let text = String::from_utf8_lossy(&body);
        let text = text.chars().take(REPORTED).collect();
        Err(Refused { status, text }.into())
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Bytes)> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.0.host);
        if let Some(authorization) = &self.0.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let content = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                Bytes::from(serde_json::to_vec(body)?)
            }
            None => Bytes::new(),
        };
        let request = request.body(Full::new(content))?;
        let mut connection = self.connection().await?;
        let response = connection.requests.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        self.0.idle.lock().push((connection, Instant::now()));
        Ok((status, body))
    }

    /// An idle connection, or a new one.
    async fn connection(&self) -> anyhow::Result<Connection> {
        while let Some(mut idle) = self.take_idle() {
            if idle.requests.ready().await.is_ok() {
                return Ok(idle);
            }
        }
        let authority = &self.0.authority;
        let stream = TcpStream::connect(authority.as_str())
            .await
            .with_context(|| format!("connecting to {authority}"))?;
        stream.set_nodelay(true)?;
        let (requests, driver) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(async move {
            // A failure of the connection is that of its request.
            let _ = driver.await;
        });
        Ok(Connection {
            requests,
            _driver: AbortOnDropHandle::new(driver),
        })
    }

    /// The connection that has been idle for the shortest time. If that is too long, all are closed.
    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.0.idle.lock();
        let (connection, since) = idle.pop()?;
        if since.elapsed() > MAX_IDLE {
            idle.clear();
            return None;
        }
        Some(connection)
    }
}

/// Whether a failure is the answer of a rate limit.
pub fn is_rate_limited(error: &anyhow::Error) -> bool {
    status(error) == Some(429)
}

/// The status of the answer, if there was one.
pub fn status(error: &anyhow::Error) -> Option<u16> {
    error
        .downcast_ref::<Refused>()
        .map(|refused| refused.status)
}

/// Checks the exit code of a command.
///
/// # Errors
/// When it is not 0.
pub fn check_exit_code(code: i64) -> anyhow::Result<()> {
    ensure!(code == 0, "exit code {code}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Accepts one connection, and answers each request on it with the next response.
    async fn serve(listener: TcpListener, responses: &[&str]) -> Vec<String> {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut requests = Vec::new();
        for response in responses {
            requests.push(answer(&mut stream, response).await);
        }
        requests
    }

    /// Reads the head of a request, and answers it.
    async fn answer(stream: &mut TcpStream, response: &str) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(response.as_bytes()).await.unwrap();
        String::from_utf8(head).unwrap()
    }

    #[tokio::test]
    async fn requests_share_a_connection_and_a_refusal_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let http = Http::new(&url, Some("secret")).unwrap();
        let responses = [
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n\r\nslow",
        ];
        let client = async {
            let first: Value = http.get_json("/first").await.unwrap();
            let second = http.get("/second").await.unwrap_err();
            (first, second)
        };
        let (requests, (first, second)) = tokio::join!(serve(listener, &responses), client);
        assert_eq!(first, serde_json::json!({}));
        assert!(is_rate_limited(&second), "{second}");
        assert_eq!(second.to_string(), "429: slow");
        assert!(requests[0].starts_with("GET /first HTTP/1.1\r\n"));
        for request in requests {
            assert!(
                request.contains("authorization: Bearer secret"),
                "{request}"
            );
        }
    }

    #[tokio::test]
    async fn connection_that_was_idle_for_long_is_not_used_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = Http::new(&format!("http://{}", listener.local_addr().unwrap()), None).unwrap();
        let server = async {
            let mut open = Vec::new();
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                answer(
                    &mut stream,
                    "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
                )
                .await;
                open.push(stream);
            }
        };
        let client = async {
            http.get("/first").await.unwrap();
            for (_, since) in &mut *http.0.idle.lock() {
                *since -= MAX_IDLE + Duration::from_millis(1);
            }
            http.get("/second").await.unwrap();
        };
        tokio::join!(server, client);
    }

    #[test]
    fn url_without_http_is_refused() {
        assert!(Http::new("https://localhost:1", None).is_err());
    }
}
