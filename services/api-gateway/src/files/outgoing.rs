//! The streamed body of an answer.
//!
//! * I1. A body that ends without its last piece is an error, on which the connection is aborted.
//! * I2. One piece waits for the client. A client that takes nothing for the write timeout does not get
//!   the rest, and its operation in the box ends.
//! * I3. The body ends with the caller's credential and right, as every stream.

use std::pin::pin;
use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use axum::body::Body;
use bytes::Bytes;
use tokio::sync::mpsc;

use super::operation::in_time;
use crate::metrics::{self, OpenStream};
use crate::state::{Gateway, OpenSession};
use crate::stream::{AccessWatch, StreamEnd};

/// The source of a body.
pub(super) trait Pieces: Send + 'static {
    /// The next piece, not empty; `None` after the last one.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, Error>> + Send;
}

/// A piece, or (`None`) the end of a complete body.
type Sender = mpsc::Sender<Option<Bytes>>;

/// The error of a transfer whose caller may no longer do it, or whose gateway stops.
pub(super) fn ended(end: StreamEnd) -> Error {
    match end {
        StreamEnd::Refused(error) => error,
        StreamEnd::Stopping => Error::new(
            ErrorCode::Unavailable,
            "this replica of the service stops; try again",
        ),
    }
}

/// Builds the body that has the pieces of `pieces`. `session` is held until its end.
pub(super) fn body(
    gateway: &Gateway,
    mut access: AccessWatch,
    session: OpenSession,
    mut pieces: impl Pieces,
) -> Body {
    let (sender, receiver) = mpsc::channel(1);
    let write_timeout = gateway.config.write_timeout();
    gateway.results_in_flight.spawn(async move {
        let _open = OpenStream::begin("file");
        let _session = session;
        let relayed = relay(&sender, &mut access, &mut pieces, write_timeout).await;
        if let Err(error) = relayed {
            tracing::debug!(error = %ErrorChain(&error), "an answer was aborted");
        }
    });
    let pieces = futures::stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Some(piece)) => Some((Ok(piece), Some(receiver))),
            Some(None) => None,
            None => Some((Err(incomplete()), None)),
        }
    });
    Body::from_stream(pieces)
}

fn incomplete() -> Error {
    Error::new(ErrorCode::BoxLost, "the answer is not complete")
}

/// Sends all pieces. It pauses while the caller's right is not confirmed.
async fn relay(
    sender: &Sender,
    access: &mut AccessWatch,
    pieces: &mut impl Pieces,
    write_timeout: Duration,
) -> Result<(), Error> {
    let mut copying = pin!(copy(sender, pieces, write_timeout));
    loop {
        let lapsed = tokio::select! {
            biased;
            () = sender.closed() => return Ok(()),
            lapsed = access.lapsed() => lapsed,
            copied = copying.as_mut() => return copied,
        };
        match lapsed {
            Some(end) => return Err(ended(end)),
            None => access.allows().await.map_err(ended)?,
        }
    }
}

async fn copy(
    sender: &Sender,
    pieces: &mut impl Pieces,
    write_timeout: Duration,
) -> Result<(), Error> {
    loop {
        let piece = in_time(pieces.next()).await?;
        let is_last = piece.is_none();
        match tokio::time::timeout(write_timeout, sender.send(piece)).await {
            Ok(Ok(())) if !is_last => {}
            // Complete, or the client is gone.
            Ok(_) => return Ok(()),
            Err(_) => {
                metrics::limit_reached("write_timeout");
                let message = "the client did not read its answer in time";
                return Err(Error::new(ErrorCode::Timeout, message));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    struct Listed(VecDeque<Result<Option<Bytes>, Error>>);

    impl Pieces for Listed {
        async fn next(&mut self) -> Result<Option<Bytes>, Error> {
            self.0.pop_front().unwrap()
        }
    }

    fn listed(pieces: &[&'static str]) -> Listed {
        let pieces = pieces
            .iter()
            .map(|piece| Ok(Some(Bytes::from_static(piece.as_bytes()))));
        Listed(pieces.collect())
    }

    #[tokio::test]
    async fn complete_body_ends_with_a_mark() {
        let (sender, mut receiver) = mpsc::channel(8);
        let mut pieces = listed(&["a", "b"]);
        pieces.0.push_back(Ok(None));
        let copied = copy(&sender, &mut pieces, Duration::from_secs(30)).await;
        assert_eq!(copied, Ok(()));
        drop(sender);
        let mut received = Vec::new();
        while let Some(piece) = receiver.recv().await {
            received.push(piece);
        }
        let expected = [Some("a"), Some("b"), None].map(|piece| piece.map(Bytes::from));
        assert_eq!(received, expected);
    }

    #[tokio::test]
    async fn failed_source_leaves_the_body_without_its_mark() {
        let (sender, mut receiver) = mpsc::channel(8);
        let mut pieces = listed(&["a"]);
        pieces.0.push_back(Err(incomplete()));
        let copied = copy(&sender, &mut pieces, Duration::from_secs(30)).await;
        assert_eq!(copied, Err(incomplete()));
        drop(sender);
        assert_eq!(receiver.recv().await, Some(Some(Bytes::from("a"))));
        assert_eq!(receiver.recv().await, None);
    }

    #[tokio::test]
    async fn client_that_does_not_read_ends_the_source() {
        let (sender, _receiver) = mpsc::channel(1);
        let mut pieces = listed(&["a", "b"]);
        let copied = copy(&sender, &mut pieces, Duration::from_millis(50)).await;
        assert_eq!(copied.unwrap_err().code, ErrorCode::Timeout);
    }
}
