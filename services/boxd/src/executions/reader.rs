//! A reader of an execution's output.

use std::sync::Arc;

use agentbox_contracts::executions::execution_output::Output;
use tokio::sync::watch;
use tonic::Status;

use super::execution::{Execution, Phase, shutting_down};
use super::output::{AfterEnd, Begin, Positions};

pub struct Reader {
    execution: Arc<Execution>,
    positions: Positions,
    /// Where it ends. A follower ends with the execution.
    until: [u64; 2],
    /// Its number as a follower.
    follower: Option<u64>,
    /// It began at the last screenful of a terminal.
    began_at_screen: bool,
    /// The stream that is read first: they alternate.
    turn: usize,
    changes: watch::Receiver<u64>,
    phases: watch::Receiver<Phase>,
    is_done: bool,
}

impl Reader {
    /// A reader of what is there now.
    ///
    /// # Errors
    /// [`AfterEnd`].
    pub fn of_present(
        execution: Arc<Execution>,
        streams: [bool; 2],
        begin: Begin,
    ) -> Result<Self, AfterEnd> {
        let positions = execution.output.positions(streams, begin)?;
        let until = execution.output.ends();
        Ok(Self::new(execution, positions, until, None))
    }

    /// A reader until the end of the execution.
    ///
    /// # Errors
    /// [`AfterEnd`].
    pub fn follow(
        execution: Arc<Execution>,
        streams: [bool; 2],
        begin: Begin,
    ) -> Result<Self, AfterEnd> {
        let added = execution.output.follow(streams, begin)?;
        let follower = Some(added.number);
        let mut reader = Self::new(execution, added.positions, [u64::MAX; 2], follower);
        reader.began_at_screen = added.is_screen;
        Ok(reader)
    }

    fn new(
        execution: Arc<Execution>,
        positions: Positions,
        until: [u64; 2],
        follower: Option<u64>,
    ) -> Self {
        Self {
            changes: execution.output.changes(),
            phases: execution.phases(),
            execution,
            positions,
            until,
            follower,
            began_at_screen: false,
            turn: 0,
            is_done: false,
        }
    }

    #[must_use]
    pub fn positions(&self) -> Positions {
        self.positions
    }

    #[must_use]
    pub fn began_at_screen(&self) -> bool {
        self.began_at_screen
    }

    /// The next output or gap; at the end the record of the execution, then `None`. May be
    /// dropped while it waits.
    ///
    /// # Errors
    /// UNAVAILABLE when the box shuts down.
    pub async fn next(&mut self) -> Option<Result<Output, Status>> {
        while !self.is_done {
            self.changes.borrow_and_update();
            // Before the output: that of an execution that has ended is complete.
            let phase = *self.phases.borrow_and_update();
            if let Some(output) = self.read() {
                return Some(Ok(output));
            }
            self.is_done = self.follower.is_none() || phase == Phase::Ended;
            if self.is_done {
                return Some(Ok(Output::Execution(self.execution.record())));
            }
            if phase == Phase::Aborted {
                self.is_done = true;
                return Some(Err(shutting_down()));
            }
            let changed = tokio::select! {
                changed = self.changes.changed() => changed,
                changed = self.phases.changed() => changed,
            };
            changed.ok()?;
        }
        None
    }

    fn read(&mut self) -> Option<Output> {
        for stream in [self.turn, 1 - self.turn] {
            let output =
                self.execution
                    .output
                    .next(stream, &mut self.positions, self.until, self.follower);
            if output.is_some() {
                self.turn = 1 - stream;
                return output;
            }
        }
        None
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(number) = self.follower {
            self.execution.output.unfollow(number);
        }
    }
}
