//! One execution: its record, its process and its output.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use agentbox_contracts::error::shortened;
use agentbox_contracts::executions::{self as contract, ExecutionStatus};
use chrono::Utc;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::Status;

use super::clients::Clients;
use super::kept::KeptOutput;
use super::output::Output;
use super::spec::ExecutionSpec;
use crate::command::StartError;
use crate::process::{Launched, Process, ProcessEnd, size};
use crate::reaper::ExitStatus;
use crate::signals;

const SIGKILL: i32 = 9;
/// How long a caller waits for an execution that is being started.
const START_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Starting,
    Running,
    /// Ended, and its output is complete.
    Ended,
    /// Ended by the shutdown of the box: it has no outcome.
    Aborted,
}

pub struct Execution {
    pub output: Arc<Output>,
    /// The clients that are attached.
    pub clients: Clients,
    id: String,
    /// Callers may write to its stdin.
    takes_input: bool,
    record: Mutex<contract::Execution>,
    process: OnceLock<Arc<Process>>,
    phase: watch::Sender<Phase>,
}

impl Execution {
    #[must_use]
    pub fn new(spec: &ExecutionSpec, kept: Arc<KeptOutput>) -> Self {
        let record = contract::Execution {
            created_unix_nanos: now_unix_nanos(),
            status: ExecutionStatus::Starting.into(),
            ..spec.record.clone()
        };
        Self {
            output: Arc::new(Output::new(spec.on_full, spec.keep_bytes, kept)),
            clients: Clients::default(),
            id: record.id.clone(),
            takes_input: spec.takes_input,
            record: Mutex::new(record),
            process: OnceLock::new(),
            phase: watch::Sender::new(Phase::Starting),
        }
    }

    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    #[must_use]
    pub fn takes_input(&self) -> bool {
        self.takes_input
    }

    /// The present record.
    #[must_use]
    pub fn record(&self) -> contract::Execution {
        let [stdout_bytes, stderr_bytes] = self.output.ends();
        contract::Execution {
            stdout_bytes,
            stderr_bytes,
            ..self.record.lock().clone()
        }
    }

    #[must_use]
    pub fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Starting | Phase::Running)
    }

    /// Publishes the phase, after the record.
    pub fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Waits until it was started, or has failed to; at most [`START_DEADLINE`].
    pub async fn started(&self) {
        let mut phases = self.phase.subscribe();
        let started = phases.wait_for(|phase| *phase != Phase::Starting);
        // A start that takes longer is reported as `starting`.
        let _ = timeout(START_DEADLINE, started).await;
    }

    /// Waits until it has ended, at most `wait`.
    ///
    /// # Errors
    /// UNAVAILABLE when the box shuts down.
    pub async fn ended(&self, wait: Duration) -> Result<(), Status> {
        let mut phases = self.phase.subscribe();
        let ended = phases.wait_for(|phase| !matches!(phase, Phase::Starting | Phase::Running));
        match timeout(wait, ended).await {
            Ok(Ok(phase)) if *phase == Phase::Aborted => Err(shutting_down()),
            _ => Ok(()),
        }
    }

    /// Its process.
    ///
    /// # Errors
    /// FAILED_PRECONDITION when it has ended, or is not started yet.
    pub fn process(&self) -> Result<&Arc<Process>, Status> {
        match self.process.get() {
            Some(process) if !process.ended().is_cancelled() => Ok(process),
            None if self.is_active() => Err(self.refuse("is not started yet")),
            _ => Err(self.refuse("has ended")),
        }
    }

    /// # Errors
    /// FAILED_PRECONDITION without a process, INVALID_ARGUMENT for an unknown name.
    pub fn signal(&self, name: &str) -> Result<(), Status> {
        let signal = signals::parse(name).ok_or_else(|| {
            let name = shortened(name);
            Status::invalid_argument(format!("signal: must be the name of a signal, is `{name}`"))
        })?;
        self.process()?.signal(signal);
        Ok(())
    }

    /// # Errors
    /// FAILED_PRECONDITION without a process or a terminal.
    pub fn resize(&self, to: contract::Size) -> Result<(), Status> {
        if self.record.lock().tty.is_none() {
            return Err(self.refuse("has no terminal"));
        }
        let size = size(to.cols, to.rows);
        self.process()?
            .resize(size)
            .map_err(|_| self.refuse("has ended"))?;
        self.record.lock().tty = Some(contract::Size {
            cols: size.columns.into(),
            rows: size.rows.into(),
        });
        Ok(())
    }

    /// FAILED_PRECONDITION: the execution `reason`.
    #[must_use]
    pub fn refuse(&self, reason: &str) -> Status {
        Status::failed_precondition(format!("execution {}: {reason}", self.id))
    }

    pub fn record_start(&self, launched: &Launched) {
        // Set once: an execution is started once.
        let _ = self.process.set(Arc::clone(&launched.process));
        let mut record = self.record.lock();
        record.status = ExecutionStatus::Running.into();
        record.pid = Some(launched.process.pid());
        record.started_unix_nanos = Some(now_unix_nanos());
    }

    pub fn record_failure(&self, error: &StartError) {
        let mut record = self.record.lock();
        record.status = ExecutionStatus::FailedToStart.into();
        record.status_reason.clone_from(&error.message);
        record.ended_unix_nanos = Some(now_unix_nanos());
    }

    pub fn record_end(&self, end: &ProcessEnd) {
        let mut record = self.record.lock();
        record.status = status(end).into();
        match end.status {
            Some(ExitStatus::Exited(code)) => record.exit_code = Some(code),
            Some(ExitStatus::Signalled(signal)) => record.signal = Some(signal),
            // It was killed; the kernel still holds the process.
            None => record.signal = Some(SIGKILL),
        }
        record.ended_unix_nanos = Some(now_unix_nanos());
        record.duration_ms = u64::try_from(end.duration.as_millis()).ok();
    }
}

fn status(end: &ProcessEnd) -> ExecutionStatus {
    match end.status {
        _ if end.timed_out => ExecutionStatus::TimedOut,
        _ if end.oom_killed => ExecutionStatus::OomKilled,
        Some(ExitStatus::Exited(_)) => ExecutionStatus::Exited,
        Some(ExitStatus::Signalled(_)) | None => ExecutionStatus::Signalled,
    }
}

/// The error of operations that wait while the box ends.
#[must_use]
pub fn shutting_down() -> Status {
    Status::unavailable("the box is shutting down")
}

fn now_unix_nanos() -> i64 {
    Utc::now().timestamp_nanos_opt().unwrap_or(i64::MAX)
}
