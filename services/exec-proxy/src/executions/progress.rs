//! The progress of one operation on executions: which of its outputs were sent, and the request that
//! continues it. Pure.

use std::collections::HashSet;
use std::time::Duration;

use agentbox_contracts::exec::FromBox;
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{
    ExecutionList, ExecutionOutput, ExecutionRequest, GetExecution, Offsets, OutputGap,
    OutputPiece, ReadOutput, control_execution,
};

use crate::boxes::BoxError;
use crate::executions::KIND;
use crate::relay::{Message, check_chunk};

/// The limit for the records of one list.
const MAX_LISTED: usize = 10_000;
/// The limit for the length of an id, in bytes. The ids of a list are kept until its end.
const MAX_ID_BYTES: usize = 64;

/// How often the call of an operation may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repetition {
    Never,
    /// Until boxd has answered it: before that it changes nothing.
    Opening,
    /// After a lost connection too.
    Always,
}

pub struct Progress {
    operation: Option<Operation>,
    /// The number of outputs that were sent.
    sent: u64,
    /// For a list: the ids that were sent.
    listed: HashSet<String>,
    /// For output: of stdout and of stderr.
    streams: [Stream; 2],
}

/// The progress of one output stream.
#[derive(Clone, Copy, Default)]
struct Stream {
    /// The offset of the next byte. `None` before the first one.
    next: Option<u64>,
    /// It was asked for at 0 only because the other stream had an offset: a gap at its beginning is
    /// not reported to a reader that begins at the oldest kept byte.
    begins_anywhere: bool,
}

impl Progress {
    #[must_use]
    pub fn new(request: ExecutionRequest) -> Self {
        Self {
            operation: request.operation,
            sent: 0,
            listed: HashSet::new(),
            streams: [Stream::default(); 2],
        }
    }

    #[must_use]
    pub fn repetition(&self) -> Repetition {
        use control_execution::Control;
        match &self.operation {
            // A start is repeated with its id, which boxd answers with its execution.
            Some(
                Operation::Start(_)
                | Operation::List(())
                | Operation::Get(_)
                | Operation::Output(_),
            ) => Repetition::Always,
            Some(Operation::Delete(delete)) if !delete.purge => Repetition::Always,
            Some(Operation::Control(control))
                if matches!(control.control, Some(Control::Resize(_))) =>
            {
                Repetition::Always
            }
            Some(Operation::Stdin(_) | Operation::Attach(_)) => Repetition::Opening,
            // A second signal may act again, and what was forgotten is not found.
            Some(Operation::Delete(_) | Operation::Control(_)) | None => Repetition::Never,
        }
    }

    /// The name of the operation, a label of the metrics.
    #[must_use]
    pub const fn operation(&self) -> &'static str {
        match &self.operation {
            Some(Operation::Start(_)) => "start",
            Some(Operation::List(())) => "list",
            Some(Operation::Get(_)) => "get",
            Some(Operation::Output(_)) => "output",
            Some(Operation::Stdin(_)) => "stdin",
            Some(Operation::Control(_)) => "control",
            Some(Operation::Delete(_)) => "delete",
            Some(Operation::Attach(_)) => "attach",
            None => "unknown",
        }
    }

    /// The number of outputs that were sent.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    /// The request for the outputs that were not sent yet, `elapsed` after the first request.
    pub fn request(&mut self, elapsed: Duration) -> ExecutionRequest {
        let operation = match self.operation.clone() {
            Some(Operation::Get(get)) => {
                let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
                Some(Operation::Get(GetExecution {
                    wait_ms: get.wait_ms.saturating_sub(elapsed_ms),
                    ..get
                }))
            }
            Some(Operation::Output(read)) => Some(Operation::Output(self.rest_of(read))),
            other => other,
        };
        ExecutionRequest { operation }
    }

    fn rest_of(&mut self, read: ReadOutput) -> ReadOutput {
        if self.streams.iter().all(|stream| stream.next.is_none()) {
            return read;
        }
        let [stdout, stderr] = &mut self.streams;
        let offset = |stream: &mut Stream, asked: Option<u64>| {
            stream.begins_anywhere = stream.next.is_none() && asked.is_none();
            stream.next.or(asked).unwrap_or(0)
        };
        let from = Offsets {
            stdout: offset(stdout, read.from.map(|from| from.stdout)),
            stderr: offset(stderr, read.from.map(|from| from.stderr)),
        };
        ReadOutput {
            from: Some(from),
            ..read
        }
    }

    /// Checks an output, and notes it as sent.
    ///
    /// # Errors
    /// [`BoxError::Invalid`] when boxd does not send it in this operation, [`BoxError::Lost`] when bytes
    /// are missing before it.
    pub fn take(&mut self, output: ExecutionOutput) -> Result<Message, BoxError> {
        let output = output
            .output
            .ok_or(BoxError::Invalid("an execution output without content"))?;
        let message = self.convert(output)?;
        self.sent += u64::from(matches!(message, Message::Send(_)));
        Ok(message)
    }

    /// The message for an output, if boxd may send it now.
    fn convert(&mut self, output: Output) -> Result<Message, BoxError> {
        let is_list = matches!(self.operation, Some(Operation::List(())));
        let is_attached = matches!(self.operation, Some(Operation::Attach(_)));
        let is_read = matches!(self.operation, Some(Operation::Output(_)));
        match output {
            Output::Execution(_) if !is_list => Ok(Message::Last(message(output))),
            Output::Executions(list) if is_list => self.take_list(list),
            Output::Output(piece) if is_read || is_attached => {
                check_chunk(KIND, &piece.data)?;
                if is_read {
                    self.take_piece(&piece)?;
                }
                Ok(Message::Send(message(Output::Output(piece))))
            }
            Output::Gap(gap) if is_read => self.take_gap(gap),
            Output::Gap(_) | Output::Attached(_) | Output::HasInput(_) if is_attached => {
                Ok(Message::Send(message(output)))
            }
            _ => Err(BoxError::Invalid("an output of another operation")),
        }
    }

    fn take_list(&mut self, list: ExecutionList) -> Result<Message, BoxError> {
        let ExecutionList {
            mut executions,
            is_last,
        } = list;
        if executions
            .iter()
            .any(|execution| execution.id.len() > MAX_ID_BYTES)
        {
            return Err(BoxError::Invalid("an id that is too long"));
        }
        executions.retain(|execution| self.listed.insert(execution.id.clone()));
        if self.listed.len() > MAX_LISTED {
            return Err(BoxError::Invalid("too many executions"));
        }
        if executions.is_empty() && !is_last {
            return Ok(Message::Skip);
        }
        let list = message(Output::Executions(ExecutionList {
            executions,
            is_last,
        }));
        Ok(match is_last {
            true => Message::Last(list),
            false => Message::Send(list),
        })
    }

    fn take_piece(&mut self, piece: &OutputPiece) -> Result<(), BoxError> {
        self.advance(piece.stderr, piece.offset, piece.data.len() as u64)
    }

    fn take_gap(&mut self, gap: OutputGap) -> Result<Message, BoxError> {
        let stream = self.streams[usize::from(gap.stderr)];
        self.advance(gap.stderr, gap.offset, gap.bytes)?;
        if stream.next.is_none() && stream.begins_anywhere {
            return Ok(Message::Skip);
        }
        Ok(Message::Send(message(Output::Gap(gap))))
    }

    /// Moves the stream's offset over `count` bytes at `offset`.
    fn advance(&mut self, stderr: bool, offset: u64, count: u64) -> Result<(), BoxError> {
        let stream = &mut self.streams[usize::from(stderr)];
        if let Some(next) = stream.next
            && next != offset
        {
            return Err(BoxError::Lost(format!(
                "output continues at byte {offset} instead of {next}"
            )));
        }
        let next = offset
            .checked_add(count)
            .ok_or(BoxError::Invalid("an offset that is too large"))?;
        stream.next = Some(next);
        Ok(())
    }
}

fn message(output: Output) -> FromBox {
    FromBox::Execution(ExecutionOutput {
        output: Some(output),
    })
}

#[cfg(test)]
mod tests;
