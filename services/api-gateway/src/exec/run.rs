//! Runs one command through the exec-proxy and collects what it says.

use agentbox_bus::{SessionReceiver, SessionSender};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::exec::{ExecResult, FromBox, MAX_CHUNK, OPEN, Open, OpenKind, ToBox};
use agentbox_contracts::subjects;
use bytes::Bytes;

use super::OPEN_DEADLINE;
use super::request::Command;
use crate::lookup::Place;
use crate::state::Gateway;

/// Dropping the future kills the command.
pub(super) async fn run(
    gateway: &Gateway,
    place: &Place,
    command: Command,
) -> Result<ExecResult, Error> {
    let cap = usize::try_from(command.request.max_output_bytes).unwrap_or(usize::MAX);
    let open = Open {
        environment: place.id.clone(),
        address: place.address,
        status: place.status,
        kind: OpenKind::Exec(command.request),
    };
    let subject = subjects::exec_rpc(&place.cluster, OPEN);
    let session = gateway
        .bus
        .open_session::<ToBox, FromBox>(subject, &open, OPEN_DEADLINE)
        .await?;
    let (to_box, from_box) = session.split();
    // At the same time: a command may write before it has read all that it is given.
    tokio::select! {
        result = collect(from_box, cap) => result,
        never = feed(to_box, command.stdin) => match never {},
    }
}

/// Gives the command its stdin and then waits to be dropped: ending the session's other
/// half before the result is there would kill the command.
async fn feed(
    mut to_box: SessionSender<ToBox>,
    stdin: Option<Vec<u8>>,
) -> std::convert::Infallible {
    if let Some(stdin) = stdin {
        let mut rest = Bytes::from(stdin);
        let mut messages = Vec::with_capacity(rest.len() / MAX_CHUNK + 2);
        while !rest.is_empty() {
            messages.push(ToBox::Stdin(rest.split_to(rest.len().min(MAX_CHUNK))));
        }
        messages.push(ToBox::Eof);
        for message in messages {
            // A command that ends without reading all of it says so by its result.
            if to_box.send(message).await.is_err() {
                break;
            }
        }
    }
    std::future::pending().await
}

async fn collect(mut from_box: SessionReceiver<FromBox>, cap: usize) -> Result<ExecResult, Error> {
    let (mut stdout, mut stderr) = (Capped::new(cap), Capped::new(cap));
    while let Some(message) = from_box.recv().await? {
        match message {
            FromBox::Stdout(bytes) => stdout.push(&bytes),
            FromBox::Stderr(bytes) => stderr.push(&bytes),
            FromBox::Result(mut result) => {
                // Either comes before the result or in it.
                stdout.push(&result.stdout);
                stderr.push(&result.stderr);
                result.stdout_truncated |= stdout.truncated;
                result.stderr_truncated |= stderr.truncated;
                result.stdout = stdout.bytes;
                result.stderr = stderr.bytes;
                return Ok(result);
            }
            _ => return Err(Error::internal()),
        }
    }
    Err(Error::new(
        ErrorCode::BoxLost,
        "the command's end is not known",
    ))
}

/// Output up to a cap.
struct Capped {
    bytes: Vec<u8>,
    cap: usize,
    truncated: bool,
}

impl Capped {
    const fn new(cap: usize) -> Self {
        Self {
            bytes: Vec::new(),
            cap,
            truncated: false,
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = self.cap.saturating_sub(self.bytes.len());
        self.bytes
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.truncated |= bytes.len() > room;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_beyond_the_cap_is_dropped_and_said() {
        let mut capped = Capped::new(4);
        capped.push(b"abc");
        capped.push(b"");
        assert!(!capped.truncated);
        capped.push(b"d");
        assert!(!capped.truncated);
        capped.push(b"e");
        assert!(capped.truncated);
        assert_eq!(capped.bytes, b"abcd");
    }
}
