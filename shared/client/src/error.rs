//! What a request can end in other than its answer.

use std::time::Duration;

use agentbox_api::error::ErrorBody;
use tokio_tungstenite::tungstenite;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{status} {}: {}", body.error, body.message)]
    Api { status: u16, body: ErrorBody },
    /// Something that is not the API answered, or the API broke its contract.
    #[error("{status} without an error body: {text}")]
    NotTheApi { status: u16, text: String },
    #[error("the request did not reach an answer")]
    Transport(#[from] reqwest::Error),
    #[error("the answer is not of the promised shape")]
    Shape(#[from] serde_json::Error),
    #[error("the WebSocket failed")]
    WebSocket(#[source] Box<tungstenite::Error>),
    /// The server's sign that it is there did not come.
    #[error("nothing came for {0:?}")]
    Silent(Duration),
    #[error("a server-sent event is longer than {limit} bytes")]
    EventTooLong { limit: usize },
    #[error("the base URL {0} is not http://")]
    BaseUrl(String),
    #[error("{what} did not happen within {within:?}; last seen: {last}")]
    Deadline {
        what: String,
        within: Duration,
        last: String,
    },
}

impl Error {
    /// The HTTP status, when there was an answer.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Api { status, .. } | Self::NotTheApi { status, .. } => Some(*status),
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

    pub(crate) fn of_answer(status: u16, body: &[u8]) -> Self {
        match serde_json::from_slice(body) {
            Ok(body) => Self::Api { status, body },
            Err(_) => Self::NotTheApi {
                status,
                text: String::from_utf8_lossy(body).chars().take(500).collect(),
            },
        }
    }
}

impl From<tungstenite::Error> for Error {
    /// A refused handshake is the API's error, like any other.
    fn from(error: tungstenite::Error) -> Self {
        match &error {
            tungstenite::Error::Http(answer) => Self::of_answer(
                answer.status().as_u16(),
                answer.body().as_deref().unwrap_or_default(),
            ),
            _ => Self::WebSocket(Box::new(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_keeps_its_status_and_its_body_when_it_has_one() {
        let known = Error::of_answer(404, br#"{"error":"not_found","message":"m","code":404}"#);
        assert_eq!(known.status(), Some(404));
        assert_eq!(
            known.body().map(|body| body.error.as_str()),
            Some("not_found")
        );
        let unknown = Error::of_answer(502, b"<html>");
        assert_eq!((unknown.status(), unknown.body()), (Some(502), None));
    }
}
