//! Runs one command through the exec-proxy and collects its output.

use agentbox_bus::{SessionReceiver, SessionSender};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::rpc::BoxSession;
use agentbox_contracts::exec::{ExecResult, FromBox, Open, OpenKind, ToBox};

use super::request::Command;
use super::{OPEN_DEADLINE, stdin_messages};
use crate::lookup::EnvironmentLocation;
use crate::state::Gateway;

/// Runs `command` to its end. Dropping the future kills it.
pub(super) async fn run(
    gateway: &Gateway,
    location: &EnvironmentLocation,
    command: Command,
) -> Result<ExecResult, Error> {
    let cap = usize::try_from(command.request.max_output_bytes).unwrap_or(usize::MAX);
    let open = Open {
        environment: location.id.clone(),
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
        result = collect(from_box, cap) => result,
        never = feed(to_box, command.stdin) => match never {},
    }
}

/// Sends the command its stdin, then waits to be dropped: closing this half of the session before
/// the result has arrived would kill the command.
async fn feed(
    mut to_box: SessionSender<ToBox>,
    stdin: Option<Vec<u8>>,
) -> std::convert::Infallible {
    if let Some(stdin) = stdin {
        let mut messages = stdin_messages(stdin.into());
        messages.push(ToBox::Eof);
        for message in messages {
            // The command has ended without reading all of its stdin. Its result follows.
            if to_box.send(message).await.is_err() {
                break;
            }
        }
    }
    std::future::pending().await
}

async fn collect(mut from_box: SessionReceiver<FromBox>, cap: usize) -> Result<ExecResult, Error> {
    let (mut stdout, mut stderr) = (Output::new(cap), Output::new(cap));
    while let Some(message) = from_box.recv().await? {
        match message {
            FromBox::Stdout(bytes) => stdout.push(&bytes)?,
            FromBox::Stderr(bytes) => stderr.push(&bytes)?,
            FromBox::Result(mut result) => {
                // Output comes either before the result or in it.
                stdout.push(&result.stdout)?;
                stderr.push(&result.stderr)?;
                result.stdout = stdout.bytes;
                result.stderr = stderr.bytes;
                return Ok(result);
            }
            _ => return Err(Error::internal()),
        }
    }
    Err(Error::new(
        ErrorCode::BoxLost,
        "the connection to the command was lost; whether it has ended is unknown",
    ))
}

/// The output of one stream. The exec-proxy truncates it at the cap. More output is a fault of the
/// exec-proxy and fails the request, so that memory stays bounded.
struct Output {
    bytes: Vec<u8>,
    cap: usize,
}

impl Output {
    const fn new(cap: usize) -> Self {
        Self {
            bytes: Vec::new(),
            cap,
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.len() > self.cap - self.bytes.len() {
            tracing::error!(
                cap = self.cap,
                "the exec-proxy sent more output than the cap"
            );
            return Err(Error::internal());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_above_the_cap_is_an_internal_error() {
        let mut output = Output::new(4);
        output.push(b"abc").unwrap();
        output.push(b"").unwrap();
        output.push(b"d").unwrap();
        assert_eq!(output.push(b"e").unwrap_err().code, ErrorCode::Internal);
        assert_eq!(output.bytes, b"abcd");
    }
}
