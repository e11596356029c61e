//! The last output of a box, from its container's log.
//!
//! The log API does not distinguish the streams, so every entry is stdout. Of a rotated log it
//! returns the newest file only. Entries are numbered from the beginning of that file, as boxd
//! numbers them.

use std::collections::VecDeque;

use agentbox_box_protocol::output::MAX_LINE_BYTES;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::logs::{LogEntry, OutputStream};
use agentbox_runtime::RuntimeError;
use chrono::{DateTime, Utc};
use futures::AsyncBufReadExt as _;
use kube::api::LogParams;

use crate::context::Context;
use crate::objects::MAIN;

impl Context {
    pub async fn last_output(
        &self,
        id: &EnvironmentId,
        limit_bytes: usize,
    ) -> Result<Vec<LogEntry>, RuntimeError> {
        let pods = self.cluster.box_pods(id).await?;
        let parameters = LogParams {
            container: Some(MAIN.to_owned()),
            timestamps: true,
            ..Default::default()
        };
        let read = async {
            let mut newest = Newest::new(limit_bytes);
            let mut log = Box::pin(pods.log_stream(MAIN, &parameters).await?);
            let mut line = Vec::new();
            while log
                .read_until(b'\n', &mut line)
                .await
                .map_err(kube::Error::ReadEvents)?
                > 0
            {
                newest.push(&line);
                line.clear();
            }
            Ok(newest)
        };
        match self.cluster.call("read the log", read).await {
            Ok(newest) => Ok(newest.entries.into()),
            // No such Pod, or its container has not begun.
            Err(error) if matches!(error.refusal(), Some((400 | 404, _))) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The newest entries of a log, within a bound.
#[derive(Debug)]
struct Newest {
    entries: VecDeque<LogEntry>,
    bytes: usize,
    limit_bytes: usize,
    sequence: u64,
}

impl Newest {
    const fn new(limit_bytes: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            limit_bytes,
            sequence: 0,
        }
    }

    /// `2026-01-02T03:04:05.678901234Z the line\n`
    fn push(&mut self, record: &[u8]) {
        let record = record.strip_suffix(b"\n").unwrap_or(record);
        let split = record.iter().position(|byte| *byte == b' ');
        let (stamp, line) = match split {
            Some(at) => (&record[..at], &record[at + 1..]),
            None => (record, &[][..]),
        };
        let timestamp = std::str::from_utf8(stamp)
            .ok()
            .and_then(|text| text.parse::<DateTime<Utc>>().ok());
        let Some(timestamp) = timestamp else {
            return;
        };
        let mut parts = line.chunks(MAX_LINE_BYTES).peekable();
        if parts.peek().is_none() {
            self.add(timestamp, &[], false);
        }
        while let Some(part) = parts.next() {
            self.add(timestamp, part, parts.peek().is_some());
        }
    }

    fn add(&mut self, timestamp: DateTime<Utc>, line: &[u8], partial: bool) {
        self.sequence += 1;
        self.bytes += line.len();
        self.entries.push_back(LogEntry {
            sequence: self.sequence,
            timestamp,
            stream: OutputStream::Stdout,
            line: line.to_vec(),
            partial,
        });
        while self.bytes > self.limit_bytes
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= oldest.line.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest(limit: usize, records: &[&str]) -> Vec<(u64, String, bool)> {
        let mut newest = Newest::new(limit);
        for record in records {
            newest.push(record.as_bytes());
        }
        newest
            .entries
            .into_iter()
            .map(|e| (e.sequence, String::from_utf8(e.line).unwrap(), e.partial))
            .collect()
    }

    #[test]
    fn oldest_lines_are_dropped_and_sequences_kept() {
        let stamp = "2026-01-02T03:04:05.678901234Z";
        let records = [
            format!("{stamp} one\n"),
            format!("{stamp} \n"),
            format!("{stamp} two words\n"),
        ];
        let records: Vec<&str> = records.iter().map(String::as_str).collect();
        assert_eq!(
            newest(100, &records),
            [
                (1, "one".into(), false),
                (2, String::new(), false),
                (3, "two words".into(), false)
            ]
        );
        assert_eq!(newest(9, &records).last().unwrap().0, 3);
        assert_eq!(newest(9, &records)[0].0, 2);
    }

    #[test]
    fn long_line_is_split_like_boxd_splits_it() {
        let record = format!("2026-01-02T03:04:05Z {}\n", "x".repeat(MAX_LINE_BYTES + 1));
        let entries = newest(1 << 20, &[&record]);
        assert_eq!(entries.len(), 2);
        assert!(entries[0].2 && !entries[1].2);
        assert_eq!(entries[1].1, "x");
    }
}
