//! Writes the newest output to the output directory when the box ends, for readers after its end.

use std::io;
use std::path::Path;

use agentbox_box_protocol::executions::OutputWriter;
use agentbox_contracts::executions::{
    self as contract, ExecutionOutput, Offsets, execution_output,
};

use super::Executions;
use super::execution::Execution;
use super::output::Begin;
use crate::stderr;

/// The newest bytes of each stream that are written.
const STREAM_BYTES: u64 = 1024 * 1024;

impl Executions {
    /// Writes the newest output, that of the newest executions first, until the directory is full. No
    /// execution runs any more.
    pub fn save_output(&self, directory: &Path) {
        let executions = self.registry.list();
        if executions.is_empty() {
            return;
        }
        let saved = OutputWriter::create(directory).and_then(|mut writer| {
            let mut newest_first = executions.iter();
            newest_first.try_for_each(|execution| save(execution, &mut writer))
        });
        match saved {
            Err(error) if error.kind() != io::ErrorKind::StorageFull => {
                stderr::line(&format!("boxd: writing the output of executions: {error}"));
            }
            _ => {}
        }
    }
}

/// Writes the output of one execution, and drops it: the directory is charged to the box too. A follower
/// that is to get every byte finds the rest in boxd, or, once it has lost the connection, in the file.
fn save(execution: &Execution, writer: &mut OutputWriter) -> io::Result<()> {
    let output = &execution.output;
    let ends = output.ends();
    let [stdout, stderr] = ends.map(|end| end.saturating_sub(STREAM_BYTES));
    // Not after the ends.
    let from = Begin::At(Offsets { stdout, stderr });
    let Ok(mut positions) = output.positions([true; 2], from) else {
        return Ok(());
    };
    let head = execution_output::Output::Execution(contract::Execution {
        id: execution.id().to_owned(),
        stdout_bytes: ends[0],
        stderr_bytes: ends[1],
        ..contract::Execution::default()
    });
    writer.write(&ExecutionOutput { output: Some(head) })?;
    for stream in 0..2 {
        while let Some(next) = output.next(stream, &mut positions, ends, None) {
            // A gap follows from the offsets.
            if matches!(next, execution_output::Output::Output(_)) {
                writer.write(&ExecutionOutput { output: Some(next) })?;
            }
        }
    }
    if !output.must_be_delivered() {
        output.drop_kept();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use agentbox_contracts::executions::{ExecutionStart, OnFull};
    use agentbox_contracts::logs::OutputStream;

    use super::super::kept::KeptOutput;
    use super::super::spec::ExecutionSpec;
    use super::*;
    use crate::process::OutputStore as _;

    #[test]
    fn follower_of_block_has_no_gap_after_the_output_was_saved() {
        let directory = tempfile::tempdir().unwrap();
        for on_full in [OnFull::Drop, OnFull::Block] {
            let start = ExecutionStart {
                id: "exec-1".into(),
                command: vec!["true".into()],
                on_full: on_full.into(),
                ..ExecutionStart::default()
            };
            let spec = ExecutionSpec::try_from(start).unwrap();
            let execution = Execution::new(&spec, Arc::new(KeptOutput::new(1000)));
            let output = &execution.output;
            let written = output.read_into(OutputStream::Stdout, &mut [0; 3], |buffer| {
                buffer.copy_from_slice(b"abc");
                Ok(3)
            });
            assert!(matches!(written, Some(Ok(3))));
            let mut positions = output.follow([true; 2], Begin::Oldest).unwrap().positions;
            let mut writer = OutputWriter::create(directory.path()).unwrap();
            save(&execution, &mut writer).unwrap();
            let next = output.next(0, &mut positions, [3, 0], None);
            let is_kept = matches!(next, Some(execution_output::Output::Output(_)));
            assert_eq!(is_kept, on_full == OnFull::Block);
        }
    }
}
