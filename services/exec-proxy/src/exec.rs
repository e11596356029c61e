//! Exec sessions: one command to its end, with its output up to the caps, or streamed whole.
//!
//! * I1. The exit in the result is boxd's. A failure is an error, never an exit.
//! * I2. Output over a cap is read and dropped, so that the command continues.
//! * I3. When the gateway closes the session, the command's process group is killed at once.
//! * I4. Memory is bounded by the size of an inline result, whatever the command prints.
//! * I5. Streamed output is not buffered: a reader that stalls blocks the command.
//! * I6. The gateway learns at once that a streamed command was started, also if it prints nothing. A
//!   short exec that is not streamed is answered by one message.

pub mod capture;
pub mod stdin;

use std::time::Duration;

use agentbox_box_protocol::proto::StartCommand;
use agentbox_bus::{Session, SessionSender};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{ExecRequest, Exit, FromBox, ToBox};
use agentbox_contracts::logs::OutputStream;
use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::boxes::run::{Output, Run};
use crate::boxes::{BoxError, Lease};
use crate::exec::capture::Capture;
use crate::metrics;
use crate::outcome::{Outcome, shutdown_error};

/// How long after a command's timeout boxd may take to report its end.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(5);

/// Runs `request` in the leased box and answers on `session`.
pub async fn serve(
    session: Session<FromBox, ToBox>,
    lease: Lease,
    request: ExecRequest,
    stopping: CancellationToken,
) -> Outcome {
    let began = Instant::now();
    let (mut sender, mut receiver) = session.split();
    let mut run = match Run::start(lease, request.id.clone(), start_command(&request)).await {
        Ok(run) => run,
        Err(error) => return Outcome::failed(sender, &error).await,
    };
    let output = match request.stream {
        true => Collector::Streamed {
            start_error: match request.merge_stderr {
                true => OutputStream::Stdout,
                false => OutputStream::Stderr,
            },
        },
        false => Collector::Captured(Capture::new(request.max_output_bytes)),
    };
    let time_limit = Duration::from_millis(request.timeout_ms).saturating_add(TIMEOUT_MARGIN);
    let inputs = run.inputs();
    let end = {
        let stdin = stdin::forward(&inputs, request.stdin, request.stdin_follows, &mut receiver);
        run_to_end(&mut run, &mut sender, stdin, output, time_limit, &stopping).await
    };
    match end {
        End::Ended(last) => {
            metrics::exec_finished(began.elapsed());
            // Releases the lease before the gateway gets the result, so that the gateway's
            // next session in the box is not refused.
            drop(run);
            Outcome::finished(sender, *last).await
        }
        End::Lost(error) => Outcome::failed(sender, &error).await,
        End::Kill(error) => {
            run.kill().await;
            match error {
                Some(error) => Outcome::refused(sender, error).await,
                None => Outcome::PeerGone,
            }
        }
    }
}

/// What to do with the output of one exec.
enum Collector {
    /// Kept for the result as far as it fits.
    Captured(Capture),
    /// Sent as it comes.
    Streamed {
        /// Where the reason is written when the command could not be started.
        start_error: OutputStream,
    },
}

impl Collector {
    const fn is_streamed(&self) -> bool {
        matches!(self, Self::Streamed { .. })
    }

    /// Adds output; returns the messages to send now.
    fn take(&mut self, stream: OutputStream, bytes: Bytes) -> Vec<FromBox> {
        match self {
            Self::Captured(capture) => capture.take(stream, bytes),
            Self::Streamed { .. } => capture::messages(stream, bytes),
        }
    }

    /// The messages after the command's end; the session's last one separately.
    fn finish(mut self, exit: Exit, start_error: String) -> (Vec<FromBox>, FromBox) {
        let mut messages = Vec::new();
        if !start_error.is_empty() {
            let stream = match &self {
                Self::Captured(_) => OutputStream::Stderr,
                Self::Streamed { start_error } => *start_error,
            };
            // Fits an inline result: the command printed nothing.
            messages = self.take(stream, Bytes::from(format!("{start_error}\n")));
        }
        let last = match self {
            Self::Captured(capture) => FromBox::Result(capture.finish(exit)),
            Self::Streamed { .. } => FromBox::Exit(exit),
        };
        (messages, last)
    }
}

enum End {
    /// The last message.
    Ended(Box<FromBox>),
    Lost(BoxError),
    /// Kill the command, and send the error if there is one.
    Kill(Option<Error>),
}

/// Forwards stdin and output until the command ends or has to be killed: also when boxd has not ended it
/// within `time_limit`.
async fn run_to_end(
    run: &mut Run,
    sender: &mut SessionSender<FromBox>,
    stdin: impl Future<Output = Result<(), Error>>,
    mut output: Collector,
    time_limit: Duration,
    stopping: &CancellationToken,
) -> End {
    let overdue = tokio::time::sleep(time_limit);
    tokio::pin!(overdue, stdin);
    let mut stdin_open = true;
    loop {
        let next = tokio::select! {
            next = run.next() => next,
            () = sender.closed() => return End::Kill(None),
            () = stopping.cancelled() => return End::Kill(Some(shutdown_error())),
            () = &mut overdue => return End::Kill(Some(overdue_error())),
            forwarded = &mut stdin, if stdin_open => match forwarded {
                Ok(()) => { stdin_open = false; continue }
                Err(_gone) => return End::Kill(None),
            },
        };
        match next {
            Ok(Output::Started) => {
                if output.is_streamed() && sender.send(FromBox::CommandStarted).await.is_err() {
                    return End::Kill(None);
                }
            }
            Ok(Output::Data(stream, bytes)) => {
                if send_all(sender, output.take(stream, bytes)).await.is_err() {
                    return End::Kill(None);
                }
                // A reader that stalled has delayed what boxd reports.
                let earliest = Instant::now() + TIMEOUT_MARGIN;
                if output.is_streamed() && overdue.deadline() < earliest {
                    overdue.as_mut().reset(earliest);
                }
            }
            Ok(Output::Exited { exit, start_error }) => {
                let (messages, last) = output.finish(exit, start_error);
                if send_all(sender, messages).await.is_err() {
                    return End::Kill(None);
                }
                return End::Ended(Box::new(last));
            }
            Err(error) => return End::Lost(error),
        }
    }
}

async fn send_all(
    sender: &mut SessionSender<FromBox>,
    messages: Vec<FromBox>,
) -> Result<(), Error> {
    for message in messages {
        sender.send(message).await?;
    }
    Ok(())
}

fn start_command(request: &ExecRequest) -> StartCommand {
    StartCommand {
        command: request.command.clone(),
        working_dir: request.working_dir.clone().unwrap_or_default(),
        env: request.env.clone().into_iter().collect(),
        stdin: request.stdin.is_some() || request.stdin_follows,
        timeout_ms: request.timeout_ms,
        user: request.user.clone().unwrap_or_default(),
        merge_stderr: request.merge_stderr,
        ..StartCommand::default()
    }
}

fn overdue_error() -> Error {
    Error::new(
        ErrorCode::BoxLost,
        "the box did not end the command at its timeout",
    )
}
