//! Starts executions and supervises them to their end.

use std::sync::Arc;

use agentbox_contracts::executions::ExecutionStart;
use bytes::Bytes;
use tonic::{Code, Status};

use super::Executions;
use super::execution::{Execution, Phase, shutting_down};
use super::registry::Add;
use super::spec::ExecutionSpec;
use crate::command::StartError;
use crate::process::{Limits, Prepared, Process, Slot, supervise};
use crate::status::with_code;

impl Executions {
    /// Starts an execution, or returns the one that has the id. It is started in a task of its own:
    /// a caller that disconnects does not stop it half way.
    ///
    /// # Errors
    /// INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNAVAILABLE; then nothing was started.
    pub async fn start(self: &Arc<Self>, start: ExecutionStart) -> Result<Arc<Execution>, Status> {
        if let Some(existing) = self.registry.find(&start.id) {
            existing.started().await;
            return Ok(existing);
        }
        let spec = ExecutionSpec::try_from(start).map_err(|error| error.status())?;
        let prepared = self.starter.prepare(&spec.process);
        if let Err(StartError {
            code: Some(code),
            message,
            ..
        }) = &prepared
        {
            return Err(with_code(Code::InvalidArgument, *code, message));
        }
        let slot = self.starter.slots.take();
        let slot = slot.map_err(|error| Status::resource_exhausted(error.to_string()))?;
        let execution = Arc::new(Execution::new(&spec, Arc::clone(&self.kept)));
        match self.registry.add(&execution) {
            Add::Added => {
                let run = run(
                    Arc::clone(self),
                    Arc::clone(&execution),
                    spec,
                    prepared,
                    slot,
                );
                self.starter.tasks.spawn(run);
                execution.started().await;
                Ok(execution)
            }
            Add::Exists(existing) => {
                existing.started().await;
                Ok(existing)
            }
            Add::Closed => Err(shutting_down()),
        }
    }

    /// The execution has ended: its record is complete.
    fn finish(&self, execution: &Execution) {
        execution.output.complete();
        self.kept.add_ended(&execution.output);
        self.registry.record(execution);
        execution.enter(Phase::Ended);
    }
}

/// The whole life of an execution.
async fn run(
    executions: Arc<Executions>,
    execution: Arc<Execution>,
    spec: ExecutionSpec,
    prepared: Result<Prepared, StartError>,
    slot: Slot,
) {
    let launched = match prepared {
        Ok(prepared) => executions.starter.launch(prepared).await,
        Err(error) => Err(error),
    };
    let launched = match launched {
        Ok(launched) => launched,
        Err(error) => {
            drop(slot);
            execution.record_failure(&error);
            executions.finish(&execution);
            return;
        }
    };
    execution.record_start(&launched);
    executions.registry.record(&execution);
    execution.enter(Phase::Running);

    let limits = Limits {
        timeout: spec.process.timeout,
        orphan_grace: spec.process.orphan_grace,
    };
    let process = Arc::clone(&launched.process);
    let starter = &executions.starter;
    let supervised = supervise(
        launched,
        &*execution.output,
        limits,
        &starter.background_output,
        &starter.closing,
    );
    let command_ended = async {
        process.ended().cancelled().await;
        execution.output.command_ended();
    };
    let (end, (), ()) = tokio::join!(supervised, command_ended, feed(&process, spec.stdin_bytes));
    drop(slot);
    if end.is_own_exit() {
        execution.record_end(&end);
        executions.finish(&execution);
    } else {
        // The journal has no end of it: it is reported as lost with its box.
        execution.enter(Phase::Aborted);
    }
}

/// Writes all of stdin, then ends it.
async fn feed(process: &Process, bytes: Option<Bytes>) {
    let Some(bytes) = bytes else { return };
    let written = async {
        if process.write_stdin(&bytes).await.is_ok() {
            // The command may have closed it meanwhile.
            let _ = process.end_stdin().await;
        }
    };
    tokio::select! {
        // No process reads stdin any more.
        () = process.ended().cancelled() => {}
        () = written => {}
    }
}
