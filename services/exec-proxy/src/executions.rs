//! Execution sessions: one operation on the executions of a box.
//!
//! * I1. An operation that only reads, or may be repeated, continues after a lost connection: every
//!   byte of output, and every record of a list, is sent once ([`progress`]).
//! * I2. An operation that takes input is not continued: it is unknown which part of its input
//!   arrived before the connection was lost. A client attaches again, at its offsets.
//! * I3. A call that was lost ends with [`BoxError::Lost`], never with an error that claims that nothing
//!   was started.
//!
//! [`counted`] counts the starts and the ends of executions for the metrics. [`states`] answers the
//! scheduler, which publishes events about them.

pub mod counted;
mod progress;
pub mod states;

use std::time::Duration;

use agentbox_bus::{Incoming, Session};
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::exec::rpc::BoxSession;
use agentbox_contracts::exec::{FromBox, ToBox};
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::{
    Execution, ExecutionInput, ExecutionOutput, ExecutionRequest, Size, execution_input,
    execution_request,
};
use agentbox_contracts::ids::EnvironmentId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::archive;
use crate::boxes::call::{self, Call, OPEN_DEADLINE};
use crate::boxes::{BoxError, Lease};
use crate::executions::progress::{Progress, Repetition};
use crate::metrics;
use crate::outcome::{Outcome, refuse};
use crate::relay::{End, Message, Relay, Relayed};
use crate::target::Target;

/// The kind of these sessions, a label of the metrics.
const KIND: &str = "executions";
/// How long continuing an operation may take.
const RESUME_TIMEOUT: Duration = Duration::from_secs(2);
const RESUME_PAUSE: Duration = Duration::from_millis(50);

/// Serves `request` on the session that `incoming` opens.
pub async fn serve(
    incoming: Incoming<BoxSession>,
    target: Target<'_>,
    request: ExecutionRequest,
    stopping: CancellationToken,
) -> Outcome {
    let lease = match target.lease_running() {
        Ok(lease) => lease,
        Err(error) if error.code == ErrorCode::NotRunning => {
            return archive::executions::answer(incoming, target, request, stopping).await;
        }
        Err(error) => return refuse(incoming, error).await,
    };
    // The stdin that follows must not wait for output.
    let session = match &request.operation {
        Some(execution_request::Operation::Stdin(_)) => incoming.accept_to_receive(),
        _ => incoming.accept(),
    };
    serve_live(session, lease, request, stopping).await
}

/// Serves `request` in the leased box on `session`.
async fn serve_live(
    session: Session<FromBox, ToBox>,
    lease: Lease,
    request: ExecutionRequest,
    stopping: CancellationToken,
) -> Outcome {
    let mut relay = Relay::new(session, lease, stopping);
    let mut executions = Executions {
        environment: relay.lease.id().clone(),
        progress: Progress::new(request),
        began: Instant::now(),
    };
    let end = run_to_end(&mut relay, &mut executions).await;
    let outcome = relay.finish(end).await;
    let took = executions.began.elapsed();
    metrics::execution_operation(executions.progress.operation(), outcome, took);
    outcome
}

/// Relays the operation until it ends, and continues it after a lost connection.
async fn run_to_end(relay: &mut Relay, executions: &mut Executions) -> End {
    let repetition = executions.progress.repetition();
    // The first error since the last output, and when the box must have answered again.
    let mut lost: Option<(BoxError, Instant)> = None;
    loop {
        let sent = executions.progress.sent();
        let deadline = lost.as_ref().map_or(OPEN_DEADLINE, |(_, by)| {
            by.saturating_duration_since(Instant::now())
        });
        let error = match attempt(relay, executions, repetition, deadline).await {
            End::Failed(error) => error,
            end => return end,
        };
        if executions.progress.sent() > sent {
            lost = None;
        }
        let may_continue = match &error {
            BoxError::Lost(_) => repetition == Repetition::Always,
            // The box was reached before.
            BoxError::Unreachable(_) | BoxError::Cluster(_) => lost.is_some(),
            _ => false,
        };
        if !may_continue {
            return End::Failed(error);
        }
        let detail = error.to_string();
        let (first, by) = lost.unwrap_or_else(|| (error, Instant::now() + RESUME_TIMEOUT));
        let next_at = Instant::now() + RESUME_PAUSE;
        if next_at >= by {
            return End::Failed(first);
        }
        lost = Some((first, by));
        tracing::info!(detail, "connection lost; continuing the operation");
        metrics::resumed();
        if let Err(end) = relay.until_gone(tokio::time::sleep_until(next_at)).await {
            return end;
        }
    }
}

/// Makes one call and relays it.
async fn attempt(
    relay: &mut Relay,
    executions: &mut Executions,
    repetition: Repetition,
    deadline: Duration,
) -> End {
    let request = executions.progress.request(executions.began.elapsed());
    let first = ExecutionInput {
        input: Some(execution_input::Input::Request(request)),
    };
    let repeatable = repetition != Repetition::Never;
    let opening = Call::<call::Executions>::open(&relay.lease, first, repeatable, deadline);
    let opened = relay.until_gone(opening).await;
    match opened {
        Ok(Ok(call)) => relay.run(executions, call).await,
        Ok(Err(error)) => End::Failed(error),
        Err(end) => end,
    }
}

struct Executions {
    environment: EnvironmentId,
    progress: Progress,
    began: Instant,
}

impl Relayed for Executions {
    type Method = call::Executions;

    const KIND: &'static str = KIND;

    fn input(message: ToBox) -> Option<ExecutionInput> {
        let input = match message {
            ToBox::Data(bytes) => execution_input::Input::Data(bytes),
            ToBox::End => execution_input::Input::End(()),
            ToBox::Resize(size) => execution_input::Input::Resize(Size {
                cols: size.cols.into(),
                rows: size.rows.into(),
            }),
            ToBox::Signal(name) => execution_input::Input::Signal(name),
            ToBox::TakeInput => execution_input::Input::TakeInput(()),
        };
        Some(ExecutionInput { input: Some(input) })
    }

    fn output(&mut self, output: ExecutionOutput) -> Result<Message, BoxError> {
        let message = self.progress.take(output)?;
        self.count(&message);
        Ok(message)
    }
}

impl Executions {
    /// Counts what a message reports.
    fn count(&self, message: &Message) {
        let (Message::Send(FromBox::Execution(sent)) | Message::Last(FromBox::Execution(sent))) =
            message
        else {
            return;
        };
        let seen = |execution: &Execution| {
            counted::seen(&self.environment, &execution.id, execution.status());
        };
        match &sent.output {
            Some(Output::Execution(execution)) if self.progress.operation() == "start" => {
                counted::started(&self.environment, &execution.id, execution.status());
            }
            Some(Output::Execution(execution)) => seen(execution),
            Some(Output::Executions(list)) => list.executions.iter().for_each(seen),
            Some(Output::Output(piece)) => {
                metrics::execution_output(piece.stderr, piece.data.len());
            }
            Some(Output::Gap(gap)) => metrics::execution_gap(gap.stderr, gap.bytes),
            Some(Output::Attached(_) | Output::HasInput(_)) | None => {}
        }
    }
}
