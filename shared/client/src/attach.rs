//! An attach session.

use std::time::Duration;

use agentbox_api::attach::{ClientMessage, MAX_PING_INTERVAL_S, ServerMessage};
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::Error;
use crate::client::with_timeout;

/// How long the server may send nothing: two of its longest ping intervals.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2 * MAX_PING_INTERVAL_S);

/// An attach session. Dropping it closes the connection without a close frame.
pub struct AttachSession {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl AttachSession {
    pub(crate) async fn connect(url: &str, token: Option<&str>) -> Result<Self, Error> {
        let mut request = url.replacen("http://", "ws://", 1).into_client_request()?;
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|error| tungstenite::Error::HttpFormat(error.into()))?;
            request.headers_mut().insert("authorization", value);
        }
        let (socket, _) = with_timeout("a terminal", connect_async(request)).await??;
        Ok(Self { socket })
    }

    /// # Errors
    /// [`Error::WebSocket`] when the connection is closed or lost, [`Error::KeepaliveTimeout`] when
    /// the command does not read.
    pub async fn send(&mut self, message: &ClientMessage) -> Result<(), Error> {
        let text = serde_json::to_string(message)?;
        let sent = timeout(KEEPALIVE_TIMEOUT, self.socket.send(Message::text(text))).await;
        Ok(sent.map_err(|_| Error::KeepaliveTimeout(KEEPALIVE_TIMEOUT))??)
    }

    /// The next message; `None` after the close frame.
    ///
    /// # Errors
    /// [`Error::WebSocket`], [`Error::KeepaliveTimeout`], [`Error::UnexpectedBody`].
    pub async fn next(&mut self) -> Result<Option<ServerMessage>, Error> {
        loop {
            let message = timeout(KEEPALIVE_TIMEOUT, self.socket.next())
                .await
                .map_err(|_| Error::KeepaliveTimeout(KEEPALIVE_TIMEOUT))?;
            match message.transpose()? {
                Some(Message::Text(text)) => {
                    return Ok(Some(serde_json::from_str(text.as_str())?));
                }
                Some(Message::Close(_)) | None => return Ok(None),
                Some(_) => {}
            }
        }
    }

    /// # Errors
    /// [`Error::WebSocket`].
    pub async fn close(mut self) -> Result<(), Error> {
        Ok(with_timeout("closing a terminal", self.socket.close(None)).await??)
    }
}
