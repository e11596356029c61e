//! The stream of one command with its boxd: start and resume.

use agentbox_box_protocol::proto::{
    ControlRequest, ResumeCommand, RunInput, RunOutput, control_request, run_input,
};
use agentbox_contracts::ids::ExecId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{Instrument as _, Span};

use crate::boxes::pool::Connection;
use crate::boxes::trace::traced;
use crate::boxes::{BoxError, Lease};

/// The number of buffered inputs to boxd: with chunks of 32 KiB, 128 KiB of stdin.
const INPUT_BUFFER: usize = 4;

/// Sends stdin. Sending waits while the command does not read.
pub type Inputs = mpsc::Sender<RunInput>;

/// Both ends of a stream.
pub type Opened = (Inputs, Streaming<RunOutput>);

/// Opens a stream whose first input is `first`.
pub async fn open(
    connection: &Connection,
    first: run_input::Input,
    span: &Span,
) -> Result<Opened, BoxError> {
    let (inputs, receiver) = mpsc::channel(INPUT_BUFFER);
    // The first input is queued before the call, which saves a round trip.
    let first = RunInput { input: Some(first) };
    inputs
        .try_send(first)
        .map_err(|_| BoxError::Lost("the run's input is closed".into()))?;
    let request = traced(span, ReceiverStream::new(receiver));
    let mut client = connection.client.clone();
    let response = client.run(request).instrument(span.clone()).await;
    let outputs = response.map_err(BoxError::from_status)?.into_inner();
    Ok((inputs, outputs))
}

/// Resumes reading at byte `received`, on a new connection if necessary.
pub async fn try_resume(
    lease: &Lease,
    id: &ExecId,
    received: u64,
    span: &Span,
) -> Result<(Connection, Opened), BoxError> {
    let connection = lease.connection().await?;
    match open(&connection, resume(id, received), span).await {
        Ok(opened) => Ok((connection, opened)),
        Err(error) => {
            if matches!(error, BoxError::Lost(_)) {
                lease.mark_lost(connection.number);
            }
            Err(error)
        }
    }
}

pub fn resume(id: &ExecId, from_sequence: u64) -> run_input::Input {
    run_input::Input::Resume(ResumeCommand {
        run_id: id.to_string(),
        from_sequence,
    })
}

pub fn control(id: &ExecId, control: control_request::Control) -> ControlRequest {
    ControlRequest {
        run_id: id.to_string(),
        control: Some(control),
    }
}
