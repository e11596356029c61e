//! An attached client: its output, and its inputs.
//!
//! Only the client that holds the input writes to stdin, ends it and sets the size of the
//! terminal; inputs of the others are ignored, as they may have been sent before the client
//! learned that the input was taken. Signals of all clients are sent. The end of a client's inputs
//! ends nothing.

use std::sync::Arc;

use agentbox_contracts::executions::execution_input::Input;
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::{AttachExecution, Attached, ExecutionInput, Offsets};
use nix::sys::signal::Signal;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Status, Streaming};

use super::execution::Execution;
use super::output::Begin;
use super::reader::Reader;

/// Leaves its execution when dropped.
pub struct Client {
    execution: Arc<Execution>,
    number: u64,
    reader: Reader,
    holders: watch::Receiver<Option<u64>>,
    has_input: bool,
    first: Option<Output>,
    detached: CancellationToken,
    _detach_on_drop: DropGuard,
}

impl Client {
    /// Attaches to `execution`. The next client of a terminal gets the last screenful, and its
    /// program is told to draw it again.
    ///
    /// # Errors
    /// OUT_OF_RANGE when the output ends before `from`.
    pub fn attach(execution: Arc<Execution>, request: &AttachExecution) -> Result<Self, Status> {
        let record = execution.record();
        let begin = match request.from {
            Some(from) => Begin::At(from),
            None if record.tty.is_some() => Begin::LastScreen,
            None => Begin::Oldest,
        };
        let reader = Reader::follow(Arc::clone(&execution), [true; 2], begin)
            .map_err(|error| Status::out_of_range(error.to_string()))?;
        if reader.began_at_screen()
            && let Ok(process) = execution.process()
        {
            process.signal(Signal::SIGWINCH);
        }
        let number = execution.clients.join(request.take_input);
        let holders = execution.clients.holders();
        let has_input = execution.takes_input() && execution.clients.holds_input(number);
        let [stdout, stderr] = reader.positions().map(Option::unwrap_or_default);
        let first = Output::Attached(Attached {
            execution: record,
            offsets: Offsets { stdout, stderr },
            has_input,
        });
        let detached = CancellationToken::new();
        Ok(Self {
            execution,
            number,
            reader,
            holders,
            has_input,
            first: Some(first),
            _detach_on_drop: detached.clone().drop_guard(),
            detached,
        })
    }

    /// Applies the inputs of this client, in order, until it leaves or they end.
    pub fn apply(&self, mut inputs: Streaming<ExecutionInput>) -> impl Future<Output = ()> + use<> {
        let execution = Arc::clone(&self.execution);
        let (number, detached) = (self.number, self.detached.clone());
        async move {
            loop {
                let message = tokio::select! {
                    () = detached.cancelled() => return,
                    message = inputs.message() => message,
                };
                let Ok(Some(message)) = message else { return };
                tokio::select! {
                    () = detached.cancelled() => return,
                    () = apply_one(&execution, number, message.input) => {}
                }
            }
        }
    }

    /// The next message for the client; `None` after the last one.
    ///
    /// # Errors
    /// UNAVAILABLE when the box shuts down.
    pub async fn next(&mut self) -> Option<Result<Output, Status>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        loop {
            let holder = *self.holders.borrow_and_update();
            let has_input = self.execution.takes_input() && holder == Some(self.number);
            // After the end, when the holder leaves, there is no input to pass on.
            if has_input != self.has_input && self.execution.is_active() {
                self.has_input = has_input;
                return Some(Ok(Output::HasInput(has_input)));
            }
            tokio::select! {
                biased;
                changed = self.holders.changed() => changed.ok()?,
                next = self.reader.next() => return next,
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.execution.clients.leave(self.number);
    }
}

async fn apply_one(execution: &Execution, number: u64, input: Option<Input>) {
    let clients = &execution.clients;
    let process = execution.process().ok();
    match (input, process) {
        (Some(Input::TakeInput(())), _) => clients.take_input(number),
        // Unknown names are ignored here; `control` returns an error for them.
        (Some(Input::Signal(name)), _) => {
            let _ = execution.signal(&name);
        }
        (Some(Input::Resize(size)), _) if clients.holds_input(number) => {
            // Fails only without a terminal, or when it is closing.
            let _ = execution.resize(size);
        }
        (Some(Input::Data(data)), Some(process)) if clients.holds_input(number) => {
            // Data for a stdin that is closed is dropped.
            let _ = process.write_stdin(&data).await;
        }
        (Some(Input::End(())), Some(process)) if clients.holds_input(number) => {
            // Stdin may have been closed already.
            let _ = process.end_stdin().await;
        }
        _ => {}
    }
}
