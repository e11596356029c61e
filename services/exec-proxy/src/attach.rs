//! Attach sessions: an interactive command, with input and output at the same time.
//!
//! * I1. No byte is buffered here. When the reader stalls, output fills the session's
//!   window, then HTTP/2's, then boxd's ring, and then the command blocks. Stdin fills the
//!   same windows in the other direction.
//! * I2. When the gateway closes the session, the command's process group is killed at once.
//! * I3. The exit is boxd's; a lost box is an error.

use agentbox_box_protocol::proto::{Empty, Resize, StartCommand, control_request, run_input};
use agentbox_bus::{Session, SessionReceiver, SessionSender};
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::{AttachRequest, Exit, FromBox, TerminalSize, ToBox};
use agentbox_contracts::logs::OutputStream;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::boxes::run::{Controls, Inputs, Output, Run};
use crate::boxes::{BoxError, Lease};
use crate::exec::{capture, stdin};
use crate::outcome::{Outcome, shutdown_error};

/// Serves `request` in the leased box on `session`.
pub async fn serve(
    session: Session<FromBox, ToBox>,
    lease: Lease,
    request: AttachRequest,
    stopping: CancellationToken,
) -> Outcome {
    let (mut sender, mut receiver) = session.split();
    let mut run = match Run::start(lease, request.id.clone(), start_command(&request)).await {
        Ok(run) => run,
        Err(error) => return Outcome::failed(sender, &error).await,
    };
    let (inputs, controls) = (run.inputs(), run.controls());
    let end = {
        let inbound = forward_input(&mut receiver, &inputs, &controls);
        let outbound = forward_output(&mut run, &mut sender, &request);
        tokio::pin!(inbound, outbound);
        let mut input_open = true;
        loop {
            tokio::select! {
                end = &mut outbound => break end,
                ended = &mut inbound, if input_open => match ended {
                    Ok(()) => input_open = false,
                    Err(_gone) => break End::Kill(None),
                },
                () = stopping.cancelled() => break End::Kill(Some(shutdown_error())),
            }
        }
    };
    match end {
        End::Exited(exit) => {
            drop(run);
            Outcome::finished(sender, FromBox::Exit(exit)).await
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

enum End {
    Exited(Exit),
    Lost(BoxError),
    /// Kill the command, and send the error if there is one.
    Kill(Option<Error>),
}

/// Forwards input from the session into the box. Returns `Ok` when the command accepts no
/// more input.
async fn forward_input(
    receiver: &mut SessionReceiver<ToBox>,
    inputs: &Inputs,
    controls: &Controls,
) -> Result<(), Error> {
    loop {
        let sent = match receiver.recv().await? {
            Some(ToBox::Data(bytes)) => stdin::send(inputs, bytes).await.is_ok(),
            Some(ToBox::End) => {
                let eof = stdin::input(run_input::Input::StdinEof(Empty {}));
                inputs.send(eof).await.is_ok()
            }
            Some(ToBox::Resize(size)) => {
                control(controls, control_request::Control::Resize(resize(size))).await
            }
            Some(ToBox::Signal(name)) => {
                control(controls, control_request::Control::Signal(name)).await
            }
            // Its input has no other holder.
            Some(ToBox::TakeInput) => true,
            // The gateway has sent its last message: this ends the command like a closed terminal.
            None => {
                return Err(Error::new(
                    agentbox_contracts::error::ErrorCode::BoxLost,
                    "closed",
                ));
            }
        };
        if !sent {
            return Ok(());
        }
    }
}

/// Sends a control. `false` when the box is lost, which the output reports.
async fn control(controls: &Controls, message: control_request::Control) -> bool {
    match controls.send(message).await {
        Ok(()) => true,
        Err(BoxError::Refused(status)) => {
            tracing::debug!(code = ?status.code(), "boxd refused a control request");
            true
        }
        Err(_) => false,
    }
}

/// Forwards output from the box into the session.
async fn forward_output(
    run: &mut Run,
    sender: &mut SessionSender<FromBox>,
    request: &AttachRequest,
) -> End {
    if sender
        .send(FromBox::Started(request.id.clone()))
        .await
        .is_err()
    {
        return End::Kill(None);
    }
    loop {
        let next = tokio::select! {
            next = run.next() => next,
            () = sender.closed() => return End::Kill(None),
        };
        let (stream, bytes, exit) = match next {
            Ok(Output::Data(stream, bytes)) => (stream, bytes, None),
            Ok(Output::Exited { exit, start_error }) if start_error.is_empty() => {
                return End::Exited(exit);
            }
            Ok(Output::Exited { exit, start_error }) => {
                let (stream, line_end) = match request.tty {
                    Some(_) => (OutputStream::Stdout, "\r\n"),
                    None => (OutputStream::Stderr, "\n"),
                };
                (
                    stream,
                    Bytes::from(format!("{start_error}{line_end}")),
                    Some(exit),
                )
            }
            Err(error) => return End::Lost(error),
        };
        for message in capture::messages(stream, bytes) {
            if sender.send(message).await.is_err() {
                return End::Kill(None);
            }
        }
        if let Some(exit) = exit {
            return End::Exited(exit);
        }
    }
}

fn start_command(request: &AttachRequest) -> StartCommand {
    StartCommand {
        command: request.command.clone(),
        working_dir: request.working_dir.clone().unwrap_or_default(),
        env: request.env.clone().into_iter().collect(),
        tty: request.tty.map(resize),
        stdin: true,
        ..StartCommand::default()
    }
}

fn resize(size: TerminalSize) -> Resize {
    Resize {
        cols: size.cols.into(),
        rows: size.rows.into(),
    }
}
