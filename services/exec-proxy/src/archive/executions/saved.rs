//! The output that boxd has saved in a file when its box ended. Pure.

use agentbox_box_protocol::executions::OutputReader;
use agentbox_contracts::executions::Execution;
use agentbox_contracts::executions::execution_output::Output;

use crate::archive::executions::collect::{Section, first_offsets};
use crate::archive::executions::record::MAX_RECORDS;

/// Selects the output to store, at most `output_bytes`, in the encoding of
/// [`Collected::output`](super::collect::Collected::output). Adds the numbers of bytes to the records
/// of executions that the end of the box interrupted.
pub fn select(records: &mut [Execution], saved: OutputReader, output_bytes: u64) -> Vec<u8> {
    let mut free = output_bytes;
    let mut into = Vec::new();
    let mut section = None;
    let mut sections = 0;
    for message in saved {
        match message.output {
            // boxd writes one for each execution.
            Some(Output::Execution(_)) if sections == MAX_RECORDS => break,
            Some(Output::Execution(head)) => {
                sections += 1;
                let record = records.iter_mut().find(|record| record.id == head.id);
                section = record.and_then(|record| begin(record, &head, &mut free));
            }
            Some(Output::Output(piece)) => {
                if let Some(section) = &mut section {
                    section.append(piece, &mut into);
                }
            }
            _ => {}
        }
    }
    into
}

fn begin(record: &mut Execution, head: &Execution, free: &mut u64) -> Option<Section> {
    if record.status().is_active() {
        record.stdout_bytes = record.stdout_bytes.max(head.stdout_bytes);
        record.stderr_bytes = record.stderr_bytes.max(head.stderr_bytes);
    }
    let from = first_offsets(record, free)?;
    Some(Section::new(record, from))
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::executions::{ExecutionOutput, ExecutionStatus, OutputPiece};
    use prost::Message as _;

    use super::*;

    fn execution(id: &str, status: ExecutionStatus, stdout_bytes: u64) -> Execution {
        Execution {
            id: id.into(),
            status: status.into(),
            stdout_bytes,
            ..Execution::default()
        }
    }

    fn piece(offset: u64, data: &'static str) -> Output {
        Output::Output(OutputPiece {
            stderr: false,
            offset,
            data: data.into(),
        })
    }

    fn reader(outputs: Vec<Output>) -> OutputReader {
        let bytes: Vec<u8> = outputs
            .into_iter()
            .map(|output| ExecutionOutput {
                output: Some(output),
            })
            .flat_map(|message| message.encode_length_delimited_to_vec())
            .collect();
        OutputReader::new(bytes)
    }

    #[test]
    fn output_of_known_executions_is_selected() {
        use ExecutionStatus::{Exited, Running};
        let mut records = [
            execution("exec-ended", Exited, 5),
            execution("exec-running", Running, 0),
        ];
        let saved = reader(vec![
            piece(0, "before"),
            Output::Execution(execution("exec-running", Running, 7)),
            piece(4, "new"),
            Output::Execution(execution("exec-unknown", Exited, 7)),
            piece(0, "unknown"),
            Output::Execution(execution("exec-ended", Exited, 50)),
            piece(0, "ended"),
            piece(5, "forged"),
        ]);
        let selected = select(&mut records, saved, 100);
        let head = |id: &str| Output::Execution(execution(id, ExecutionStatus::Starting, 0));
        let expected = vec![
            head("exec-running"),
            piece(4, "new"),
            head("exec-ended"),
            piece(0, "ended"),
        ];
        let found: Vec<Output> = OutputReader::new(selected)
            .filter_map(|message| message.output)
            .collect();
        assert_eq!(found, expected);
        assert_eq!(records.map(|record| record.stdout_bytes), [5, 7]);
    }

    #[test]
    fn selected_output_is_bounded() {
        let mut records = [execution("exec-ended", ExecutionStatus::Exited, 8)];
        let head = execution("exec-ended", ExecutionStatus::Exited, 8);
        let saved = || {
            let pieces = vec![piece(0, "oldest"), piece(6, "xy")];
            let head = Output::Execution(head.clone());
            reader([vec![head], pieces].concat())
        };
        let selected = select(&mut records, saved(), 2);
        assert_eq!(OutputReader::new(selected).count(), 2);
        assert!(select(&mut records, saved(), 0).is_empty());
    }
}
