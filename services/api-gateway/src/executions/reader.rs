//! Reads the output of an execution, over as many sessions as are needed.
//!
//! * I1. Every byte is returned once and in order, or a gap is: when a session breaks, the next one begins
//!   at the offsets that were returned, and what is sent twice is dropped.
//! * I2. When the environment has ended, the archive answers. If it does not know the execution, its
//!   outcome is `lost`, with the reason of the environment's end.
//! * I3. Output that cannot be read for [`RETRY_LIMIT`] ends with the error, or as in I2.

use std::time::Duration;

use agentbox_contracts::environment::{Status, StatusReason};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{
    Execution, ExecutionStatus, Offsets, OutputGap, OutputPiece, ReadOutput,
};
use bytes::Buf as _;

use super::retry::{Retry, relocate};
use super::session;
use crate::box_session::BoxSession;
use crate::lookup::EnvironmentLocation;
use crate::state::Gateway;

const RETRY_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, PartialEq)]
pub(super) enum Item {
    Output(OutputPiece),
    Gap(OutputGap),
    /// The outcome, or without `follow` the present state. Nothing follows.
    End(Box<Execution>),
}

pub(super) struct Reader {
    gateway: Gateway,
    location: EnvironmentLocation,
    /// The execution as it was last seen.
    execution: Execution,
    cursor: Cursor,
    session: Option<Box<BoxSession>>,
    retry: Retry,
}

impl Reader {
    /// `execution` was just read: it exists, and its environment answers.
    pub(super) fn new(
        gateway: Gateway,
        location: EnvironmentLocation,
        execution: Execution,
        read: ReadOutput,
    ) -> Self {
        Self {
            gateway,
            location,
            execution,
            cursor: Cursor { read },
            session: None,
            retry: Retry::begun(),
        }
    }

    /// The next item.
    ///
    /// # Errors
    /// When the output cannot be read.
    pub(super) async fn next(&mut self) -> Result<Item, Error> {
        loop {
            match self.receive().await {
                Ok(item) => {
                    self.retry.succeeded();
                    if let Some(item) = item {
                        return Ok(item);
                    }
                }
                Err(error) => {
                    self.session = None;
                    if let Some(outcome) = self.recover(error).await? {
                        return Ok(Item::End(Box::new(outcome)));
                    }
                }
            }
        }
    }

    /// Receives one message. `None`: it has nothing new.
    async fn receive(&mut self) -> Result<Option<Item>, Error> {
        let session = match &mut self.session {
            Some(session) => session,
            None => {
                let operation = Operation::Output(self.cursor.read.clone());
                let session = session::open(&self.gateway, &self.location, operation).await?;
                self.session.insert(Box::new(session))
            }
        };
        let output = session::output(session.recv().await?)?;
        self.cursor.accept(output)
    }

    /// Waits before the next attempt, or returns the outcome of an execution that was lost.
    async fn recover(&mut self, error: Error) -> Result<Option<Execution>, Error> {
        let has_ended = self.location.status != Status::Running;
        if has_ended && error.code == ErrorCode::NotFound {
            return Ok(Some(self.lost()));
        }
        let is_temporary = self.retry.is_temporary(error.code);
        match self.retry.pause(error, RETRY_LIMIT).await {
            Ok(()) => {}
            Err(_) if has_ended && is_temporary => return Ok(Some(self.lost())),
            Err(error) => return Err(error),
        }
        relocate(&self.gateway, &mut self.location).await?;
        Ok(None)
    }

    fn lost(&self) -> Execution {
        let environment = self.location.record.as_deref();
        lost(
            &self.execution,
            environment.and_then(|one| one.status_reason),
        )
    }
}

/// The outcome of an execution whose environment has ended for `reason`.
fn lost(execution: &Execution, reason: Option<StatusReason>) -> Execution {
    if !execution.status().is_active() {
        return execution.clone();
    }
    Execution {
        status: ExecutionStatus::Lost.into(),
        status_reason: reason.map_or_else(String::new, |reason| reason.as_str().to_owned()),
        ..execution.clone()
    }
}

/// What was read until now, as the request that continues after it.
struct Cursor {
    read: ReadOutput,
}

impl Cursor {
    /// The offset of the next byte of a stream, if anything was read or requested.
    fn expected(&self, stderr: bool) -> Option<u64> {
        let from = self.read.from?;
        Some(if stderr { from.stderr } else { from.stdout })
    }

    fn advance(&mut self, stderr: bool, to: u64) {
        let from = self.read.from.get_or_insert_with(Offsets::default);
        if stderr {
            from.stderr = to;
        } else {
            from.stdout = to;
        }
    }

    /// Takes what is new in an output. `None`: nothing.
    fn accept(&mut self, output: Output) -> Result<Option<Item>, Error> {
        match output {
            Output::Output(piece) => self.piece(piece),
            Output::Gap(gap) => Ok(self.gap(gap)),
            Output::Execution(execution) => Ok(Some(Item::End(Box::new(execution)))),
            Output::Executions(_) | Output::Attached(_) | Output::HasInput(_) => {
                Err(Error::internal())
            }
        }
    }

    fn piece(&mut self, mut piece: OutputPiece) -> Result<Option<Item>, Error> {
        if let Some(expected) = self.expected(piece.stderr) {
            if piece.offset > expected {
                tracing::error!(
                    expected,
                    offset = piece.offset,
                    "output of an execution is missing without a gap"
                );
                return Err(Error::internal());
            }
            let repeated = usize::try_from(expected - piece.offset).unwrap_or(usize::MAX);
            if repeated > 0 {
                piece.data.advance(repeated.min(piece.data.len()));
                piece.offset = expected;
            }
        }
        if piece.data.is_empty() {
            return Ok(None);
        }
        let end = piece.offset.saturating_add(piece.data.len() as u64);
        self.advance(piece.stderr, end);
        Ok(Some(Item::Output(piece)))
    }

    fn gap(&mut self, mut gap: OutputGap) -> Option<Item> {
        let end = gap.offset.saturating_add(gap.bytes);
        let begin = self.expected(gap.stderr).unwrap_or(gap.offset);
        if end <= begin {
            return None;
        }
        gap.offset = begin;
        gap.bytes = end - begin;
        self.advance(gap.stderr, end);
        Some(Item::Gap(gap))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn cursor(from: Option<Offsets>) -> Cursor {
        Cursor {
            read: ReadOutput {
                from,
                ..ReadOutput::default()
            },
        }
    }

    fn piece(stderr: bool, offset: u64, data: &'static str) -> OutputPiece {
        OutputPiece {
            stderr,
            offset,
            data: Bytes::from_static(data.as_bytes()),
        }
    }

    #[test]
    fn repeated_output_is_dropped_and_the_next_session_continues() {
        let mut cursor = cursor(Some(Offsets::default()));
        let mut accept = |stderr, offset, data| {
            let item = cursor.accept(Output::Output(piece(stderr, offset, data)));
            (item.unwrap(), cursor.read.from.unwrap())
        };
        let at = |stdout, stderr| Offsets { stdout, stderr };
        let new = |stderr, offset, data| Some(Item::Output(piece(stderr, offset, data)));
        assert_eq!(accept(false, 0, "abc"), (new(false, 0, "abc"), at(3, 0)));
        assert_eq!(accept(true, 0, "e"), (new(true, 0, "e"), at(3, 1)));
        assert_eq!(accept(false, 1, "bcd"), (new(false, 3, "d"), at(4, 1)));
        assert_eq!(accept(false, 0, "ab"), (None, at(4, 1)));
        assert_eq!(accept(false, 4, ""), (None, at(4, 1)));
    }

    #[test]
    fn reading_without_a_position_begins_at_the_first_piece() {
        let mut cursor = cursor(None);
        let first = cursor
            .accept(Output::Output(piece(false, 700, "ab")))
            .unwrap();
        assert_eq!(first, Some(Item::Output(piece(false, 700, "ab"))));
        assert_eq!(cursor.expected(false), Some(702));
    }

    #[test]
    fn gap_counts_missing_bytes_once_and_silence_about_them_is_a_fault() {
        let mut cursor = cursor(Some(Offsets {
            stdout: 10,
            stderr: 0,
        }));
        let gap = |offset, bytes| OutputGap {
            stderr: false,
            offset,
            bytes,
        };
        let item = cursor.accept(Output::Gap(gap(5, 10))).unwrap();
        assert_eq!(item, Some(Item::Gap(gap(10, 5))));
        assert_eq!(cursor.accept(Output::Gap(gap(0, 15))), Ok(None));
        assert_eq!(cursor.expected(false), Some(15));
        let error = cursor.accept(Output::Output(piece(false, 16, "a")));
        assert_eq!(error.unwrap_err().code, ErrorCode::Internal);
        let error = cursor.accept(Output::HasInput(true)).unwrap_err();
        assert_eq!(error.code, ErrorCode::Internal);
    }

    #[test]
    fn execution_of_an_ended_environment_is_lost_unless_it_had_ended() {
        let mut execution = Execution {
            status: ExecutionStatus::Running.into(),
            ..Execution::default()
        };
        let outcome = lost(&execution, Some(StatusReason::Deleted));
        assert_eq!(outcome.status(), ExecutionStatus::Lost);
        assert_eq!(outcome.status_reason, StatusReason::Deleted.as_str());
        assert_eq!(lost(&execution, None).status_reason, "");
        execution.status = ExecutionStatus::Exited.into();
        assert_eq!(lost(&execution, Some(StatusReason::Deleted)), execution);
    }
}
