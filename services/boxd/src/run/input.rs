//! The inputs that a reader sends to its run, and controls outside the stream.

use std::sync::Arc;

use agentbox_box_protocol::proto::{self, control_request, run_input};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::Run;
use crate::process::size;
use crate::signals;

/// Applies inputs in order until the reader detaches or closes its side. Unknown inputs are
/// skipped.
pub async fn apply_inputs(
    run: Arc<Run>,
    mut inputs: Streaming<proto::RunInput>,
    reader_detached: CancellationToken,
) {
    loop {
        let message = tokio::select! {
            () = reader_detached.cancelled() => return,
            message = inputs.message() => message,
        };
        let (input, is_last) = match message {
            Ok(Some(message)) => (message.input, false),
            // The caller closed its side: stdin ends.
            Ok(None) => (Some(run_input::Input::StdinEof(proto::Empty {})), true),
            // The connection was lost; the caller may resume.
            Err(_) => return,
        };
        tokio::select! {
            () = reader_detached.cancelled() => return,
            () = apply_in_order(&run, input) => {}
        }
        if is_last {
            return;
        }
    }
}

async fn apply_in_order(run: &Run, input: Option<run_input::Input>) {
    match input {
        Some(run_input::Input::Stdin(bytes)) => {
            tokio::select! {
                // No process reads stdin any more.
                () = run.process.ended().cancelled() => {}
                // Bytes for a stdin that is closed are dropped.
                _ = run.process.write_stdin(&bytes) => {}
            }
        }
        Some(run_input::Input::StdinEof(_)) => {
            // Stdin may have been closed already.
            let _ = run.process.end_stdin().await;
        }
        Some(run_input::Input::Resize(resize)) => {
            // Fails only when the terminal is closing.
            let _ = run.process.resize(size(resize.cols, resize.rows));
        }
        // Unknown names are ignored here; `control` returns an error for them.
        Some(run_input::Input::Signal(name)) => {
            if let Some(signal) = signals::parse(&name) {
                run.process.signal(signal);
            }
        }
        Some(run_input::Input::Kill(_)) => run.process.kill(),
        Some(run_input::Input::Ack(sequence)) => run.ack(sequence),
        Some(run_input::Input::Start(_) | run_input::Input::Resume(_)) | None => {}
    }
}

impl Run {
    /// Applies a control that was sent outside the stream.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for an unknown signal or a missing control.
    pub fn control(&self, control: Option<control_request::Control>) -> Result<(), Status> {
        match control {
            Some(control_request::Control::Resize(resize)) => self
                .process
                .resize(size(resize.cols, resize.rows))
                .map_err(|_| Status::failed_precondition("the terminal is closed")),
            Some(control_request::Control::Signal(name)) => {
                let signal = signals::parse(&name).ok_or_else(|| {
                    Status::invalid_argument(format!("signal: {name:?} is not a signal"))
                })?;
                self.process.signal(signal);
                Ok(())
            }
            Some(control_request::Control::Kill(_)) => {
                self.process.kill();
                Ok(())
            }
            Some(control_request::Control::Ack(sequence)) => {
                self.ack(sequence);
                Ok(())
            }
            None => Err(Status::invalid_argument("control: is required")),
        }
    }
}
