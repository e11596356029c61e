//! Streams of log entries from a box's boxd.

use agentbox_box_protocol::output::{DIRECTORY_BYTES, record};
use agentbox_box_protocol::proto::{self, logs_reply::Reply};
use agentbox_contracts::logs::LogEntry;
use tonic::Streaming;
use tracing::Instrument as _;

use crate::boxes::trace::{call_span, traced};
use crate::boxes::{BoxError, Lease};

/// The most that boxd keeps, in bytes of records.
const MAX_KEPT_BYTES: usize = DIRECTORY_BYTES as usize;

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
/// As the connection's, and boxd's. [`BoxError::TooMuchOutput`] above [`MAX_KEPT_BYTES`].
pub async fn read_kept(
    lease: &Lease,
    request: proto::LogsRequest,
) -> Result<Vec<LogEntry>, BoxError> {
    let request = proto::LogsRequest {
        follow: false,
        ..request
    };
    let (mut replies, number) = open(lease, request).await?;
    let mut kept = Kept::default();
    loop {
        match replies.message().await {
            Ok(Some(reply)) => {
                if let Some(Reply::Batch(batch)) = reply.reply {
                    kept.add(batch)?;
                }
            }
            Ok(None) => return Ok(kept.entries),
            Err(status) => {
                lease.mark_lost(number);
                return Err(BoxError::from_status(status));
            }
        }
    }
}

/// Collects entries up to [`MAX_KEPT_BYTES`].
#[derive(Default)]
struct Kept {
    entries: Vec<LogEntry>,
    bytes: usize,
}

impl Kept {
    fn add(&mut self, batch: proto::LogBatch) -> Result<(), BoxError> {
        for entry in batch.entries {
            self.bytes += record::encoded_len(entry.line.len());
            if self.bytes > MAX_KEPT_BYTES {
                return Err(BoxError::TooMuchOutput(MAX_KEPT_BYTES));
            }
            self.entries.push(LogEntry::from(entry));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn box_that_sends_more_than_boxd_keeps_is_refused() {
        let batch = |length| proto::LogBatch {
            entries: vec![proto::LogEntry {
                line: vec![b'x'; length],
                ..Default::default()
            }],
        };
        let mut kept = Kept::default();
        kept.add(batch(MAX_KEPT_BYTES - 2 * record::encoded_len(0)))
            .unwrap();
        kept.add(batch(0)).unwrap();
        assert_eq!(kept.entries.len(), 2);
        let error = kept.add(batch(0)).unwrap_err();
        assert!(matches!(error, BoxError::TooMuchOutput(MAX_KEPT_BYTES)));
        assert_eq!(kept.entries.len(), 2);
    }
}
