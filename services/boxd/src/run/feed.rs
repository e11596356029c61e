//! What a reader sends to its run while it reads.

use std::sync::Arc;

use agentbox_box_protocol::proto::{self, control_request, run_input};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::{Run, wish};
use crate::signals;

/// Until the reader is gone or says no more. An input that makes no sense is passed over.
pub async fn feed(
    run: Arc<Run>,
    mut inputs: Streaming<proto::RunInput>,
    reader_gone: CancellationToken,
) {
    loop {
        let message = tokio::select! {
            () = reader_gone.cancelled() => return,
            message = inputs.message() => message,
        };
        let (input, last) = match message {
            Ok(Some(message)) => (message.input, false),
            // The caller closed its side in order: no stdin will come.
            Ok(None) => (Some(run_input::Input::StdinEof(proto::Empty {})), true),
            // The connection was lost; the caller may come back.
            Err(_) => return,
        };
        tokio::select! {
            () = reader_gone.cancelled() => return,
            () = apply_in_order(&run, input) => {}
        }
        if last {
            return;
        }
    }
}

async fn apply_in_order(run: &Run, input: Option<run_input::Input>) {
    match input {
        Some(run_input::Input::Stdin(bytes)) => {
            tokio::select! {
                // Nobody reads it any more.
                () = run.command_ended.cancelled() => {}
                () = run.write_stdin(&bytes) => {}
            }
        }
        Some(run_input::Input::StdinEof(_)) => run.end_stdin().await,
        Some(run_input::Input::Resize(resize)) => {
            // A terminal that is going has no size.
            let _ = run.resize(wish::size(resize));
        }
        // Unknown names are refused by `control`, which can answer.
        Some(run_input::Input::Signal(name)) => {
            if let Some(signal) = signals::parse(&name) {
                run.signal(signal);
            }
        }
        Some(run_input::Input::Kill(_)) => run.kill(),
        Some(run_input::Input::Ack(sequence)) => run.ack(sequence),
        Some(run_input::Input::Start(_) | run_input::Input::Resume(_)) | None => {}
    }
}

impl Run {
    /// The same beside the stream.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for an unknown signal or nothing at all.
    pub fn control(&self, control: Option<control_request::Control>) -> Result<(), Status> {
        match control {
            Some(control_request::Control::Resize(resize)) => self
                .resize(wish::size(resize))
                .map_err(|_| Status::failed_precondition("the terminal is gone")),
            Some(control_request::Control::Signal(name)) => {
                let signal = signals::parse(&name).ok_or_else(|| {
                    Status::invalid_argument(format!("signal: {name:?} is not one"))
                })?;
                self.signal(signal);
                Ok(())
            }
            Some(control_request::Control::Kill(_)) => {
                self.kill();
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
