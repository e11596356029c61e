//! Starts runs: reserves the id, starts the process and supervises it.

use std::sync::Arc;

use agentbox_box_protocol::proto;

use super::{Registry, RegistryError, Run, RunSpec};
use crate::command::StartError;
use crate::process::{Launched, Limits, ProcessEnd, Starter, supervise};
use crate::reaper::ExitStatus;
use crate::trace::Trace;

/// The exit code of a command that reached its timeout, as of timeout(1).
const TIMED_OUT: i32 = 124;
const KILLED: i32 = 128 + 9;

/// Starts runs, and finds them.
pub struct Runs {
    pub starter: Arc<Starter>,
    pub registry: Arc<Registry>,
    /// The capacity of each run's ring.
    pub ring_bytes: usize,
}

pub enum Started {
    Running(Arc<Run>),
    /// The command could not be started. The caller gets an exit code for it too, unless the
    /// error has a code of its own.
    Failed(StartError),
}

impl Runs {
    /// # Errors
    /// [`RegistryError`]; then nothing was started.
    pub async fn start(&self, spec: RunSpec) -> Result<Started, RegistryError> {
        let reservation = self.registry.reserve(&spec.id)?;
        let prepared = match self.starter.prepare(&spec.process) {
            Ok(prepared) => prepared,
            Err(error) => return Ok(Started::Failed(error)),
        };
        let launched = match self.starter.launch(prepared).await {
            Ok(launched) => launched,
            Err(error) => return Ok(Started::Failed(error)),
        };
        let run = Arc::new(Run::new(spec.id, &launched, self.ring_bytes, spec.acks));
        let limits = Limits {
            timeout: spec.process.timeout,
            orphan_grace: spec.process.orphan_grace,
        };
        if reservation.commit(Arc::clone(&run)) {
            run.process.kill();
        }
        let supervised = supervise_run(
            Arc::clone(&run),
            launched,
            limits,
            spec.trace,
            Arc::clone(&self.registry),
            Arc::clone(&self.starter),
        );
        self.starter.tasks.spawn(supervised);
        Ok(Started::Running(run))
    }
}

async fn supervise_run(
    run: Arc<Run>,
    launched: Launched,
    limits: Limits,
    trace: Option<Trace>,
    registry: Arc<Registry>,
    starter: Arc<Starter>,
) {
    let launched_at = launched.started_at_clock;
    let end = supervise(
        launched,
        &*run,
        limits,
        &starter.background_output,
        &starter.closing,
    )
    .await;
    if end.is_complete && end.is_own_exit() {
        let mut exited = exited(&end);
        if let Some(trace) = &trace {
            exited.spans = trace.command_spans(launched_at, end.duration);
        }
        run.finish(exited);
        registry.finish(&run);
    } else {
        // No exit is reported without all the output before it, nor for a command that
        // was killed by the shutdown of its box.
        registry.remove(&run);
        run.abort();
    }
}

fn exited(end: &ProcessEnd) -> proto::Exited {
    proto::Exited {
        exit_code: exit_code(end.status, end.timed_out),
        timed_out: end.timed_out,
        oom_killed: end.oom_killed,
        duration_ms: u64::try_from(end.duration.as_millis()).unwrap_or(u64::MAX),
        start_error: String::new(),
        spans: Vec::new(),
    }
}

fn exit_code(status: Option<ExitStatus>, timed_out: bool) -> i32 {
    if timed_out {
        TIMED_OUT
    } else {
        status.map_or(KILLED, ExitStatus::exit_code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_distinguishes_exit_signal_and_timeout() {
        assert_eq!(exit_code(Some(ExitStatus::Exited(3)), false), 3);
        assert_eq!(exit_code(Some(ExitStatus::Signalled(15)), false), 143);
        assert_eq!(exit_code(Some(ExitStatus::Signalled(9)), false), 137);
        assert_eq!(exit_code(Some(ExitStatus::Signalled(9)), true), 124);
        assert_eq!(exit_code(None, false), 137);
        assert_eq!(exit_code(None, true), 124);
    }
}
