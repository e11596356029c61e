//! Records of executions in the archive: their bounds, and how they change after the end. Pure.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use agentbox_contracts::executions::{Execution, ExecutionStatus};
use agentbox_contracts::ids::ExecId;
use prost::Message as _;

/// The most records of one environment.
pub const MAX_RECORDS: usize = 1000;
/// The size limit of all records of one environment, encoded, in bytes.
pub const RECORDS_BYTES: usize = 1024 * 1024;
/// The size limit of one record. boxd's are shorter, because the API limits names and labels.
const RECORD_BYTES: usize = 64 * 1024;
/// The size limit of the command in a record, in bytes.
const COMMAND_BYTES: usize = 4096;

/// How an environment has ended, for the executions that its end has interrupted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// The status reason of the environment; may be empty.
    pub status_reason: String,
    /// Nanoseconds since the Unix epoch; `None` while the box runs.
    pub ended_unix_nanos: Option<i64>,
}

/// The record with a command of at most [`COMMAND_BYTES`]; `None` for a record that boxd cannot have
/// written.
#[must_use]
pub fn bounded(mut execution: Execution) -> Option<Execution> {
    execution.id.parse::<ExecId>().ok()?;
    shorten(&mut execution.command);
    (execution.encoded_len() <= RECORD_BYTES).then_some(execution)
}

fn shorten(command: &mut Vec<String>) {
    let mut remaining = COMMAND_BYTES;
    for index in 0..command.len() {
        let argument = &mut command[index];
        // An empty argument has a size too.
        if argument.len() < remaining {
            remaining -= argument.len() + 1;
            continue;
        }
        let end = argument.floor_char_boundary(remaining);
        argument.truncate(end);
        command.truncate(index + 1);
        return;
    }
}

/// Collects records, newest first, within the bounds.
#[derive(Default)]
pub struct Records {
    kept: Vec<Execution>,
    bytes: usize,
}

impl Records {
    /// Adds the next older record. `false`: there is no room for it.
    pub fn push(&mut self, execution: Execution) -> bool {
        let bytes = execution.encoded_len();
        let fits = self.kept.len() < MAX_RECORDS && bytes <= RECORDS_BYTES - self.bytes;
        if fits {
            self.bytes += bytes;
            self.kept.push(execution);
        }
        fits
    }

    #[must_use]
    pub fn into_vec(self) -> Vec<Execution> {
        self.kept
    }
}

/// The records of two sources, newest first. Of two records of one execution it keeps the one with
/// the outcome, and of two without the one with more output.
#[must_use]
pub fn merge(stored: Vec<Execution>, newer: Vec<Execution>) -> Vec<Execution> {
    let mut by_id = HashMap::new();
    for execution in stored.into_iter().chain(newer) {
        match by_id.entry(execution.id.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(execution);
            }
            Entry::Occupied(mut entry) => {
                if replaces(&execution, entry.get()) {
                    entry.insert(execution);
                }
            }
        }
    }
    let mut all: Vec<Execution> = by_id.into_values().collect();
    all.sort_unstable_by(|a, b| (b.created_unix_nanos, &b.id).cmp(&(a.created_unix_nanos, &a.id)));
    let mut records = Records::default();
    for execution in all {
        if !records.push(execution) {
            break;
        }
    }
    records.into_vec()
}

/// Whether the newer of two records of one execution is kept.
fn replaces(newer: &Execution, stored: &Execution) -> bool {
    let bytes = |of: &Execution| of.stdout_bytes.saturating_add(of.stderr_bytes);
    stored.status().is_active() && (!newer.status().is_active() || bytes(newer) > bytes(stored))
}

/// The record after the end of its environment: an execution without an outcome is lost.
#[must_use]
pub fn after_end(mut execution: Execution, ending: &Ending) -> Execution {
    if !execution.status().is_active() {
        return execution;
    }
    execution.set_status(ExecutionStatus::Lost);
    execution.status_reason.clone_from(&ending.status_reason);
    execution.pid = None;
    // The clocks of the box and of the scheduler may differ.
    let earliest = execution
        .started_unix_nanos
        .unwrap_or(execution.created_unix_nanos);
    execution.ended_unix_nanos = ending.ended_unix_nanos.map(|ended| ended.max(earliest));
    execution.duration_ms = execution
        .started_unix_nanos
        .zip(execution.ended_unix_nanos)
        .and_then(|(started, ended)| u64::try_from(ended.saturating_sub(started) / 1_000_000).ok());
    execution
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(status: ExecutionStatus, stdout_bytes: u64) -> Execution {
        Execution {
            id: ExecId::random().to_string(),
            status: status.into(),
            started_unix_nanos: Some(1_000_000_000),
            pid: Some(7),
            stdout_bytes,
            ..Execution::default()
        }
    }

    #[test]
    fn long_command_is_cut_between_characters() {
        let mut execution = record(ExecutionStatus::Running, 0);
        execution.command = vec!["sh".into(), String::new(), "é".repeat(5000), "last".into()];
        let command = bounded(execution).unwrap().command;
        assert_eq!(command.len(), 3);
        assert_eq!(command[2], "é".repeat((COMMAND_BYTES - 4) / 2));
        let mut short = record(ExecutionStatus::Running, 0);
        short.command = vec!["sh".into(), "-c".into(), String::new()];
        assert_eq!(bounded(short.clone()), Some(short));
    }

    #[test]
    fn record_that_boxd_has_not_made_is_dropped() {
        let mut foreign = record(ExecutionStatus::Exited, 0);
        foreign.id = "exec-../x".into();
        assert_eq!(bounded(foreign), None);
        let mut long = record(ExecutionStatus::Exited, 0);
        long.working_dir = "x".repeat(RECORD_BYTES);
        assert_eq!(bounded(long), None);
    }

    #[test]
    fn newest_records_are_kept_within_count_and_size() {
        let many: Vec<Execution> = (0..1500)
            .map(|number| Execution {
                created_unix_nanos: number,
                ..record(ExecutionStatus::Exited, 0)
            })
            .collect();
        let kept = merge(many.clone(), Vec::new());
        assert_eq!(kept.len(), MAX_RECORDS);
        assert_eq!(kept[0].created_unix_nanos, 1499);
        assert_eq!(kept[999].created_unix_nanos, 500);
        let large = many.into_iter().map(|mut execution| {
            execution.working_dir = "x".repeat(RECORD_BYTES / 2);
            execution
        });
        let kept = merge(Vec::new(), large.collect());
        assert!((30..=32).contains(&kept.len()), "{}", kept.len());
        assert_eq!(kept[0].created_unix_nanos, 1499);
    }

    #[test]
    fn record_with_outcome_replaces_one_without() {
        use ExecutionStatus::{Exited, Running, Signalled, Starting};
        for (stored, newer, expected) in [
            ((Running, 5), (Exited, 9), (Exited, 9)),
            ((Running, 5), (Starting, 0), (Running, 5)),
            ((Running, 5), (Running, 6), (Running, 6)),
            ((Exited, 5), (Starting, 0), (Exited, 5)),
            ((Exited, 5), (Signalled, 9), (Exited, 5)),
        ] {
            let stored = record(stored.0, stored.1);
            let mut newer = record(newer.0, newer.1);
            newer.id.clone_from(&stored.id);
            let merged = merge(vec![stored], vec![newer]);
            let found = (merged[0].status(), merged[0].stdout_bytes);
            assert_eq!((merged.len(), found), (1, expected));
        }
    }

    #[test]
    fn execution_without_outcome_is_lost_at_the_end() {
        let ending = Ending {
            status_reason: "DELETED".into(),
            ended_unix_nanos: Some(3_500_000_000),
        };
        let running = record(ExecutionStatus::Running, 5);
        let lost = after_end(running.clone(), &ending);
        assert_eq!(lost.status(), ExecutionStatus::Lost);
        assert_eq!(lost.status_reason, "DELETED");
        assert_eq!(lost.ended_unix_nanos, Some(3_500_000_000));
        assert_eq!((lost.duration_ms, lost.pid), (Some(2500), None));
        let early = Ending {
            ended_unix_nanos: Some(1),
            ..ending.clone()
        };
        let lost = after_end(running.clone(), &early);
        assert_eq!(lost.ended_unix_nanos, running.started_unix_nanos);
        assert_eq!(lost.duration_ms, Some(0));
        let ended = record(ExecutionStatus::Exited, 5);
        assert_eq!(after_end(ended.clone(), &ending), ended);
    }
}
