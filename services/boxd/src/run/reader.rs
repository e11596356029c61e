//! A reader of a run's output, as a stream of messages.

use std::sync::Arc;

use agentbox_box_protocol::proto::{self, run_output};
use futures::Stream;
use futures::stream::unfold;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use super::{NextOutput, Run, output};

/// Detaches from its run when dropped.
pub struct Reader {
    run: Arc<Run>,
    number: u64,
    output_changed: watch::Receiver<u64>,
    detached: CancellationToken,
    _detach_on_drop: DropGuard,
    first: Option<proto::RunOutput>,
    done: bool,
}

impl Reader {
    /// Attaches to `run` at byte `from`, or at the last reader's position.
    ///
    /// # Errors
    /// OUT_OF_RANGE when the output ends before `from`.
    pub fn attach(run: Arc<Run>, from: Option<u64>) -> Result<Self, Status> {
        let output_changed = run.output_changed.subscribe();
        let number = run
            .attach(from)
            .map_err(|end| Status::out_of_range(format!("the output ends at {end}")))?;
        let detached = CancellationToken::new();
        let started = proto::Started {
            pid: run.process.pid(),
            duration_limit_ms: 0,
        };
        Ok(Self {
            first: Some(output(
                from.unwrap_or(0),
                run_output::Output::Started(started),
            )),
            number,
            output_changed,
            _detach_on_drop: detached.clone().drop_guard(),
            detached,
            run,
            done: false,
        })
    }

    /// Cancelled when this reader is dropped.
    #[must_use]
    pub fn detached(&self) -> CancellationToken {
        self.detached.clone()
    }

    /// Ends after the exit; with UNAVAILABLE when the run ended without one; with ABORTED
    /// when another reader has attached.
    pub fn into_stream(self) -> impl Stream<Item = Result<proto::RunOutput, Status>> {
        unfold(self, |mut reader| async move {
            let item = reader.next().await?;
            Some((item, reader))
        })
    }

    async fn next(&mut self) -> Option<Result<proto::RunOutput, Status>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        while !self.done {
            self.output_changed.borrow_and_update();
            match self.run.next_output(self.number) {
                NextOutput::Output(output) => return Some(Ok(output)),
                NextOutput::Exited(output) => {
                    self.done = true;
                    return Some(Ok(output));
                }
                NextOutput::Aborted => {
                    self.done = true;
                    return Some(Err(Status::unavailable("the box is shutting down")));
                }
                NextOutput::Superseded => {
                    self.done = true;
                    return Some(Err(Status::aborted("another reader has attached")));
                }
                NextOutput::Nothing => self.output_changed.changed().await.ok()?,
            }
        }
        None
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.run.detach(self.number);
    }
}
