//! Forwards an exec's stdin, from the request and the messages after it, to the box.

use agentbox_box_protocol::proto::{Empty, RunInput, run_input};
use agentbox_bus::SessionReceiver;
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::{MAX_CHUNK, ToBox};
use bytes::Bytes;

use crate::boxes::run::Inputs;
use crate::metrics;

/// Sends all of stdin and its end, as fast as the command reads it. Returns early when the
/// command has ended.
///
/// # Errors
/// The session's error, when the session ends before stdin is complete.
pub async fn forward(
    inputs: &Inputs,
    inline: Option<Vec<u8>>,
    follows: bool,
    receiver: &mut SessionReceiver<ToBox>,
) -> Result<(), Error> {
    if inline.is_none() && !follows {
        return Ok(());
    }
    if send(inputs, Bytes::from(inline.unwrap_or_default()))
        .await
        .is_err()
    {
        return Ok(());
    }
    if follows && forward_messages(inputs, receiver).await?.is_err() {
        return Ok(());
    }
    // An error means that the command has ended, which its output reports.
    let _ = inputs
        .send(input(run_input::Input::StdinEof(Empty {})))
        .await;
    Ok(())
}

async fn forward_messages(
    inputs: &Inputs,
    receiver: &mut SessionReceiver<ToBox>,
) -> Result<Result<(), InputClosed>, Error> {
    loop {
        match receiver.recv().await? {
            Some(ToBox::Data(bytes)) => {
                if let Err(closed) = send(inputs, bytes).await {
                    return Ok(Err(closed));
                }
            }
            Some(ToBox::End) | None => return Ok(Ok(())),
            // An exec has no terminal; closing its session kills it.
            Some(ToBox::Resize(_) | ToBox::Signal(_) | ToBox::TakeInput) => {}
        }
    }
}

/// The command has ended and takes no more input.
struct InputClosed;

/// Sends `bytes` in chunks.
///
/// # Errors
/// [`InputClosed`] when the command has ended.
async fn send(inputs: &Inputs, mut bytes: Bytes) -> Result<(), InputClosed> {
    while !bytes.is_empty() {
        let chunk = bytes.split_to(bytes.len().min(MAX_CHUNK));
        let count = chunk.len();
        let sent = inputs.send(input(run_input::Input::Stdin(chunk))).await;
        sent.map_err(|_| InputClosed)?;
        metrics::bytes_in("exec", count);
    }
    Ok(())
}

fn input(input: run_input::Input) -> RunInput {
    RunInput { input: Some(input) }
}
