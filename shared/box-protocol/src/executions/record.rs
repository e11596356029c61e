//! The records of the journal: their encoding, and their bounds. Pure.

use std::collections::HashMap;

use agentbox_contracts::executions::{Execution, ExecutionStatus};
use prost::Message as _;

/// Before each record: its length and its CRC-32, each in 4 bytes, the lowest byte first.
const HEADER: usize = 8;
/// The kinds of records, in their first byte.
const EXECUTION: u8 = 1;
const FORGOTTEN: u8 = 2;

const MAX_ID_BYTES: usize = 128;
const MAX_COMMAND_BYTES: usize = 4 * 1024;
const MAX_PATH_BYTES: usize = 4 * 1024;
const MAX_TEXT_BYTES: usize = 512;
/// Labels that are longer together are left out.
const MAX_LABEL_BYTES: usize = 2 * 1024;
/// The longest record: its texts, and the lengths and numbers around them.
const MAX_RECORD_BYTES: usize = 32 * 1024;

/// Whether `text` can be the id of an execution: 1 to 128 of `A-Z a-z 0-9 _ -`.
#[must_use]
pub fn is_id(text: &str) -> bool {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=MAX_ID_BYTES).contains(&text.len()) && text.bytes().all(valid)
}

/// Whether the execution has no end.
pub fn is_active(execution: &Execution) -> bool {
    ExecutionStatus::try_from(execution.status).is_ok_and(ExecutionStatus::is_active)
}

/// The record of an execution.
pub fn execution(execution: &Execution) -> Vec<u8> {
    encode(EXECUTION, &bounded(execution.clone()).encode_to_vec())
}

/// The record of an execution that was forgotten.
pub fn forgotten(id: &str) -> Vec<u8> {
    encode(FORGOTTEN, id.as_bytes())
}

fn encode(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEADER + 1 + body.len());
    // The bounds of the texts keep the length far below u32::MAX.
    let length = u32::try_from(1 + body.len()).unwrap_or(0);
    record.extend_from_slice(&length.to_le_bytes());
    record.extend_from_slice(&[0; 4]);
    record.push(kind);
    record.extend_from_slice(body);
    let crc = crc32fast::hash(&record[HEADER..]);
    record[4..HEADER].copy_from_slice(&crc.to_le_bytes());
    record
}

/// The executions that the records leave, in the order of their first records.
pub fn replay(mut rest: &[u8]) -> Vec<Execution> {
    let mut executions: Vec<Option<Execution>> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    while let Some((kind, body, after)) = decode(rest) {
        rest = after;
        match kind {
            EXECUTION => {
                let Some(execution) = Execution::decode(body).ok().and_then(checked) else {
                    continue;
                };
                let next = executions.len();
                let place = *places.entry(execution.id.clone()).or_insert(next);
                match executions.get_mut(place) {
                    Some(earlier) => *earlier = Some(execution),
                    None => executions.push(Some(execution)),
                }
            }
            FORGOTTEN => {
                let place = std::str::from_utf8(body)
                    .ok()
                    .and_then(|id| places.remove(id));
                if let Some(forgotten) = place.and_then(|place| executions.get_mut(place)) {
                    *forgotten = None;
                }
            }
            // Of a later version.
            _ => {}
        }
    }
    executions.into_iter().flatten().collect()
}

/// The first record of `bytes` and what follows; `None` when there is no complete record with a
/// valid checksum.
fn decode(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if !(1..=MAX_RECORD_BYTES).contains(&length) {
        return None;
    }
    let (record, rest) = rest.split_at_checked(length)?;
    if crc32fast::hash(record) != u32::from_le_bytes(*crc) {
        return None;
    }
    let (kind, body) = record.split_first()?;
    Some((*kind, body, rest))
}

/// The execution, if boxd could have written it.
fn checked(execution: Execution) -> Option<Execution> {
    let status = ExecutionStatus::try_from(execution.status).ok()?;
    let is_known = status != ExecutionStatus::Lost && is_id(&execution.id);
    let has_valid_end = execution
        .exit_code
        .is_none_or(|code| (0..=255).contains(&code))
        && execution
            .signal
            .is_none_or(|signal| (1..=64).contains(&signal));
    (is_known && has_valid_end).then(|| bounded(execution))
}

fn bounded(mut execution: Execution) -> Execution {
    cut_command(&mut execution.command, MAX_COMMAND_BYTES);
    cut(&mut execution.name, MAX_TEXT_BYTES);
    cut(&mut execution.user, MAX_TEXT_BYTES);
    cut(&mut execution.status_reason, MAX_TEXT_BYTES);
    cut(&mut execution.working_dir, MAX_PATH_BYTES);
    let labels = execution.labels.iter();
    let label_bytes: usize = labels.map(|(name, value)| name.len() + value.len()).sum();
    if label_bytes > MAX_LABEL_BYTES {
        execution.labels.clear();
    }
    execution
}

/// Cuts the arguments to `max` bytes together, each counted with its end.
pub(crate) fn cut_command(command: &mut Vec<String>, max: usize) {
    let mut left = max;
    let mut kept = 0;
    for argument in command.iter_mut() {
        if left == 0 {
            break;
        }
        kept += 1;
        cut(argument, left);
        left = left.saturating_sub(argument.len() + 1);
    }
    command.truncate(kept);
}

/// Cuts a text to at most `max` bytes, in whole characters.
pub(crate) fn cut(text: &mut String, max: usize) {
    text.truncate(text.floor_char_boundary(max));
}
