//! An attached terminal.

use agentbox_api::attach::{ClientMessage, ServerMessage};
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::Error;

/// Dropping it closes the connection without a close frame.
pub struct Attached {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Attached {
    pub(crate) async fn connect(url: &str, token: Option<&str>) -> Result<Self, Error> {
        let mut request = url.replacen("http://", "ws://", 1).into_client_request()?;
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|error| tungstenite::Error::HttpFormat(error.into()))?;
            request.headers_mut().insert("authorization", value);
        }
        let (socket, _) = connect_async(request).await?;
        Ok(Self { socket })
    }

    /// # Errors
    /// [`Error::WebSocket`] when the connection is closed or broken.
    pub async fn send(&mut self, message: &ClientMessage) -> Result<(), Error> {
        let text = serde_json::to_string(message)?;
        Ok(self.socket.send(Message::text(text)).await?)
    }

    /// `None` after the close frame.
    ///
    /// # Errors
    /// [`Error::WebSocket`], [`Error::Shape`].
    pub async fn next(&mut self) -> Result<Option<ServerMessage>, Error> {
        while let Some(message) = self.socket.next().await {
            match message? {
                Message::Text(text) => return Ok(Some(serde_json::from_str(text.as_str())?)),
                Message::Close(_) => return Ok(None),
                _ => {}
            }
        }
        Ok(None)
    }

    /// # Errors
    /// [`Error::WebSocket`].
    pub async fn close(mut self) -> Result<(), Error> {
        Ok(self.socket.close(None).await?)
    }
}
