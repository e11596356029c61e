//! One command in a box, and its output in order.
//!
//! Owns the stream to boxd and the way back to it after a lost connection. Never keeps
//! output: what is not taken stays in boxd's ring, and then blocks the command.
//!
//! * I1. Every byte comes once and in order, or [`Run::next`] fails. An exit that boxd
//!   did not report is never given.
//! * I2. A command is started once: its id names it, so a start whose answer was lost is
//!   found again and not repeated.
//! * I3. A command that reads stdin is not resumed: which of its input arrived before the
//!   connection was lost cannot be known.
//!
//! When nobody kills a run that is dropped, boxd does, after its orphan grace (3 s).

mod controls;
mod stream;

use std::pin::Pin;
use std::time::Duration;

use agentbox_box_protocol::proto::{
    Empty, RunOutput, StartCommand, control_request, run_input, run_output,
};
use agentbox_contracts::exec::Exit;
use agentbox_contracts::ids::ExecId;
use agentbox_contracts::logs::OutputStream;
use bytes::Bytes;
use futures::FutureExt as _;
use tokio::time::Instant;
use tonic::{Code, Streaming};
use tracing::{Instrument as _, Span};

pub use controls::Controls;
pub use stream::Inputs;

use crate::boxes::pool::Connection;
use crate::boxes::run::controls::control;
use crate::boxes::run::stream::{open, resume, try_resume};
use crate::boxes::trace::call_span;
use crate::boxes::{BoxError, Lease};
use crate::metrics;

/// So many bytes are taken before boxd is told that it may forget them.
const ACK_EVERY: u64 = 256 * 1024;
/// How long a lost connection may take to come back.
const RESUME_WITHIN: Duration = Duration::from_secs(2);
const RESUME_PAUSE: Duration = Duration::from_millis(50);
/// How long boxd may take to say that a command has started.
const START_DEADLINE: Duration = Duration::from_secs(15);
/// How long a kill may take, on a box that answers.
const KILL_DEADLINE: Duration = Duration::from_secs(2);

/// What a run says, in order; the last is `Exited`.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    Data(OutputStream, Bytes),
    Exited {
        exit: Exit,
        /// Why the command could not be started, for people; empty when it was.
        start_error: String,
    },
}

pub struct Run {
    lease: Lease,
    id: ExecId,
    connection: Connection,
    inputs: Inputs,
    outputs: Streaming<RunOutput>,
    /// Bytes of output that were given so far.
    received: u64,
    acked: u64,
    ack: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    resumable: bool,
    span: Span,
}

impl Run {
    /// Starts `command` under the id `id`; its `run_id` and `acks` are set here.
    ///
    /// # Errors
    /// [`BoxError::Unreachable`], [`BoxError::Cluster`]: nothing was started.
    /// [`BoxError::Lost`]: it may have been. [`BoxError::Refused`]: boxd said no.
    pub async fn start(lease: Lease, id: ExecId, command: StartCommand) -> Result<Self, BoxError> {
        let started = Self::start_unbounded(lease, id, command);
        tokio::time::timeout(START_DEADLINE, started)
            .await
            .unwrap_or_else(|_| {
                Err(BoxError::Lost(
                    "boxd did not start the command in time".into(),
                ))
            })
    }

    async fn start_unbounded(
        lease: Lease,
        id: ExecId,
        mut command: StartCommand,
    ) -> Result<Self, BoxError> {
        let resumable = !command.stdin;
        command.run_id = id.to_string();
        command.acks = resumable;
        let span = call_span("Run");
        let begin = run_input::Input::Start(command);

        let connection = lease.connection().instrument(span.clone()).await?;
        let opened = match open(&connection, begin.clone(), &span).await {
            Err(BoxError::Lost(detail)) => {
                // Mostly a kept connection whose box had closed it unnoticed.
                tracing::debug!(detail, "trying the start on a new connection");
                lease.lost(connection.number).await;
                let connection = lease.connection().await?;
                match open(&connection, begin, &span).await {
                    Err(error) if error.is_refused_with(Code::AlreadyExists) && resumable => {
                        let resume = resume(&id, 0);
                        open(&connection, resume, &span)
                            .await
                            .map(|opened| (connection, opened))
                    }
                    Err(error) if error.is_refused_with(Code::AlreadyExists) => Err(
                        BoxError::Lost("the connection was lost as the command began".into()),
                    ),
                    other => other.map(|opened| (connection, opened)),
                }
            }
            other => other.map(|opened| (connection, opened)),
        };
        let (connection, (inputs, outputs)) = opened?;
        Ok(Self {
            lease,
            id,
            connection,
            inputs,
            outputs,
            received: 0,
            acked: 0,
            ack: None,
            resumable,
            span,
        })
    }

    #[must_use]
    pub fn inputs(&self) -> Inputs {
        self.inputs.clone()
    }

    /// Resizes or signals the command, beside its stdin.
    #[must_use]
    pub fn controls(&self) -> Controls {
        Controls {
            id: self.id.clone(),
            connection: self.connection.clone(),
        }
    }

    /// The next output; what was given before it counts as taken.
    ///
    /// # Errors
    /// [`BoxError::Lost`] when the connection did not come back within 2 s, or output is
    /// missing.
    pub async fn next(&mut self) -> Result<Output, BoxError> {
        loop {
            self.acknowledge();
            let message = tokio::select! {
                biased;
                message = self.outputs.message() => message,
                () = poll_ack(&mut self.ack) => continue,
            };
            let detail = match message {
                Ok(Some(message)) => match self.read(message)? {
                    Some(output) => return Ok(output),
                    None => continue,
                },
                Ok(None) => "boxd ended the stream".to_owned(),
                Err(status) => match BoxError::from_status(status) {
                    BoxError::Lost(detail) => detail,
                    refused => return Err(refused),
                },
            };
            self.resume(detail).await?;
        }
    }

    /// Kills the command's process group, and waits until boxd has done so.
    pub async fn kill(self) {
        let request = control(&self.id, control_request::Control::Kill(Empty {}));
        let killed = async {
            let mut client = self.connection.client.clone();
            match client.control(request.clone()).await {
                Ok(_) => Ok(()),
                // It ended meanwhile.
                Err(status) if status.code() == Code::NotFound => Ok(()),
                Err(_) => {
                    self.lease.lost(self.connection.number).await;
                    let mut connection = self.lease.connection().await?;
                    connection
                        .client
                        .control(request)
                        .await
                        .map_err(BoxError::from_status)?;
                    Ok::<_, BoxError>(())
                }
            }
        };
        match tokio::time::timeout(KILL_DEADLINE, killed.instrument(call_span("Control"))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::info!(%error, "the kill did not reach the box"),
            Err(_) => tracing::info!("the kill was not answered in time"),
        }
    }

    /// `None` for what the consumer has no use for.
    fn read(&mut self, message: RunOutput) -> Result<Option<Output>, BoxError> {
        let (stream, bytes) = match message.output {
            Some(run_output::Output::Stdout(bytes)) => (OutputStream::Stdout, bytes),
            Some(run_output::Output::Stderr(bytes)) => (OutputStream::Stderr, bytes),
            Some(run_output::Output::Exited(exited)) => {
                self.lease.spans().hand_on(&self.span, &self.lease, &exited);
                return Ok(Some(Output::Exited {
                    exit: Exit {
                        exit_code: exited.exit_code,
                        timed_out: exited.timed_out,
                        oom_killed: exited.oom_killed,
                        duration_ms: exited.duration_ms,
                    },
                    start_error: exited.start_error,
                }));
            }
            Some(run_output::Output::Gap(gap)) => {
                return Err(BoxError::Lost(format!(
                    "{} bytes of output are gone",
                    gap.lost_bytes
                )));
            }
            Some(run_output::Output::Started(_)) | None => return Ok(None),
        };
        if message.sequence != self.received {
            return Err(BoxError::Lost(format!(
                "output continues at {} and not at {}",
                message.sequence, self.received
            )));
        }
        self.received += bytes.len() as u64;
        metrics::bytes_out(bytes.len());
        Ok(Some(Output::Data(stream, bytes)))
    }

    fn acknowledge(&mut self) {
        if !self.resumable || self.ack.is_some() || self.received - self.acked < ACK_EVERY {
            return;
        }
        self.acked = self.received;
        let request = control(&self.id, control_request::Control::Ack(self.received));
        let mut client = self.connection.client.clone();
        // A lost ack shows as a lost connection where the output is read.
        self.ack = Some(async move { client.control(request).map(drop).await }.boxed());
    }

    async fn resume(&mut self, detail: String) -> Result<(), BoxError> {
        self.ack = None;
        self.lease.lost(self.connection.number).await;
        if !self.resumable {
            return Err(BoxError::Lost(detail));
        }
        tracing::info!(
            detail,
            received = self.received,
            "connection lost; resuming the command"
        );
        let give_up = Instant::now() + RESUME_WITHIN;
        let (lease, id, received, span) = (&self.lease, &self.id, self.received, &self.span);
        let resumed = async {
            loop {
                match try_resume(lease, id, received, span).await {
                    Ok(resumed) => return Ok(resumed),
                    Err(BoxError::Refused(status)) => {
                        return Err(BoxError::Lost(format!(
                            "{detail}; then: {:?}",
                            status.code()
                        )));
                    }
                    Err(error) => tracing::debug!(%error, "not yet"),
                }
                tokio::time::sleep(RESUME_PAUSE).await;
            }
        };
        let (connection, (inputs, outputs)) =
            tokio::time::timeout_at(give_up, resumed.instrument(span.clone()))
                .await
                .unwrap_or_else(|_| Err(BoxError::Lost(detail.clone())))?;
        self.connection = connection;
        self.inputs = inputs;
        self.outputs = outputs;
        metrics::resumed();
        Ok(())
    }
}

/// Resolves when the ack under way is done; never when there is none.
async fn poll_ack(ack: &mut Option<Pin<Box<dyn Future<Output = ()> + Send>>>) {
    match ack.as_mut() {
        Some(sending) => sending.await,
        None => std::future::pending().await,
    }
    *ack = None;
}
