//! The stream of one command to its boxd, begun and begun again.

use agentbox_box_protocol::proto::{ResumeCommand, RunInput, RunOutput, run_input};
use agentbox_contracts::ids::ExecId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{Instrument as _, Span};

use crate::boxes::pool::Connection;
use crate::boxes::trace::traced;
use crate::boxes::{BoxError, Lease};

/// Inputs under way to boxd: with chunks of 32 KiB, 128 KiB of stdin.
const INPUTS: usize = 4;

/// Where stdin goes. Sending waits while the command does not read.
pub type Inputs = mpsc::Sender<RunInput>;

/// Both ends of a stream.
pub type Opened = (Inputs, Streaming<RunOutput>);

/// Begins a stream with `begin`, on which boxd is asked and answers.
pub async fn open(
    connection: &Connection,
    begin: run_input::Input,
    span: &Span,
) -> Result<Opened, BoxError> {
    let (inputs, receiver) = mpsc::channel(INPUTS);
    // The first input is there before boxd is asked: no round trip of its own.
    let begin = RunInput { input: Some(begin) };
    inputs
        .try_send(begin)
        .map_err(|_| BoxError::Lost("the run's input is closed".into()))?;
    let request = traced(span, ReceiverStream::new(receiver));
    let mut client = connection.client.clone();
    let response = client.run(request).instrument(span.clone()).await;
    let outputs = response.map_err(BoxError::from_status)?.into_inner();
    Ok((inputs, outputs))
}

/// Reads on from byte `received`, on a new connection if need be.
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
                lease.lost(connection.number).await;
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
