//! The stdin that is sent to a command after its request.

use agentbox_bus::SessionSender;
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::ToBox;
use bytes::Bytes;

use super::body::{StdinPart, StdinSink};
use super::memory::InputMemory;
use super::stdin_messages;

/// The stdin, and the memory that it and the command take.
pub(super) struct Input {
    source: Source,
    held: InputMemory,
}

enum Source {
    /// All of it was in the request.
    Nothing,
    Bytes(Vec<u8>),
    Part(Box<StdinPart>),
}

impl Input {
    /// A `part` is the stdin of a form, which has no `bytes`.
    pub(super) fn new(bytes: Option<Vec<u8>>, part: Option<StdinPart>, held: InputMemory) -> Self {
        let source = match (part, bytes) {
            (Some(part), _) => Source::Part(Box::new(part)),
            (None, Some(bytes)) => Source::Bytes(bytes),
            (None, None) => Source::Nothing,
        };
        Self { source, held }
    }

    /// Sends the command its stdin, then waits to be dropped: closing this half of the session before
    /// the result has arrived would kill the command. Returns only the error of a form.
    pub(super) async fn feed(self, mut to_box: SessionSender<ToBox>) -> Error {
        let Self { source, held } = self;
        let fed = match source {
            Source::Nothing => Ok(()),
            Source::Bytes(bytes) => {
                to_box.write(bytes.into()).await;
                end(&mut to_box).await;
                Ok(())
            }
            Source::Part(part) => {
                let fed = part.copy_to(&mut to_box).await;
                if fed.is_ok() {
                    end(&mut to_box).await;
                }
                fed
            }
        };
        drop(held);
        match fed {
            Ok(()) => std::future::pending().await,
            Err(error) => error,
        }
    }
}

impl StdinSink for SessionSender<ToBox> {
    /// Sends bytes. A failure means that the command has ended without reading all of its stdin, or that
    /// the session broke: the other half receives what follows.
    async fn write(&mut self, bytes: Bytes) {
        for message in stdin_messages(bytes) {
            if self.send(message).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

async fn end(to_box: &mut SessionSender<ToBox>) {
    if to_box.send(ToBox::End).await.is_err() {
        std::future::pending::<()>().await;
    }
}
