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

/// Writes the output of one execution, and drops it: the directory is charged to the box too.
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
    output.drop_kept();
    Ok(())
}
