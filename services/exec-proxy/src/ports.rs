//! Port sessions: a connection to a TCP port of a box, and the list of its listening ports.
//!
//! * I1. Each direction of a connection ends by itself: bytes pass in the other one until it ends too.
//! * I2. The session ends when boxd has written all bytes of the caller.

use agentbox_bus::{Session, SessionReceiver, SessionSender};
use agentbox_contracts::error::Error;
use agentbox_contracts::exec::{FromBox, ToBox};
use agentbox_contracts::ports::{ConnectPort, PortInput, PortOutput, port_input, port_output};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::boxes::call::{Call, OPEN_DEADLINE, ended_early};
use crate::boxes::{self, BoxError, Lease, call};
use crate::outcome::Outcome;
use crate::relay::{End, Relay, check_chunk, closed, forward_message, until_ended};

type PortCall = Call<call::Connect>;

/// The kind of the session, a label of the metrics.
const KIND: &str = "port";

/// Serves a connection to a port of the leased box on `session`.
pub async fn connect(
    session: Session<FromBox, ToBox>,
    lease: Lease,
    request: ConnectPort,
    stopping: CancellationToken,
) -> Outcome {
    let first = PortInput {
        input: Some(port_input::Input::Connect(request)),
    };
    let mut relay = Relay::new(session, lease, stopping);
    // No byte was sent to the port before the first output, so connecting again is harmless.
    let opening = PortCall::open(&relay.lease, first, true, OPEN_DEADLINE);
    let opened = relay.until_gone(opening).await;
    let end = match opened {
        Ok(Ok(call)) => carry(&mut relay, call).await,
        Ok(Err(error)) => End::Failed(error),
        Err(end) => end,
    };
    relay.finish(end).await
}

/// Answers `session` with the listening ports of the leased box.
pub async fn list(
    session: Session<FromBox, ToBox>,
    lease: Lease,
    stopping: CancellationToken,
) -> Outcome {
    let relay = Relay::new(session, lease, stopping);
    let listed = relay.until_gone(boxes::ports::list(&relay.lease)).await;
    let end = match listed {
        Ok(Ok(ports)) => End::Last(Box::new(FromBox::Ports(ports))),
        Ok(Err(error)) => End::Failed(error),
        Err(end) => end,
    };
    relay.finish(end).await
}

/// Carries the bytes of `call` until both directions have ended, and cancels it otherwise.
async fn carry(relay: &mut Relay, mut call: PortCall) -> End {
    let inputs = call.inputs.clone();
    let caller_ended = CancellationToken::new();
    let inbound = carry_inputs(&mut relay.receiver, inputs, &caller_ended);
    let outbound = carry_outputs(&mut call, &relay.lease, &mut relay.sender, &caller_ended);
    until_ended(inbound, outbound, &relay.stopping).await
}

/// Carries the caller's bytes and their end. Returns when boxd has them, or takes no more.
async fn carry_inputs(
    receiver: &mut SessionReceiver<ToBox>,
    inputs: mpsc::Sender<PortInput>,
    caller_ended: &CancellationToken,
) -> Result<(), Error> {
    loop {
        // The gateway sends no last message: it closes the session.
        let message = receiver.recv().await?.ok_or_else(closed)?;
        let is_end = matches!(message, ToBox::End);
        let is_open = forward_message(KIND, message, &inputs, input).await;
        if is_end {
            caller_ended.cancel();
        }
        if is_end || !is_open {
            return Ok(());
        }
    }
}

/// Carries the port's bytes and their end, and returns when the call has ended.
async fn carry_outputs(
    call: &mut PortCall,
    lease: &Lease,
    sender: &mut SessionSender<FromBox>,
    caller_ended: &CancellationToken,
) -> End {
    let (mut inputs_open, mut port_ended) = (true, false);
    loop {
        let next = tokio::select! {
            next = call.next_or_end(lease) => next,
            () = caller_ended.cancelled(), if inputs_open => {
                // An older boxd ends the call only after the end of its inputs.
                call.end_inputs();
                inputs_open = false;
                continue;
            }
            () = sender.closed() => return End::PeerGone,
        };
        let output = match next {
            Ok(Some(output)) => output,
            // The gateway has the end of the port already. This one ends the session.
            Ok(None) if port_ended => return End::Last(Box::new(end_of_port())),
            Ok(None) => return End::Failed(ended_early()),
            Err(error) => return End::Failed(error),
        };
        match checked(&output) {
            Ok(is_end) => port_ended |= is_end,
            Err(error) => return End::Failed(error),
        }
        if sender.send(FromBox::Port(output)).await.is_err() {
            return End::PeerGone;
        }
    }
}

fn end_of_port() -> FromBox {
    FromBox::Port(PortOutput {
        output: Some(port_output::Output::End(())),
    })
}

/// The input for a message from the gateway; `None` when it has no meaning here.
fn input(message: ToBox) -> Option<PortInput> {
    let input = match message {
        ToBox::Data(bytes) => port_input::Input::Data(bytes),
        ToBox::End => port_input::Input::End(()),
        ToBox::Resize(_) | ToBox::Signal(_) | ToBox::TakeInput => return None,
    };
    Some(PortInput { input: Some(input) })
}

/// Returns whether `output` is the end of what the port sends.
///
/// # Errors
/// [`BoxError::Invalid`] when boxd does not send such an output.
fn checked(output: &PortOutput) -> Result<bool, BoxError> {
    use port_output::Output;
    match &output.output {
        Some(Output::Data(bytes)) => {
            check_chunk(KIND, bytes)?;
            Ok(false)
        }
        Some(Output::Connected(())) => Ok(false),
        Some(Output::End(())) => Ok(true),
        None => Err(BoxError::Invalid("a port output without content")),
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::exec::MAX_CHUNK;
    use bytes::Bytes;

    use super::*;

    #[test]
    fn only_the_end_of_the_port_ends_its_direction() {
        use port_output::Output;
        let chunk = |length| Output::Data(Bytes::from(vec![0; length]));
        for (output, is_end) in [
            (Output::Connected(()), false),
            (chunk(MAX_CHUNK), false),
            (Output::End(()), true),
        ] {
            let output = PortOutput {
                output: Some(output),
            };
            assert_eq!(checked(&output).unwrap(), is_end, "{output:?}");
        }
        for hostile in [None, Some(chunk(MAX_CHUNK + 1))] {
            let error = checked(&PortOutput { output: hostile }).unwrap_err();
            assert!(matches!(error, BoxError::Invalid(_)), "{error}");
        }
    }
}
