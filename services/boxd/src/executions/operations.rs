//! The operations of the `Executions` call.

use std::sync::Arc;
use std::time::Duration;

use agentbox_contracts::error::shortened;
use agentbox_contracts::executions::control_execution::Control;
use agentbox_contracts::executions::execution_input::Input;
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::execution_request::Operation;
use agentbox_contracts::executions::{
    AttachExecution, ControlExecution, DeleteExecution, ExecutionInput, ExecutionList,
    ExecutionOutput, GetExecution, ReadOutput, WriteStdin,
};
use futures::stream::{BoxStream, StreamExt as _, iter, once, unfold};
use prost::Message as _;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::Executions;
use super::attach::Client;
use super::execution::Execution;
use super::output::Begin;
use super::reader::Reader;
use crate::process::StdinClosed;

/// The deadline for the first input of a call.
const FIRST_INPUT_DEADLINE: Duration = Duration::from_secs(10);
/// The longest wait of a caller for the end of an execution.
const MAX_WAIT: Duration = Duration::from_secs(60);
/// How long a deletion waits for the end of the killed command.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// The approximate size of one message of a list, in bytes.
const LIST_BYTES: usize = 128 * 1024;

type Outputs = BoxStream<'static, Result<ExecutionOutput, Status>>;

impl Executions {
    /// Performs the operation that the first input requests. All waiting is done by the returned
    /// stream: a caller that drops it ends the operation.
    ///
    /// # Errors
    /// As `box.proto` documents.
    pub async fn serve(
        self: &Arc<Self>,
        mut inputs: Streaming<ExecutionInput>,
    ) -> Result<Outputs, Status> {
        let first = timeout(FIRST_INPUT_DEADLINE, inputs.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the first input did not arrive in time"))??;
        let operation = match first.and_then(|message| message.input) {
            Some(Input::Request(request)) => request.operation,
            _ => None,
        };
        match operation {
            Some(Operation::Start(start)) => {
                let execution = self.start(start).await?;
                Ok(record_of(&execution))
            }
            Some(Operation::List(())) => Ok(self.list()),
            Some(Operation::Get(get)) => self.get(&get),
            Some(Operation::Output(read)) => self.output(&read),
            Some(Operation::Stdin(write)) => self.stdin(&write, inputs),
            Some(Operation::Control(control)) => self.control(control),
            Some(Operation::Delete(delete)) => self.delete(&delete),
            Some(Operation::Attach(attach)) => self.attach(&attach, inputs),
            None => Err(Status::invalid_argument(
                "the first input must be a request with an operation",
            )),
        }
    }

    fn find(&self, id: &str) -> Result<Arc<Execution>, Status> {
        self.registry.find(id).ok_or_else(|| {
            Status::not_found(format!("execution `{}` does not exist", shortened(id)))
        })
    }

    /// The records are copied as the caller reads.
    fn list(&self) -> Outputs {
        let mut executions = self.registry.list().into_iter();
        let mut is_done = false;
        let lists = std::iter::from_fn(move || {
            if is_done {
                return None;
            }
            let mut list = ExecutionList::default();
            let mut bytes = 0;
            while bytes < LIST_BYTES
                && let Some(execution) = executions.next()
            {
                let record = execution.record();
                bytes += record.encoded_len();
                list.executions.push(record);
            }
            is_done = executions.len() == 0;
            list.is_last = is_done;
            Some(Ok(message(Output::Executions(list))))
        });
        iter(lists).boxed()
    }

    fn get(&self, get: &GetExecution) -> Result<Outputs, Status> {
        let execution = self.find(&get.id)?;
        let wait = Duration::from_millis(get.wait_ms).min(MAX_WAIT);
        Ok(once(async move {
            if !wait.is_zero() {
                execution.ended(wait).await?;
            }
            Ok::<_, Status>(message(Output::Execution(execution.record())))
        })
        .boxed())
    }

    fn output(&self, read: &ReadOutput) -> Result<Outputs, Status> {
        let execution = self.find(&read.id)?;
        let streams = [read.stdout, read.stderr];
        let begin = read.from.map_or(Begin::Oldest, Begin::At);
        let reader = match read.follow {
            true => Reader::follow(execution, streams, begin),
            false => Reader::of_present(execution, streams, begin),
        };
        let reader = reader.map_err(|error| Status::out_of_range(error.to_string()))?;
        Ok(unfold(reader, |mut reader| async move {
            let next = reader.next().await?;
            Some((next.map(message), reader))
        })
        .boxed())
    }

    fn stdin(
        &self,
        write: &WriteStdin,
        inputs: Streaming<ExecutionInput>,
    ) -> Result<Outputs, Status> {
        let execution = self.find(&write.id)?;
        execution.process()?;
        if !execution.takes_input() {
            return Err(no_stdin(&execution));
        }
        let close = write.close;
        Ok(once(async move {
            write_stdin(&execution, inputs, close).await?;
            Ok::<_, Status>(message(Output::Execution(execution.record())))
        })
        .boxed())
    }

    fn control(&self, request: ControlExecution) -> Result<Outputs, Status> {
        let execution = self.find(&request.id)?;
        match request.control {
            Some(Control::Signal(name)) => execution.signal(&name)?,
            Some(Control::Resize(size)) => execution.resize(size)?,
            None => return Err(Status::invalid_argument("control: is required")),
        }
        Ok(record_of(&execution))
    }

    /// Kills the command, if it runs. One that does not end in time is kept.
    fn delete(self: &Arc<Self>, request: &DeleteExecution) -> Result<Outputs, Status> {
        let execution = self.find(&request.id)?;
        let (this, purge) = (Arc::clone(self), request.purge);
        // Also for a caller that disconnects.
        if let Ok(process) = execution.process() {
            process.kill();
        }
        Ok(once(async move {
            execution.started().await;
            if let Ok(process) = execution.process() {
                process.kill();
            }
            execution.ended(KILL_WAIT).await?;
            if purge && execution.is_active() {
                return Err(execution.refuse("was killed, but has not ended yet; it is kept"));
            }
            if purge {
                this.registry.forget(&execution);
            }
            Ok::<_, Status>(message(Output::Execution(execution.record())))
        })
        .boxed())
    }

    fn attach(
        &self,
        request: &AttachExecution,
        inputs: Streaming<ExecutionInput>,
    ) -> Result<Outputs, Status> {
        let execution = self.find(&request.id)?;
        let client = Client::attach(execution, request)?;
        self.starter.tasks.spawn(client.apply(inputs));
        Ok(unfold(client, |mut client| async move {
            let next = client.next().await?;
            Some((next.map(message), client))
        })
        .boxed())
    }
}

/// Writes the data of the inputs up to their end. Inputs that stop without an end close nothing.
async fn write_stdin(
    execution: &Execution,
    mut inputs: Streaming<ExecutionInput>,
    close: bool,
) -> Result<(), Status> {
    execution.process()?;
    while let Some(message) = inputs.message().await? {
        match message.input {
            Some(Input::Data(data)) => {
                let written = execution.process()?.write_stdin(&data).await;
                written.map_err(|StdinClosed| no_stdin(execution))?;
            }
            Some(Input::End(())) => {
                // A command that has ended since has read its input as far as it wanted.
                if close
                    && let Ok(process) = execution.process()
                    && process.end_stdin().await.is_err()
                    && execution.process().is_ok()
                {
                    return Err(no_stdin(execution));
                }
                return Ok(());
            }
            _ => {
                return Err(Status::invalid_argument(
                    "stdin takes data and its end only",
                ));
            }
        }
    }
    Ok(())
}

/// FAILED_PRECONDITION: it has ended, or its stdin was closed.
fn no_stdin(execution: &Execution) -> Status {
    let ended = execution.process().err();
    ended.unwrap_or_else(|| execution.refuse("has no open stdin"))
}

fn message(output: Output) -> ExecutionOutput {
    ExecutionOutput {
        output: Some(output),
    }
}

/// The execution's record as the only message.
fn record_of(execution: &Execution) -> Outputs {
    let output = message(Output::Execution(execution.record()));
    iter([Ok(output)]).boxed()
}
