//! A client of an attached WebSocket.

use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::answer::check_head;
use super::caller::Caller;

/// How long the next frame may take.
const NEXT: Duration = Duration::from_secs(40);

#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    Json(Value),
    Binary(Bytes),
    /// Close code and reason; 1006 when the connection broke without a close frame.
    Closed(u16, String),
}

pub struct Socket {
    pub socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The selected subprotocol.
    pub protocol: Option<String>,
}

/// The messages of a session until its end.
#[derive(Debug, Default)]
pub struct SessionOutput {
    pub stdout: String,
    pub stderr: String,
    pub exit: Option<Value>,
    pub error: Option<String>,
    pub close: (u16, String),
}

/// A handshake without a credential, to be changed before it is sent.
pub fn handshake(caller: &Caller, gateway: usize, id: &str, query: &str) -> Request {
    let path = format!("/environments/{id}/attach?{query}");
    let url = caller.url(gateway, &path).replacen("http://", "ws://", 1);
    let mut request = url.into_client_request().unwrap();
    let address = caller.address.parse().unwrap();
    request.headers_mut().insert("x-forwarded-for", address);
    request
}

impl Socket {
    /// Opens a socket with the Authorization header.
    pub async fn open(caller: &Caller, id: &str, query: &str) -> Self {
        Self::open_on(caller, caller.next_gateway(), id, query)
            .await
            .unwrap_or_else(|(status, body)| panic!("{status} {body}"))
    }

    pub async fn open_on(
        caller: &Caller,
        gateway: usize,
        id: &str,
        query: &str,
    ) -> Result<Self, (u16, Value)> {
        let mut request = handshake(caller, gateway, id, query);
        if let Some(token) = &caller.token {
            let value = format!("Bearer {token}").parse().unwrap();
            request.headers_mut().insert("authorization", value);
        }
        Self::connect(request).await
    }

    /// Opens a socket; a refused handshake returns its status and body.
    pub async fn connect(request: Request) -> Result<Self, (u16, Value)> {
        match connect_async(request).await {
            Ok((socket, response)) => {
                check_head(101, response.headers());
                let protocol = response.headers().get("sec-websocket-protocol");
                Ok(Self {
                    socket,
                    protocol: protocol.map(|value| value.to_str().unwrap().to_owned()),
                })
            }
            Err(Error::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                Err((
                    response.status().as_u16(),
                    serde_json::from_slice(body).unwrap_or(Value::Null),
                ))
            }
            Err(error) => panic!("{error}"),
        }
    }

    pub async fn send(&mut self, message: Value) {
        let message = Message::text(message.to_string());
        self.socket.send(message).await.unwrap();
    }

    pub async fn stdin(&mut self, data: &str) {
        self.send(json!({"type": "stdin", "data": data})).await;
    }

    pub async fn next(&mut self) -> Frame {
        // Pings do not extend the deadline.
        let deadline = tokio::time::Instant::now() + NEXT;
        loop {
            let next = tokio::time::timeout_at(deadline, self.socket.next()).await;
            match next.expect("the next frame in time") {
                Some(Ok(Message::Text(text))) => {
                    return Frame::Json(serde_json::from_str(text.as_str()).unwrap());
                }
                Some(Ok(Message::Binary(bytes))) => return Frame::Binary(bytes),
                Some(Ok(Message::Close(frame))) => {
                    let (code, reason) = frame.map_or((1005, String::new()), |frame| {
                        (frame.code.into(), frame.reason.as_str().to_owned())
                    });
                    return Frame::Closed(code, reason);
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Frame::Closed(1006, String::new()),
            }
        }
    }

    /// The next message that is JSON.
    pub async fn message(&mut self) -> Value {
        match self.next().await {
            Frame::Json(value) => value,
            other => panic!("{other:?}"),
        }
    }

    /// Reads the first message, which has the session id.
    pub async fn ready(&mut self) -> String {
        let ready = self.message().await;
        assert_eq!(ready["type"], "ready", "{ready}");
        ready["session_id"].as_str().unwrap().to_owned()
    }

    /// Reads stdout until it holds `text`. It may be granted the input meanwhile.
    pub async fn read_until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let message = self.message().await;
            // The box may notice late that an earlier client has left.
            if message["type"] == "input_granted" {
                continue;
            }
            assert_eq!(message["type"], "stdout", "{message} after {seen}");
            seen.push_str(message["data"].as_str().unwrap());
        }
        seen
    }

    /// Everything up to the close frame.
    pub async fn read_to_end(&mut self) -> SessionOutput {
        let mut output = SessionOutput::default();
        loop {
            match self.next().await {
                Frame::Json(message) => {
                    let data = || message["data"].as_str().unwrap().to_owned();
                    match message["type"].as_str().unwrap() {
                        "stdout" => output.stdout.push_str(&data()),
                        "stderr" => output.stderr.push_str(&data()),
                        "exit" => output.exit = Some(message.clone()),
                        "error" => output.error = message["message"].as_str().map(str::to_owned),
                        "ready" => {}
                        other => panic!("{other}"),
                    }
                }
                Frame::Binary(_) => panic!("an unexpected binary frame"),
                Frame::Closed(code, reason) => {
                    output.close = (code, reason);
                    return output;
                }
            }
        }
    }
}
