//! Reads the executions of a running box from its boxd.

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::exec::MAX_CHUNK;
use agentbox_contracts::executions::execution_input::Input;
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{
    Execution, ExecutionInput, ExecutionOutput, ExecutionRequest, Offsets, OutputPiece, ReadOutput,
};
use prost::Message as _;
use tokio::time::{Instant, timeout_at};

use crate::archive::executions::record::{self, Records};
use crate::boxes::call::{Call, Executions};
use crate::boxes::{BoxError, Lease};

/// How long a running box may take to send its executions. Output that comes later is not stored.
const DEADLINE: Duration = Duration::from_secs(2);
/// The newest bytes of each stream that are stored.
pub const STREAM_BYTES: u64 = 1024 * 1024;
/// The size limit of the stored output with the lengths and offsets of its pieces, in bytes. It is
/// reached only when boxd sends far smaller pieces than it does.
const ENCODED_BYTES: usize = 18 * 1024 * 1024;

/// The executions of a box.
pub struct Collected {
    /// Newest first.
    pub records: Vec<Execution>,
    /// [`ExecutionOutput`] messages, each after its length: for each execution that has output its
    /// id, then its pieces.
    pub output: Vec<u8>,
}

/// Reads the records, and at most `output_bytes` of the newest output of the newest executions, until
/// the deadline.
///
/// # Errors
/// As the connection's, and boxd's, while the records are read.
pub async fn collect(lease: &Lease, output_bytes: u64) -> Result<Collected, BoxError> {
    let deadline = Instant::now() + DEADLINE;
    let mut records = timeout_at(deadline, list(lease))
        .await
        .unwrap_or_else(|_| Err(BoxError::Cluster("no answer within the deadline".into())))?;
    let mut output = Vec::new();
    let mut free = output_bytes;
    for record in &mut records {
        let Some(from) = first_offsets(record, &mut free) else {
            continue;
        };
        match timeout_at(deadline, read_output(lease, record, from, &mut output)).await {
            Ok(Ok(unread)) => free += unread,
            Ok(Err(error)) => {
                tracing::debug!(error = %ErrorChain(&error), "boxd sent no output of an execution");
            }
            Err(_) => {
                tracing::info!(environment.id = %lease.id(), "the output of some executions is not archived: the box is too slow");
                break;
            }
        }
    }
    Ok(Collected { records, output })
}

/// Reads the records, newest first, as many as the archive keeps. The caller sets the deadline.
///
/// # Errors
/// As the connection's, and boxd's.
pub async fn list(lease: &Lease) -> Result<Vec<Execution>, BoxError> {
    let mut call = open(lease, Operation::List(())).await?;
    let mut records = Records::default();
    loop {
        let Some(Output::Executions(list)) = call.next(lease).await?.output else {
            continue;
        };
        for execution in list.executions {
            if let Some(execution) = record::bounded(execution)
                && !records.push(execution)
            {
                return Ok(records.into_vec());
            }
        }
        if list.is_last {
            return Ok(records.into_vec());
        }
    }
}

/// Where to begin in both streams, so that at most [`STREAM_BYTES`] of each are read, and at most `free`
/// bytes together, which it reduces. `None`: there is nothing to read.
pub fn first_offsets(record: &Execution, free: &mut u64) -> Option<Offsets> {
    let mut take = |total: u64| {
        let bytes = total.min(STREAM_BYTES).min(*free);
        *free -= bytes;
        bytes
    };
    let (stdout, stderr) = (take(record.stdout_bytes), take(record.stderr_bytes));
    (stdout > 0 || stderr > 0).then(|| Offsets {
        stdout: record.stdout_bytes - stdout,
        stderr: record.stderr_bytes - stderr,
    })
}

/// Appends the output of one execution to `into`, and replaces its record by the newest. Returns how
/// many of the bytes are not kept by boxd.
async fn read_output(
    lease: &Lease,
    record: &mut Execution,
    from: Offsets,
    into: &mut Vec<u8>,
) -> Result<u64, BoxError> {
    let request = ReadOutput {
        id: record.id.clone(),
        stdout: true,
        stderr: true,
        from: Some(from),
        follow: false,
    };
    let mut call = open(lease, Operation::Output(request)).await?;
    let mut section = Section::new(record, from);
    loop {
        match call.next(lease).await?.output {
            Some(Output::Output(piece)) => section.append(piece, into),
            Some(Output::Execution(newest)) => {
                if let Some(newest) = record::bounded(newest).filter(|new| new.id == record.id) {
                    *record = newest;
                }
                return Ok(section.streams.iter().map(|(_, unread)| unread).sum());
            }
            _ => {}
        }
    }
}

/// The output of one execution, while it is appended.
pub struct Section {
    /// Written before the first piece.
    head: Option<ExecutionOutput>,
    /// Of stdout and stderr: the offset of the next byte, and the number of bytes to store.
    streams: [(u64, u64); 2],
}

impl Section {
    pub fn new(record: &Execution, from: Offsets) -> Self {
        let head = Output::Execution(Execution {
            id: record.id.clone(),
            ..Execution::default()
        });
        Self {
            head: Some(ExecutionOutput { output: Some(head) }),
            streams: [
                (from.stdout, record.stdout_bytes - from.stdout),
                (from.stderr, record.stderr_bytes - from.stderr),
            ],
        }
    }

    /// Appends a piece within the bounds. Ignores a piece that boxd has not made.
    pub fn append(&mut self, mut piece: OutputPiece, into: &mut Vec<u8>) {
        let (next, remaining) = &mut self.streams[usize::from(piece.stderr)];
        let offset = piece.offset;
        if piece.data.len() > MAX_CHUNK || offset < *next || *remaining == 0 {
            return;
        }
        // What the command has written since its record was made may be cut.
        piece
            .data
            .truncate(usize::try_from(*remaining).unwrap_or(usize::MAX));
        let length = piece.data.len() as u64;
        let Some(end) = offset.checked_add(length).filter(|_| length > 0) else {
            return;
        };
        let head = self.head.as_ref();
        let mut encoded =
            head.map_or_else(Vec::new, ExecutionOutput::encode_length_delimited_to_vec);
        let piece = ExecutionOutput {
            output: Some(Output::Output(piece)),
        };
        encoded.extend(piece.encode_length_delimited_to_vec());
        if encoded.len() <= ENCODED_BYTES - into.len() {
            (*next, *remaining) = (end, *remaining - length);
            self.head = None;
            into.append(&mut encoded);
        }
    }
}

async fn open(lease: &Lease, operation: Operation) -> Result<Call<Executions>, BoxError> {
    let request = ExecutionRequest {
        operation: Some(operation),
    };
    let first = ExecutionInput {
        input: Some(Input::Request(request)),
    };
    Call::open(lease, first, true, DEADLINE).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn execution(stdout_bytes: u64, stderr_bytes: u64) -> Execution {
        Execution {
            id: "exec-0123456789abcdef".into(),
            stdout_bytes,
            stderr_bytes,
            ..Execution::default()
        }
    }

    fn piece(stderr: bool, offset: u64, length: usize) -> OutputPiece {
        OutputPiece {
            stderr,
            offset,
            data: vec![b'x'; length].into(),
        }
    }

    #[test]
    fn newest_output_is_selected_within_both_bounds() {
        const MIB: u64 = 1024 * 1024;
        for (stdout, stderr, free, expected, left) in [
            (0, 0, MIB, None, MIB),
            (10, 20, MIB, Some((0, 0)), MIB - 30),
            (3 * MIB, 20, 2 * MIB, Some((2 * MIB, 0)), MIB - 20),
            (100, 100, 150, Some((0, 50)), 0),
            (200, 100, 150, Some((50, 100)), 0),
            (200, 100, 0, None, 0),
        ] {
            let mut free = free;
            let expected = expected.map(|(stdout, stderr)| Offsets { stdout, stderr });
            let found = first_offsets(&execution(stdout, stderr), &mut free);
            assert_eq!((found, free), (expected, left), "{stdout} {stderr}");
        }
    }

    #[test]
    fn pieces_that_boxd_has_not_made_are_not_stored() {
        let record = execution(100, 0);
        let from = Offsets {
            stdout: 10,
            stderr: 0,
        };
        let mut section = Section::new(&record, from);
        let mut stored = Vec::new();
        section.append(piece(false, 9, 5), &mut stored);
        section.append(piece(false, 10, 0), &mut stored);
        section.append(piece(false, 10, MAX_CHUNK + 1), &mut stored);
        section.append(piece(false, u64::MAX, 2), &mut stored);
        section.append(piece(true, 0, 1), &mut stored);
        assert!(stored.is_empty());
        section.append(piece(false, 20, 60), &mut stored);
        // More than the record announces, and again.
        section.append(piece(false, 80, 60), &mut stored);
        section.append(piece(false, 110, 60), &mut stored);
        let mut rest = stored.as_slice();
        let mut read = Vec::new();
        while !rest.is_empty() {
            let message = ExecutionOutput::decode_length_delimited(&mut rest).unwrap();
            read.push(message.output.unwrap());
        }
        let head = Execution {
            id: record.id,
            ..Execution::default()
        };
        let expected = [
            Output::Execution(head),
            Output::Output(piece(false, 20, 60)),
            Output::Output(piece(false, 80, 30)),
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn stored_output_never_exceeds_its_limit() {
        let mut stored = Vec::new();
        for _ in 0..30 {
            let mut section = Section::new(&execution(u64::MAX, 0), Offsets::default());
            for offset in 0..40_u64 {
                let length = MAX_CHUNK as u64;
                section.append(piece(false, offset * length, MAX_CHUNK), &mut stored);
            }
        }
        assert!(stored.len() <= ENCODED_BYTES);
        assert!(stored.len() > ENCODED_BYTES - 2 * MAX_CHUNK);
    }
}
