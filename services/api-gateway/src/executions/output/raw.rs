//! The kept bytes of one stream as the body of an answer.
//!
//! * I1. The body is complete, or the connection is aborted: output that was dropped while it was read,
//!   and output that cannot be read, are never left out silently.

use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::identity::Principal;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::super::reader::{Item, Reader};
use crate::metrics::OpenStream;
use crate::state::{Gateway, OpenSession};
use crate::stream::{AccessWatch, StreamEnd, StreamGrant};

struct Download {
    /// The first item, which was read before the answer began.
    first: Option<Item>,
    reader: Reader,
    access: AccessWatch,
    _open: OpenStream,
    _session: OpenSession,
}

impl Download {
    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let item = match self.first.take() {
            Some(item) => item,
            None => tokio::select! {
                biased;
                end = self.access.ended() => return Err(ended(end)),
                item = self.reader.next() => item?,
            },
        };
        if let Err(end) = self.access.allows().await {
            return Err(ended(end));
        }
        match item {
            Item::Output(piece) => Ok(Some(piece.data)),
            Item::Gap(_) => Err(Error::new(
                ErrorCode::Conflict,
                "output was dropped while it was read",
            )),
            Item::End(_) => Ok(None),
        }
    }
}

fn ended(end: StreamEnd) -> Error {
    match end {
        StreamEnd::Refused(error) => error,
        StreamEnd::Stopping => Error::new(ErrorCode::Unavailable, "the gateway stops"),
    }
}

/// Answers when the first output has arrived; until then a failure is an error response. A reader that
/// `begins_anywhere` gets what is kept, the others also an error if their first byte is not.
///
/// # Errors
/// When the output cannot be read, or is no longer kept.
pub(super) async fn answer(
    gateway: Gateway,
    principal: Principal,
    grant: StreamGrant,
    session: OpenSession,
    mut reader: Reader,
    begins_anywhere: bool,
) -> Result<Response, Error> {
    let first = match reader.next().await? {
        // An archive may have nothing of the stream.
        Item::Gap(_) if begins_anywhere => reader.next().await?,
        Item::Gap(gap) => {
            return Err(Error::value(
                "from",
                format_args!(
                    "must be at least {}, the oldest kept byte",
                    gap.offset.saturating_add(gap.bytes)
                ),
                gap.offset,
            ));
        }
        first => first,
    };
    let stop = gateway.stream_stop_token();
    let download = Download {
        first: Some(first),
        reader,
        access: AccessWatch::new(gateway, principal, grant, stop),
        _open: OpenStream::begin("output"),
        _session: session,
    };
    let pieces = futures::stream::unfold(Some(download), |download| async move {
        let mut download = download?;
        match download.next().await {
            Ok(Some(data)) => Some((Ok(data), Some(download))),
            Ok(None) => None,
            Err(error) => {
                tracing::info!(error = %ErrorChain(&error), "reading output failed within a response");
                Some((Err(error), None))
            }
        }
    });
    let mut response = Body::from_stream(pieces).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
