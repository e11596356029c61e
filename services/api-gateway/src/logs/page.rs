//! Stored logs as one JSON answer. The answer is written batch by batch, so memory holds one batch
//! at a time, not all lines.

use std::time::Duration;

use agentbox_api::logs::LogLine;
use agentbox_contracts::ErrorChain;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::FromBox;
use agentbox_contracts::logs::LogEntry;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use crate::box_session::BoxSession;
use crate::state::OpenSession;

/// How long the next batch may take.
const BATCH_DEADLINE: Duration = Duration::from_secs(15);

/// One message of a session that reads stored logs.
#[derive(Debug)]
enum Part {
    Entries(Vec<LogEntry>),
    Lost(u64),
    End,
}

async fn next_part(session: &mut BoxSession) -> Result<Part, Error> {
    let message = tokio::time::timeout(BATCH_DEADLINE, session.recv())
        .await
        .map_err(|_| {
            Error::new(
                ErrorCode::Timeout,
                "the logs did not arrive in time; try again",
            )
        })??;
    match message {
        Some(FromBox::Logs(entries)) => Ok(Part::Entries(entries)),
        Some(FromBox::LogsLost(count)) => Ok(Part::Lost(count)),
        Some(FromBox::LogsEnd { .. }) => Ok(Part::End),
        Some(_) => Err(Error::internal()),
        None => Err(Error::new(
            ErrorCode::BoxLost,
            "the connection to the logs was lost",
        )),
    }
}

/// Writes `{"logs":[…]}` in pieces.
struct Writer {
    timestamps: bool,
    is_first: bool,
    lost: u64,
}

impl Writer {
    fn new(timestamps: bool) -> Self {
        Self {
            timestamps,
            is_first: true,
            lost: 0,
        }
    }

    fn write(&mut self, part: Part) -> Vec<u8> {
        let mut out = Vec::new();
        match part {
            Part::Entries(entries) => {
                for entry in entries {
                    if !self.is_first {
                        out.push(b',');
                    }
                    self.is_first = false;
                    // Serializing plain data to memory does not fail.
                    let line = LogLine::new(&entry, self.timestamps);
                    let _ = serde_json::to_writer(&mut out, &line);
                }
            }
            Part::Lost(count) => self.lost += count,
            Part::End if self.lost > 0 => {
                out.extend_from_slice(format!("],\"lost\":{}}}", self.lost).as_bytes());
            }
            Part::End => out.extend_from_slice(b"]}"),
        }
        out
    }
}

/// Answers when the first batch has arrived; until then a failure is an error response. `share` is
/// held until the answer ends.
///
/// # Errors
/// When the first batch cannot be read. A later failure ends the body early.
pub(super) async fn answer(
    mut session: BoxSession,
    share: OpenSession,
    timestamps: bool,
) -> Result<Response, Error> {
    let first = next_part(&mut session).await?;
    let mut writer = Writer::new(timestamps);
    let mut head = b"{\"logs\":[".to_vec();
    let is_complete = matches!(first, Part::End);
    head.extend(writer.write(first));
    let body = if is_complete {
        Body::from(head)
    } else {
        let rest = futures::stream::unfold(
            Some((session, writer, Some(head), share)),
            |state| async move {
                let (mut session, mut writer, head, share) = state?;
                if let Some(head) = head {
                    return Some((Ok(Bytes::from(head)), Some((session, writer, None, share))));
                }
                match next_part(&mut session).await {
                    Ok(part) => {
                        let is_last = matches!(part, Part::End);
                        let piece = Bytes::from(writer.write(part));
                        let state = (!is_last).then_some((session, writer, None, share));
                        Some((Ok(piece), state))
                    }
                    Err(error) => {
                        tracing::info!(error = %ErrorChain(&error), "reading logs failed within a response");
                        Some((Err(error), None))
                    }
                }
            },
        );
        Body::from_stream(rest)
    };
    let mut response = body.into_response();
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    Ok(response)
}

#[cfg(test)]
mod tests {
    use agentbox_api::logs::LogsReply;
    use agentbox_contracts::logs::OutputStream;
    use chrono::Utc;

    use super::*;

    fn entry(line: &str) -> LogEntry {
        LogEntry {
            sequence: 1,
            timestamp: Utc::now(),
            stream: OutputStream::Stdout,
            line: line.as_bytes().to_vec(),
            partial: false,
        }
    }

    fn written(parts: Vec<Part>) -> LogsReply {
        let mut writer = Writer::new(true);
        let mut json = b"{\"logs\":[".to_vec();
        for part in parts {
            json.extend(writer.write(part));
        }
        serde_json::from_slice(&json).unwrap()
    }

    #[test]
    fn batches_form_one_json_document() {
        assert!(written(vec![Part::End]).logs.is_empty());
        assert!(
            written(vec![Part::Entries(vec![]), Part::End])
                .logs
                .is_empty()
        );
        let reply = written(vec![
            Part::Lost(3),
            Part::Entries(vec![entry("a"), entry("\"b\"")]),
            Part::Lost(2),
            Part::Entries(vec![entry("c")]),
            Part::End,
        ]);
        let messages: Vec<&str> = reply
            .logs
            .iter()
            .map(|line| line.message.as_str())
            .collect();
        assert_eq!(messages, ["a", "\"b\"", "c"]);
        assert_eq!(reply.lost, Some(5));
    }
}
