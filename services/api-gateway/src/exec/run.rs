//! Runs one command through the exec-proxy and collects its output.

use agentbox_bus::{SessionReceiver, SessionSender};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::rpc::BoxSession;
use agentbox_contracts::exec::{FromBox, Open, OpenKind, ToBox};

use super::answer::Collected;
use super::memory::{InputMemory, ResultMemory};
use super::output::Output;
use super::request::Command;
use super::{OPEN_DEADLINE, stdin_messages};
use crate::lookup::EnvironmentLocation;
use crate::state::Gateway;

/// Runs `command` to its end. Dropping the future kills it.
pub(super) async fn run(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    command: Command,
    input: InputMemory,
    memory: ResultMemory,
) -> Result<Collected, Error> {
    let cap = usize::try_from(command.request.max_output_bytes).unwrap_or(usize::MAX);
    let open = Open {
        environment: location.id.clone(),
        owner: Some(location.owner.clone()),
        address: location.address,
        status: location.status,
        kind: OpenKind::Exec(command.request),
    };
    let session = gateway
        .bus
        .open_session::<BoxSession>(&location.cluster, &open, OPEN_DEADLINE)
        .await?;
    let (to_box, from_box) = session.split();
    // At the same time: a command may write output before it has read all of its stdin.
    tokio::select! {
        collected = collect(from_box, cap, memory) => collected,
        never = feed(to_box, command.stdin, input) => match never {},
    }
}

/// Sends the command its stdin, then waits to be dropped: closing this half of the session before
/// the result has arrived would kill the command.
async fn feed(
    mut to_box: SessionSender<ToBox>,
    stdin: Option<Vec<u8>>,
    input: InputMemory,
) -> std::convert::Infallible {
    if let Some(stdin) = stdin {
        let mut messages = stdin_messages(stdin.into());
        messages.push(ToBox::End);
        for message in messages {
            // The command has ended without reading all of its stdin. Its result follows.
            if to_box.send(message).await.is_err() {
                break;
            }
        }
    }
    drop(input);
    std::future::pending().await
}

async fn collect(
    mut from_box: SessionReceiver<FromBox>,
    cap: usize,
    mut memory: ResultMemory,
) -> Result<Collected, Error> {
    let (mut stdout, mut stderr) = (Output::new(cap), Output::new(cap));
    let mut push = |output: &mut Output, bytes: &[u8]| -> Result<(), Error> {
        memory.grow(bytes.len())?;
        output.push(bytes)
    };
    let result = loop {
        match from_box.recv().await? {
            Some(FromBox::Stdout(bytes)) => push(&mut stdout, &bytes)?,
            Some(FromBox::Stderr(bytes)) => push(&mut stderr, &bytes)?,
            Some(FromBox::Result(mut result)) => {
                // Output comes either before the result or in it.
                push(&mut stdout, &std::mem::take(&mut result.stdout))?;
                push(&mut stderr, &std::mem::take(&mut result.stderr))?;
                break result;
            }
            Some(_) => return Err(Error::internal()),
            None => {
                return Err(Error::new(
                    ErrorCode::BoxLost,
                    "the connection to the command was lost; whether it has ended is unknown",
                ));
            }
        }
    };
    Ok(Collected {
        stdout,
        stderr,
        result,
        memory,
    })
}
