//! Followed streams: a log, the output of an execution, or an environment's events.

use agentbox_api::event::EventBody;
use agentbox_api::execution::{ExecutionBody, GapEvent, OutputEvent};
use agentbox_api::logs::LogLine;

use crate::Error;
use crate::sse::Sse;

/// The next item of a followed log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogItem {
    /// A line, and its SSE id for `Last-Event-ID`, when it has one.
    Line { id: Option<String>, line: LogLine },
    /// An event with another name: `end`, `gap`.
    Event { name: String, data: String },
}

/// A followed log. Dropping it ends the stream.
pub struct LogStream(pub(crate) Sse);

impl LogStream {
    /// The next item; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Transport`] and [`Error::KeepaliveTimeout`] when the connection was lost,
    /// [`Error::Api`] when the server ends the stream with an error, [`Error::UnexpectedBody`],
    /// [`Error::EventTooLong`].
    pub async fn next(&mut self) -> Result<Option<LogItem>, Error> {
        let Some(event) = self.0.next().await? else {
            return Ok(None);
        };
        Ok(Some(match event.name {
            None => LogItem::Line {
                id: event.id,
                line: serde_json::from_str(&event.data)?,
            },
            Some(name) => LogItem::Event {
                name,
                data: event.data,
            },
        }))
    }
}

/// An environment's events, from the first one. Dropping it ends the stream.
pub struct EventStream(pub(crate) Sse);

impl EventStream {
    /// The next item; `None` at the end.
    ///
    /// # Errors
    /// As [`LogStream::next`].
    pub async fn next(&mut self) -> Result<Option<EventBody>, Error> {
        loop {
            match self.0.next().await? {
                None => return Ok(None),
                Some(event) if event.name.is_none() => {
                    return Ok(Some(serde_json::from_str(&event.data)?));
                }
                Some(_) => {}
            }
        }
    }
}

/// The next item of an execution's followed output.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputItem {
    Output(OutputEvent),
    /// Output that is no longer kept.
    Gap(GapEvent),
    /// The execution has ended; the last item.
    End(Box<ExecutionBody>),
}

/// The output of an execution. Dropping it ends the stream, and not the execution.
pub struct ExecutionOutput(pub(crate) Sse);

impl ExecutionOutput {
    /// The next item; `None` at the end.
    ///
    /// # Errors
    /// As [`LogStream::next`].
    pub async fn next(&mut self) -> Result<Option<OutputItem>, Error> {
        while let Some(event) = self.0.next().await? {
            let item = match event.name.as_deref() {
                None => OutputItem::Output(serde_json::from_str(&event.data)?),
                Some("gap") => OutputItem::Gap(serde_json::from_str(&event.data)?),
                Some("end") => OutputItem::End(serde_json::from_str(&event.data)?),
                Some(_) => continue,
            };
            return Ok(Some(item));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
