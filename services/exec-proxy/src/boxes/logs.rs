//! Streams of log entries from a box's boxd.

use agentbox_box_protocol::proto::{self, logs_reply::Reply};
use agentbox_contracts::logs::LogEntry;
use tonic::Streaming;
use tracing::Instrument as _;

use crate::boxes::trace::{call_span, traced};
use crate::boxes::{BoxError, Lease};

/// A log stream, and the number of its connection.
pub type OpenedLogs = (Streaming<proto::LogsReply>, u64);

/// Opens a log stream; retries once when the kept connection was lost.
///
/// # Errors
/// As the connection's, and boxd's.
pub async fn open(lease: &Lease, request: proto::LogsRequest) -> Result<OpenedLogs, BoxError> {
    match open_once(lease, request).await {
        // A kept connection may have died unnoticed; reading again is harmless.
        Err(BoxError::Lost(_)) => open_once(lease, request).await,
        other => other,
    }
}

async fn open_once(lease: &Lease, request: proto::LogsRequest) -> Result<OpenedLogs, BoxError> {
    let span = call_span("Logs");
    let mut connection = lease.connection().instrument(span.clone()).await?;
    let request = traced(&span, request);
    match connection.client.logs(request).instrument(span).await {
        Ok(response) => Ok((response.into_inner(), connection.number)),
        Err(status) => {
            let error = BoxError::from_status(status);
            if matches!(error, BoxError::Lost(_)) {
                lease.mark_lost(connection.number);
            }
            Err(error)
        }
    }
}

/// Reads the entries that boxd keeps and `request` selects, oldest first, without following.
///
/// # Errors
/// As the connection's, and boxd's.
pub async fn read_kept(
    lease: &Lease,
    request: proto::LogsRequest,
) -> Result<Vec<LogEntry>, BoxError> {
    let request = proto::LogsRequest {
        follow: false,
        ..request
    };
    let (mut replies, number) = open(lease, request).await?;
    let mut entries = Vec::new();
    loop {
        match replies.message().await {
            Ok(Some(reply)) => {
                if let Some(Reply::Batch(batch)) = reply.reply {
                    entries.extend(batch.entries.into_iter().map(LogEntry::from));
                }
            }
            Ok(None) => return Ok(entries),
            Err(status) => {
                lease.mark_lost(number);
                return Err(BoxError::from_status(status));
            }
        }
    }
}
