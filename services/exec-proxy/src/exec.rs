//! Exec sessions: one command to its end, with its output up to the caps.
//!
//! * I1. The exit in the result is boxd's. A failure is an error, never an exit.
//! * I2. Output over a cap is read and dropped, so that the command continues.
//! * I3. When the gateway closes the session, the command's process group is killed at once.
//! * I4. Memory is bounded by the size of an inline result, whatever the command prints.

pub mod capture;
pub mod stdin;

use std::time::Duration;

use agentbox_box_protocol::proto::StartCommand;
use agentbox_bus::{Session, SessionSender};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{ExecRequest, ExecResult, FromBox, ToBox};
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
    let limits = ExecLimits {
        output_bytes: request.max_output_bytes,
        time: Duration::from_millis(request.timeout_ms).saturating_add(TIMEOUT_MARGIN),
    };
    let inputs = run.inputs();
    let end = {
        let stdin = stdin::forward(&inputs, request.stdin, request.stdin_follows, &mut receiver);
        run_to_end(&mut run, &mut sender, stdin, limits, &stopping).await
    };
    match end {
        End::Result(result) => {
            metrics::exec_finished(began.elapsed());
            // Releases the lease before the gateway gets the result, so that the gateway's
            // next session in the box is not refused.
            drop(run);
            Outcome::finished(sender, FromBox::Result(result)).await
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

/// The limits of one exec.
struct ExecLimits {
    /// The cap for each of stdout and stderr, in bytes.
    output_bytes: u64,
    /// The time after which boxd must have ended the command.
    time: Duration,
}

enum End {
    Result(ExecResult),
    Lost(BoxError),
    /// Kill the command, and send the error if there is one.
    Kill(Option<Error>),
}

/// Forwards stdin and output until the command ends or has to be killed.
async fn run_to_end(
    run: &mut Run,
    sender: &mut SessionSender<FromBox>,
    stdin: impl Future<Output = Result<(), Error>>,
    limits: ExecLimits,
    stopping: &CancellationToken,
) -> End {
    let mut capture = Capture::new(limits.output_bytes);
    let overdue = tokio::time::sleep(limits.time);
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
        let messages = match next {
            Ok(Output::Data(stream, bytes)) => capture.take(stream, bytes),
            Ok(Output::Exited { exit, start_error }) => {
                if !start_error.is_empty() {
                    // Fits an inline result: the command printed nothing.
                    let text = Bytes::from(format!("{start_error}\n"));
                    capture.take(OutputStream::Stderr, text);
                }
                return End::Result(capture.finish(exit));
            }
            Err(error) => return End::Lost(error),
        };
        for message in messages {
            if sender.send(message).await.is_err() {
                return End::Kill(None);
            }
        }
    }
}

fn start_command(request: &ExecRequest) -> StartCommand {
    StartCommand {
        command: request.command.clone(),
        working_dir: request.working_dir.clone().unwrap_or_default(),
        env: request.env.clone().into_iter().collect(),
        stdin: request.stdin.is_some() || request.stdin_follows,
        timeout_ms: request.timeout_ms,
        ..StartCommand::default()
    }
}

fn overdue_error() -> Error {
    Error::new(
        ErrorCode::BoxLost,
        "the box did not end the command at its timeout",
    )
}
