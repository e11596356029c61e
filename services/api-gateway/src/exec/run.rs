//! Runs one command through the exec-proxy and collects its output.

use agentbox_bus::SessionReceiver;
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{ExecRequest, FromBox, OpenKind};

use super::answer::Collected;
use super::input::Input;
use super::memory::ResultMemory;
use super::output::Output;
use crate::box_session::{self, BoxSession};
use crate::lookup::EnvironmentLocation;
use crate::state::Gateway;

/// Opens the session of a command.
///
/// # Errors
/// As [`box_session::open`].
pub(super) async fn open(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    request: ExecRequest,
) -> Result<BoxSession, Error> {
    box_session::open(gateway, location, OpenKind::Exec(request)).await
}

pub(super) fn lost() -> Error {
    Error::new(
        ErrorCode::BoxLost,
        "the connection to the command was lost; whether it has ended is unknown",
    )
}

/// Runs a command to its end. Dropping the future kills it.
pub(super) async fn run(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    request: ExecRequest,
    input: Input,
    memory: ResultMemory,
) -> Result<Collected, Error> {
    let cap = usize::try_from(request.max_output_bytes).unwrap_or(usize::MAX);
    let session = open(gateway, location, request).await?;
    let (to_box, from_box) = session.split();
    // At the same time: a command may write output before it has read all of its stdin.
    tokio::select! {
        collected = collect(from_box, cap, memory) => collected,
        refused = input.feed(to_box) => Err(refused),
    }
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
            None => return Err(lost()),
        }
    };
    Ok(Collected {
        stdout,
        stderr,
        result,
        memory,
    })
}
