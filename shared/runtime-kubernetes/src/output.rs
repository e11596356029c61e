//! The last output of a box, from its container's log.
//!
//! boxd writes each entry as a line of [`agentbox_box_protocol::output::text`], so an entry has
//! boxd's number and stream, and a missing one is noticed. Other lines are not entries: the box may
//! have written them. Of a rotated log the log API returns the newest file only.

use std::collections::VecDeque;

use agentbox_box_protocol::output::{NewEntry, text};
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::logs::LogEntry;
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

/// The size that an entry counts in addition to its line, so that the number of empty lines is
/// bounded too.
const ENTRY_COST: usize = 32;

/// The newest entries of a log, within a bound.
#[derive(Debug)]
struct Newest {
    entries: VecDeque<LogEntry>,
    bytes: usize,
    limit_bytes: usize,
}

impl Newest {
    const fn new(limit_bytes: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            bytes: 0,
            limit_bytes,
        }
    }

    /// `2026-01-02T03:04:05.678901234Z 7 stdout F 8 the line\n`
    fn push(&mut self, record: &[u8]) {
        let record = record.strip_suffix(b"\n").unwrap_or(record);
        let Some((timestamp, sequence, entry)) = parse(record) else {
            return;
        };
        let last = self.entries.back().map_or(0, |last| last.sequence);
        if sequence <= last {
            return;
        }
        self.bytes += ENTRY_COST + entry.line.len();
        self.entries.push_back(LogEntry {
            sequence,
            timestamp,
            stream: entry.stream,
            line: entry.line.to_vec(),
            partial: entry.partial,
        });
        while self.bytes > self.limit_bytes
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= ENTRY_COST + oldest.line.len();
        }
    }
}

fn parse(record: &[u8]) -> Option<(DateTime<Utc>, u64, NewEntry<'_>)> {
    let space = record.iter().position(|byte| *byte == b' ')?;
    let timestamp = std::str::from_utf8(&record[..space]).ok()?.parse().ok()?;
    let (sequence, entry) = text::decode(&record[space + 1..])?;
    Some((timestamp, sequence, entry))
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

    const STAMP: &str = "2026-01-02T03:04:05.678901234Z";

    #[test]
    fn oldest_lines_are_dropped_and_sequences_kept() {
        let records = [
            format!("{STAMP} 7 stdout F 3 one\n"),
            format!("{STAMP} 8 stdout F 0 \n"),
            format!("{STAMP} 10 stderr P 9 two words\n"),
        ];
        let records: Vec<&str> = records.iter().map(String::as_str).collect();
        assert_eq!(
            newest(1_000, &records),
            [
                (7, "one".into(), false),
                (8, String::new(), false),
                (10, "two words".into(), true)
            ]
        );
        let limit = 2 * ENTRY_COST + 9;
        assert_eq!(newest(limit, &records)[0].0, 8);
        assert!(newest(8, &records).is_empty());
    }

    #[test]
    fn line_that_is_not_boxds_is_no_entry() {
        let records = [
            format!("{STAMP} 7 stdout F 3 one\n"),
            format!("{STAMP} boxd: something\n"),
            format!("{STAMP} 6 stdout F 7 earlier\n"),
            format!("{STAMP} 8 stdout F 20 was cut\n"),
            format!("{STAMP}\n"),
            "9 stdout F 1 x\n".to_owned(),
            // Of a killed container: without a line feed.
            format!("{STAMP} 9 stdout F 4 last"),
        ];
        let records: Vec<&str> = records.iter().map(String::as_str).collect();
        assert_eq!(
            newest(1_000, &records),
            [(7, "one".into(), false), (9, "last".into(), false)]
        );
    }
}
