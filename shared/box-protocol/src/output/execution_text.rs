//! The record of an execution as a line of text: `execution HEX`, the protobuf message in hexadecimal
//! digits. boxd writes it to its standard output between the lines of [`super::text`], so that the
//! container's log on Kubernetes has the executions of a box that has ended. `execution-forgotten ID` is
//! the line of one that boxd has forgotten.

use agentbox_contracts::executions::Execution;
use prost::Message as _;

use crate::executions::{cut, cut_command, is_id};

const PREFIX: &[u8] = b"execution ";
const FORGOTTEN: &[u8] = b"execution-forgotten ";
/// The size limit of the command, and of each other text, in bytes. The line is far shorter than the
/// 16 KiB at which a container runtime cuts a line of the log.
const TEXT_BYTES: usize = 1024;
/// The size that a label counts in addition to its texts, in bytes.
const LABEL_COST: usize = 8;
/// The size limit of a record that is decoded, in bytes.
const RECORD_BYTES: usize = 16 * 1024;

/// Appends the line of one execution, with its line feed. Its texts are cut.
pub fn encode(into: &mut Vec<u8>, execution: &Execution) {
    into.extend_from_slice(PREFIX);
    let record = shortened(execution.clone()).encode_to_vec();
    into.extend_from_slice(hex::encode(record).as_bytes());
    into.push(b'\n');
}

/// Decodes a line without its line feed; `None` when boxd has not written it like this.
#[must_use]
pub fn decode(text: &[u8]) -> Option<Execution> {
    let digits = text.strip_prefix(PREFIX)?;
    if digits.len() > 2 * RECORD_BYTES {
        return None;
    }
    Execution::decode(hex::decode(digits).ok()?.as_slice()).ok()
}

/// Appends the line of an execution that boxd has forgotten, with its line feed.
pub fn encode_forgotten(into: &mut Vec<u8>, id: &str) {
    into.extend_from_slice(FORGOTTEN);
    into.extend_from_slice(id.as_bytes());
    into.push(b'\n');
}

/// The id in the line of an execution that was forgotten, without its line feed; `None` for another
/// line.
#[must_use]
pub fn decode_forgotten(text: &[u8]) -> Option<&str> {
    let id = std::str::from_utf8(text.strip_prefix(FORGOTTEN)?).ok()?;
    is_id(id).then_some(id)
}

fn shortened(mut execution: Execution) -> Execution {
    cut_command(&mut execution.command, TEXT_BYTES);
    for text in [
        &mut execution.name,
        &mut execution.user,
        &mut execution.working_dir,
        &mut execution.status_reason,
    ] {
        cut(text, TEXT_BYTES);
    }
    let labels = execution.labels.iter();
    let label_bytes: usize = labels
        .map(|(name, value)| name.len() + value.len() + LABEL_COST)
        .sum();
    if label_bytes > TEXT_BYTES {
        execution.labels.clear();
    }
    execution
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::executions::ExecutionStatus;

    use super::super::text;
    use super::*;

    fn execution() -> Execution {
        Execution {
            id: "exec-0123456789abcdef".into(),
            command: vec!["printf".into(), "a\nb".into(), String::new()],
            status: ExecutionStatus::Exited.into(),
            exit_code: Some(3),
            stdout_bytes: u64::MAX,
            ..Execution::default()
        }
    }

    fn line(execution: &Execution) -> Vec<u8> {
        let mut line = Vec::new();
        encode(&mut line, execution);
        assert_eq!(line.pop(), Some(b'\n'));
        line
    }

    #[test]
    fn execution_round_trips_in_one_line_that_is_no_entry() {
        let line = line(&execution());
        assert!(!line.contains(&b'\n'));
        assert_eq!(decode(&line), Some(execution()));
        assert!(text::decode(&line).is_none());
    }

    #[test]
    fn longest_execution_fits_a_line_of_a_container_log() {
        let long = "é".repeat(100_000);
        let execution = Execution {
            name: long.clone(),
            command: vec!["é".into(); 100_000],
            user: long.clone(),
            working_dir: long.clone(),
            status_reason: long.clone(),
            labels: [("label".to_owned(), long)].into(),
            ..execution()
        };
        let line = line(&execution);
        assert!(line.len() < 16 * 1024, "{}", line.len());
        let decoded = decode(&line).unwrap();
        assert_eq!(decoded.id, execution.id);
        assert!(!decoded.command.is_empty());
        assert!(decoded.labels.is_empty());
    }

    #[test]
    fn forgotten_execution_has_a_line_of_its_own() {
        let mut line = Vec::new();
        encode_forgotten(&mut line, "exec-0123456789abcdef");
        assert_eq!(line.pop(), Some(b'\n'));
        assert_eq!(decode_forgotten(&line), Some("exec-0123456789abcdef"));
        assert!(decode(&line).is_none() && text::decode(&line).is_none());
        for text in [
            &b"execution-forgotten "[..],
            b"execution-forgotten a b",
            b"",
        ] {
            assert_eq!(decode_forgotten(text), None);
        }
    }

    #[test]
    fn line_that_is_not_boxds_is_no_execution() {
        let whole = line(&execution());
        assert_eq!(decode(&whole[..whole.len() - 1]), None);
        for text in [
            &b"execution xy"[..],
            b"execution ff",
            b"7 stdout F 1 x",
            b"",
        ] {
            assert_eq!(decode(text), None);
        }
    }
}
