//! What is followed: a log, or what happens to an environment.

use agentbox_api::event::EventBody;
use agentbox_api::logs::LogLine;

use crate::Error;
use crate::sse::Sse;

/// What came next in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    /// Its SSE id, for `Last-Event-ID`, when it has one.
    Line { id: Option<String>, line: LogLine },
    /// An event with another name: `end`, `gap`.
    Event { name: String, data: String },
}

/// A followed log. Dropping it ends the stream.
pub struct Follow(pub(crate) Sse);

impl Follow {
    /// `None` after the last.
    ///
    /// # Errors
    /// [`Error::Transport`] and [`Error::Silent`] when the connection broke,
    /// [`Error::Api`] when the server says why it ends, [`Error::Shape`],
    /// [`Error::EventTooLong`].
    pub async fn next(&mut self) -> Result<Option<Followed>, Error> {
        let Some(raw) = self.0.next().await? else {
            return Ok(None);
        };
        Ok(Some(match raw.name {
            None => Followed::Line {
                id: raw.id,
                line: serde_json::from_str(&raw.data)?,
            },
            Some(name) => Followed::Event {
                name,
                data: raw.data,
            },
        }))
    }
}

/// What has happened to an environment, from its beginning, and what happens.
/// Dropping it ends the stream.
pub struct Events(pub(crate) Sse);

impl Events {
    /// `None` after the last.
    ///
    /// # Errors
    /// As [`Follow::next`].
    pub async fn next(&mut self) -> Result<Option<EventBody>, Error> {
        loop {
            match self.0.next().await? {
                None => return Ok(None),
                Some(raw) if raw.name.is_none() => {
                    return Ok(Some(serde_json::from_str(&raw.data)?));
                }
                Some(_) => {}
            }
        }
    }
}
