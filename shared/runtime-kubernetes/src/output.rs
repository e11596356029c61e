//! The last output of a box and its executions, from its container's log.
//!
//! boxd writes each entry as a line of [`text`], so an entry has boxd's number and stream, and a missing
//! one is noticed; and each record of an execution as a line of [`execution_text`]. Other lines are
//! ignored: the box may have written them. Of a rotated log the log API returns the newest file only.

use std::collections::{HashMap, VecDeque};

use agentbox_box_protocol::output::{NewEntry, execution_text, text};
use agentbox_contracts::executions::Execution;
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
        let newest = self.read_log(id, Newest::new(limit_bytes)).await?;
        Ok(newest.entries.into())
    }

    pub async fn last_executions(
        &self,
        id: &EnvironmentId,
    ) -> Result<Vec<Execution>, RuntimeError> {
        let executions = self.read_log(id, Executions::default()).await?;
        Ok(executions.into_vec())
    }

    /// Collects from each line of the box's log: from none when there is no log.
    async fn read_log<C: Collect>(
        &self,
        id: &EnvironmentId,
        mut collected: C,
    ) -> Result<C, RuntimeError> {
        let pods = self.cluster.box_pods(id).await?;
        let parameters = LogParams {
            container: Some(MAIN.to_owned()),
            timestamps: true,
            ..Default::default()
        };
        let read = async {
            let mut log = Box::pin(pods.log_stream(MAIN, &parameters).await?);
            let mut line = Vec::new();
            while log
                .read_until(b'\n', &mut line)
                .await
                .map_err(kube::Error::ReadEvents)?
                > 0
            {
                collected.push(&line);
                line.clear();
            }
            Ok(())
        };
        match self.cluster.call("read the log", read).await {
            Ok(()) => Ok(collected),
            // No such Pod, or its container has not begun.
            Err(error) if matches!(error.refusal(), Some((400 | 404, _))) => Ok(collected),
            Err(error) => Err(error.into()),
        }
    }
}

/// Takes what it needs from the lines of a log.
trait Collect: Send {
    /// Takes the next line: a timestamp, a space, what boxd has written, and mostly a line feed.
    fn push(&mut self, record: &[u8]);
}

/// The size that an entry counts in addition to its line, so that the number of empty lines is
/// bounded too.
const ENTRY_COST: usize = 32;

/// More executions than the log of a box has, whose newest file is 10 MiB.
const MAX_EXECUTIONS: usize = 50_000;

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
}

impl Collect for Newest {
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
    let (timestamp, text) = split_timestamp(record)?;
    let timestamp = std::str::from_utf8(timestamp).ok()?.parse().ok()?;
    let (sequence, entry) = text::decode(text)?;
    Some((timestamp, sequence, entry))
}

fn split_timestamp(record: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = record.iter().position(|byte| *byte == b' ')?;
    Some((&record[..space], &record[space + 1..]))
}

/// The newest record of each execution of a log, without those that boxd has forgotten.
#[derive(Debug, Default)]
struct Executions {
    by_id: HashMap<String, Execution>,
}

impl Collect for Executions {
    /// `2026-01-02T03:04:05.678901234Z execution 0a09...\n`
    fn push(&mut self, record: &[u8]) {
        let record = record.strip_suffix(b"\n").unwrap_or(record);
        let Some((_, text)) = split_timestamp(record) else {
            return;
        };
        if let Some(forgotten) = execution_text::decode_forgotten(text) {
            self.by_id.remove(forgotten);
            return;
        }
        let Some(execution) = execution_text::decode(text) else {
            return;
        };
        if self.by_id.len() < MAX_EXECUTIONS || self.by_id.contains_key(&execution.id) {
            self.by_id.insert(execution.id.clone(), execution);
        }
    }
}

impl Executions {
    /// Oldest first.
    fn into_vec(self) -> Vec<Execution> {
        let mut executions: Vec<Execution> = self.by_id.into_values().collect();
        executions.sort_by_key(|execution| execution.created_unix_nanos);
        executions
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

    #[test]
    fn newest_record_of_each_execution_is_kept() {
        let execution = |id: &str, created_unix_nanos, exit_code| Execution {
            id: id.into(),
            created_unix_nanos,
            exit_code,
            ..Execution::default()
        };
        let mut executions = Executions::default();
        for record in [
            execution("exec-2", 2, None),
            execution("exec-1", 1, None),
            execution("exec-2", 2, Some(3)),
        ] {
            let mut line = format!("{STAMP} ").into_bytes();
            execution_text::encode(&mut line, &record);
            executions.push(&line);
            executions.push(format!("{STAMP} 7 stdout F 3 one\n").as_bytes());
        }
        assert_eq!(
            executions.into_vec(),
            [
                execution("exec-1", 1, None),
                execution("exec-2", 2, Some(3))
            ]
        );
    }

    #[test]
    fn forgotten_execution_is_left_out() {
        let mut executions = Executions::default();
        for id in ["exec-1", "exec-2"] {
            let record = Execution {
                id: id.into(),
                ..Execution::default()
            };
            let mut line = format!("{STAMP} ").into_bytes();
            execution_text::encode(&mut line, &record);
            executions.push(&line);
        }
        executions.push(format!("{STAMP} execution-forgotten exec-1\n").as_bytes());
        let kept = executions.into_vec();
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].id, "exec-2");
    }
}
