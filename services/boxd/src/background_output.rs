//! The output of processes that outlive their command.
//!
//! A command may leave processes in the background that inherited its stdout and stderr.
//! Nobody receives their output any more. If boxd closed its end of the pipe, their next write
//! would end them (SIGPIPE); if it kept the pipe unread, a full pipe would block them. So boxd
//! keeps the pipe and drops what it reads, until no process has the pipe open.
//!
//! * I1. At most [`MAX_PIPES`] pipes are kept. At the limit, boxd closes the pipe of the
//!   command that ended last. Processes of earlier commands are not affected.
//! * I2. Terminals are not kept: the kernel hangs up a terminal when its command ends.

use std::io;
use std::sync::Arc;

use tokio::net::unix::pipe;
use tokio::sync::Semaphore;
use tokio::task::coop::consume_budget;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::pump::Source;
use crate::stderr;

/// The limit for kept pipes: together with the pipes of the active runs, at most 896
/// descriptors, below the usual soft limit of 1024.
pub const MAX_PIPES: usize = 128;
const BUFFER_BYTES: usize = 16 * 1024;

pub struct BackgroundOutput {
    free: Arc<Semaphore>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl BackgroundOutput {
    /// Keeps pipes in `tasks` until `closing`.
    #[must_use]
    pub fn new(tasks: TaskTracker, closing: CancellationToken) -> Self {
        Self {
            free: Arc::new(Semaphore::new(MAX_PIPES)),
            tasks,
            closing,
        }
    }

    /// Takes over a source of a command that has ended. Closes it when no process has it open,
    /// and at the limit.
    pub fn keep(&self, source: Source) {
        let Source::Pipe(pipe) = source else { return };
        if drop_some(&pipe) == Progress::Ended {
            return;
        }
        let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() else {
            stderr::line(&format!(
                "boxd: closed the output of a background process: {MAX_PIPES} are kept"
            ));
            return;
        };
        let closing = self.closing.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = closing.cancelled() => {}
                () = drop_all(&pipe) => {}
            }
            drop(permit);
        });
    }
}

#[derive(PartialEq, Eq)]
enum Progress {
    /// More may come.
    Open,
    Ended,
}

async fn drop_all(pipe: &pipe::Receiver) {
    while pipe.readable().await.is_ok() && drop_some(pipe) == Progress::Open {
        consume_budget().await;
    }
}

/// Reads once.
fn drop_some(pipe: &pipe::Receiver) -> Progress {
    match pipe.try_read(&mut [0; BUFFER_BYTES]) {
        Ok(0) => Progress::Ended,
        Ok(_) => Progress::Open,
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Progress::Open,
            _ => Progress::Ended,
        },
    }
}
