//! The errors of requests.

use std::time::Duration;

use agentbox_api::error::ErrorBody;
use tokio_tungstenite::tungstenite;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{status} {}: {}", body.error, body.message)]
    Api { status: u16, body: ErrorBody },
    /// A response that is not the API's, such as a proxy's.
    #[error("{status} without an error body: {text}")]
    UnexpectedResponse { status: u16, text: String },
    #[error("sending the request or reading the response failed")]
    Transport(#[from] reqwest::Error),
    #[error("the response does not match the API's schema")]
    UnexpectedBody(#[from] serde_json::Error),
    #[error("the WebSocket failed")]
    WebSocket(#[source] Box<tungstenite::Error>),
    /// The server's keepalive did not arrive in time.
    #[error("the server sent nothing for {0:?}")]
    KeepaliveTimeout(Duration),
    #[error("a server-sent event is longer than {limit} bytes")]
    EventTooLong { limit: usize },
    #[error("base URL: must begin with http://, got {0}")]
    BaseUrl(String),
    #[error("{what} did not happen within {within:?}; last seen: {last}")]
    Deadline {
        what: String,
        within: Duration,
        last: String,
    },
}

impl Error {
    /// The HTTP status, when there was a response.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Api { status, .. } | Self::UnexpectedResponse { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The error body, when there was one.
    #[must_use]
    pub fn body(&self) -> Option<&ErrorBody> {
        match self {
            Self::Api { body, .. } => Some(body),
            _ => None,
        }
    }

    pub(crate) fn from_response(status: u16, body: &[u8]) -> Self {
        match serde_json::from_slice(body) {
            Ok(body) => Self::Api { status, body },
            Err(_) => Self::UnexpectedResponse {
                status,
                text: String::from_utf8_lossy(body).chars().take(500).collect(),
            },
        }
    }
}

impl From<tungstenite::Error> for Error {
    /// A refused handshake is an API error, like any other.
    fn from(error: tungstenite::Error) -> Self {
        match &error {
            tungstenite::Error::Http(response) => Self::from_response(
                response.status().as_u16(),
                response.body().as_deref().unwrap_or_default(),
            ),
            _ => Self::WebSocket(Box::new(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_keeps_status_and_optional_body() {
        let known = Error::from_response(404, br#"{"error":"not_found","message":"m","code":404}"#);
        assert_eq!(known.status(), Some(404));
        assert_eq!(
            known.body().map(|body| body.error.as_str()),
            Some("not_found")
        );
        let unknown = Error::from_response(502, b"<html>");
        assert_eq!((unknown.status(), unknown.body()), (Some(502), None));
    }
}
