//! Who reads a run's output: a stream of messages, and a departure that is noticed.

use std::sync::Arc;

use agentbox_box_protocol::proto::{self, run_output};
use futures::Stream;
use futures::stream::unfold;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use super::{Run, Taken, output};

/// Dropped, the run has no reader any more.
pub struct Reader {
    run: Arc<Run>,
    number: u64,
    news: watch::Receiver<u64>,
    gone: CancellationToken,
    _gone_on_drop: DropGuard,
    first: Option<proto::RunOutput>,
    done: bool,
}

impl Reader {
    /// Reads on from byte `from`, or where the last reader stood.
    ///
    /// # Errors
    /// OUT_OF_RANGE when the run has not written so much.
    pub fn attach(run: Arc<Run>, from: Option<u64>) -> Result<Self, Status> {
        let news = run.news.subscribe();
        let number = run
            .attach(from)
            .map_err(|end| Status::out_of_range(format!("the output ends at {end}")))?;
        let gone = CancellationToken::new();
        let started = proto::Started {
            pid: run.leader.as_raw().unsigned_abs(),
            duration_limit_ms: 0,
        };
        Ok(Self {
            first: Some(output(
                from.unwrap_or(0),
                run_output::Output::Started(started),
            )),
            number,
            news,
            _gone_on_drop: gone.clone().drop_guard(),
            gone,
            run,
            done: false,
        })
    }

    /// Cancelled when this reader is no more.
    #[must_use]
    pub fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Ends after the exit, with UNAVAILABLE when the box ended before it, or with ABORTED
    /// when another reader came.
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
            self.news.borrow_and_update();
            match self.run.take(self.number) {
                Taken::Output(output) => return Some(Ok(output)),
                Taken::Exited(output) => {
                    self.done = true;
                    return Some(Ok(output));
                }
                Taken::Cut => {
                    self.done = true;
                    return Some(Err(Status::unavailable("the box ends")));
                }
                Taken::Superseded => {
                    self.done = true;
                    return Some(Err(Status::aborted("another reader took over")));
                }
                Taken::Nothing => self.news.changed().await.ok()?,
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
