//! One command in a box, and its output in order.
//!
//! Owns the stream to boxd, and resumes it after a lost connection. Never buffers output:
//! output that is not read stays in boxd's ring, and then blocks the command.
//!
//! * I1. Every byte is returned once and in order, or [`Run::next`] fails. Only exits that
//!   boxd reported are returned.
//! * I2. A command is started once: its id identifies it, so a start whose response was lost
//!   is resumed and not repeated.
//! * I3. A command that reads stdin is not resumed: it is unknown which part of its input
//!   arrived before the connection was lost.
//!
//! boxd kills the command of a dropped run after its orphan grace (3 s).

mod stream;

use std::pin::Pin;
use std::time::Duration;

use agentbox_box_protocol::proto::{
    Empty, RunOutput, StartCommand, control_request, run_input, run_output,
};
use agentbox_contracts::ErrorChain;
use agentbox_contracts::exec::Exit;
use agentbox_contracts::ids::ExecId;
use agentbox_contracts::logs::OutputStream;
use bytes::Bytes;
use futures::FutureExt as _;
use tokio::time::Instant;
use tonic::{Code, Streaming};
use tracing::{Instrument as _, Span};

pub use stream::Inputs;

use crate::boxes::pool::Connection;
use crate::boxes::run::stream::{control, open, resume, try_resume};
use crate::boxes::trace::call_span;
use crate::boxes::{BoxError, Lease};
use crate::metrics;

/// The number of bytes after which boxd gets an acknowledgement.
const ACK_INTERVAL_BYTES: u64 = 256 * 1024;
/// How long resuming a command may take.
const RESUME_TIMEOUT: Duration = Duration::from_secs(2);
const RESUME_PAUSE: Duration = Duration::from_millis(50);
/// How long boxd may take to start a command.
const START_DEADLINE: Duration = Duration::from_secs(15);
/// How long a kill may take.
const KILL_DEADLINE: Duration = Duration::from_secs(2);

/// An output of a run; the last is `Exited`.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// boxd has started the command. Returned once, and not for one that could not be started.
    Started,
    Data(OutputStream, Bytes),
    Exited {
        exit: Exit,
        /// The message for users when the command could not be started; empty otherwise.
        start_error: String,
    },
}

pub struct Run {
    lease: Lease,
    id: ExecId,
    connection: Connection,
    inputs: Inputs,
    outputs: Streaming<RunOutput>,
    /// [`Output::Started`] was returned.
    has_started: bool,
    /// The number of bytes of output that were returned so far.
    received: u64,
    acked: u64,
    ack: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    resumable: bool,
    span: Span,
}

impl Run {
    /// Starts `command` with the id `id`; sets its `run_id` and `acks`.
    ///
    /// # Errors
    /// [`BoxError::Unreachable`], [`BoxError::Cluster`]: the command was not started.
    /// [`BoxError::Lost`]: it may have been started. [`BoxError::Refused`]: boxd refused.
    pub async fn start(lease: Lease, id: ExecId, command: StartCommand) -> Result<Self, BoxError> {
        let started = Self::start_unbounded(lease, id, command);
        tokio::time::timeout(START_DEADLINE, started)
            .await
            .unwrap_or_else(|_| {
                Err(BoxError::Lost(
                    "boxd did not start the command within the deadline".into(),
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
        let start = run_input::Input::Start(command);

        let connection = lease.connection().instrument(span.clone()).await?;
        let opened = match open(&connection, start.clone(), &span).await {
            Err(BoxError::Lost(detail)) => {
                // Usually a kept connection that had died unnoticed.
                tracing::debug!(detail, "connection lost; starting the command on a new one");
                lease.mark_lost(connection.number);
                // Whatever happens now, the first request may have started the command.
                let lost = |error: BoxError| BoxError::Lost(format!("{detail}; then: {error}"));
                let connection = lease.connection().await.map_err(lost)?;
                match open(&connection, start, &span).await {
                    Err(error) if error.is_refused_with(Code::AlreadyExists) && resumable => {
                        let resume = resume(&id, 0);
                        open(&connection, resume, &span)
                            .await
                            .map(|opened| (connection, opened))
                    }
                    Err(error) if error.is_refused_with(Code::AlreadyExists) => {
                        Err(BoxError::Lost(
                            "the connection was lost while the command was started".into(),
                        ))
                    }
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
            has_started: false,
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

    /// The next output. Calling it again acknowledges the output before.
    ///
    /// # Errors
    /// [`BoxError::Lost`] when the command could not be resumed within 2 s, or output is
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
                Ok(Some(message)) => match self.convert(message)? {
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
                // The command has ended meanwhile.
                Err(status) if status.code() == Code::NotFound => Ok(()),
                Err(_) => {
                    self.lease.mark_lost(self.connection.number);
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
            Ok(Err(error)) => {
                tracing::info!(error = %ErrorChain(&error), "killing the command failed")
            }
            Err(_) => tracing::info!("killing the command timed out"),
        }
    }

    /// Converts boxd's message; `None` when it has nothing for the caller.
    fn convert(&mut self, message: RunOutput) -> Result<Option<Output>, BoxError> {
        let (stream, bytes) = match message.output {
            Some(run_output::Output::Stdout(bytes)) => (OutputStream::Stdout, bytes),
            Some(run_output::Output::Stderr(bytes)) => (OutputStream::Stderr, bytes),
            Some(run_output::Output::Exited(exited)) => {
                let environment = self.lease.id();
                self.lease.spans().export(&self.span, environment, &exited);
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
                    "{} bytes of output were lost",
                    gap.lost_bytes
                )));
            }
            // boxd sends it again after a resume.
            Some(run_output::Output::Started(_)) => {
                let is_first = !std::mem::replace(&mut self.has_started, true);
                return Ok(is_first.then_some(Output::Started));
            }
            None => return Ok(None),
        };
        if message.sequence != self.received {
            return Err(BoxError::Lost(format!(
                "output continues at byte {} instead of {}",
                message.sequence, self.received
            )));
        }
        self.received += bytes.len() as u64;
        metrics::bytes_out("exec", bytes.len());
        Ok(Some(Output::Data(stream, bytes)))
    }

    fn acknowledge(&mut self) {
        if !self.resumable || self.ack.is_some() || self.received - self.acked < ACK_INTERVAL_BYTES
        {
            return;
        }
        self.acked = self.received;
        let request = control(&self.id, control_request::Control::Ack(self.received));
        let mut client = self.connection.client.clone();
        // A lost connection is noticed where the output is read.
        self.ack = Some(async move { client.control(request).map(drop).await }.boxed());
    }

    async fn resume(&mut self, detail: String) -> Result<(), BoxError> {
        self.ack = None;
        self.lease.mark_lost(self.connection.number);
        if !self.resumable {
            return Err(BoxError::Lost(detail));
        }
        tracing::info!(
            detail,
            received = self.received,
            "connection lost; resuming the command"
        );
        let deadline = Instant::now() + RESUME_TIMEOUT;
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
                    Err(error) => {
                        tracing::debug!(error = %ErrorChain(&error), "resuming failed; trying again")
                    }
                }
                tokio::time::sleep(RESUME_PAUSE).await;
            }
        };
        let (connection, (inputs, outputs)) =
            tokio::time::timeout_at(deadline, resumed.instrument(span.clone()))
                .await
                .unwrap_or_else(|_| Err(BoxError::Lost(detail.clone())))?;
        self.connection = connection;
        self.inputs = inputs;
        self.outputs = outputs;
        metrics::resumed();
        Ok(())
    }
}

/// Resolves when the pending ack is done; never when there is none.
async fn poll_ack(ack: &mut Option<Pin<Box<dyn Future<Output = ()> + Send>>>) {
    match ack.as_mut() {
        Some(sending) => sending.await,
        None => std::future::pending().await,
    }
    *ack = None;
}
