//! Port sessions: a connection to a TCP port of a box, and the list of its listening ports.

use agentbox_bus::Session;
use agentbox_contracts::exec::{FromBox, ToBox};
use agentbox_contracts::ports::{ConnectPort, PortInput, PortOutput, port_input, port_output};
use tokio_util::sync::CancellationToken;

use crate::boxes::{self, BoxError, Lease, call};
use crate::outcome::Outcome;
use crate::relay::{self, End, Message, Relay, Relayed, check_chunk};

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
    // No byte was sent to the port before the first output, so connecting again is harmless.
    relay::serve(Connection, session, lease, first, true, stopping).await
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

struct Connection;

impl Relayed for Connection {
    type Method = call::Connect;

    const KIND: &'static str = "port";

    fn input(message: ToBox) -> Option<PortInput> {
        let input = match message {
            ToBox::Data(bytes) => port_input::Input::Data(bytes),
            ToBox::End => port_input::Input::End(()),
            ToBox::Resize(_) | ToBox::Signal(_) | ToBox::TakeInput => return None,
        };
        Some(PortInput { input: Some(input) })
    }

    fn output(&mut self, output: PortOutput) -> Result<Message, BoxError> {
        use port_output::Output;
        let is_last = match &output.output {
            Some(Output::Data(bytes)) => {
                check_chunk(Self::KIND, bytes)?;
                false
            }
            Some(Output::Connected(())) => false,
            Some(Output::End(())) => true,
            None => return Err(BoxError::Invalid("a port output without content")),
        };
        let message = FromBox::Port(output);
        Ok(match is_last {
            true => Message::Last(message),
            false => Message::Send(message),
        })
    }
}

#[cfg(test)]
mod tests {
    use agentbox_contracts::exec::MAX_CHUNK;
    use bytes::Bytes;

    use super::*;

    #[test]
    fn only_the_end_of_the_box_ends_the_session() {
        use port_output::Output;
        let chunk = |length| Output::Data(Bytes::from(vec![0; length]));
        for (output, is_last) in [
            (Output::Connected(()), false),
            (chunk(MAX_CHUNK), false),
            (Output::End(()), true),
        ] {
            let output = PortOutput {
                output: Some(output),
            };
            let message = Connection.output(output.clone()).unwrap();
            let expected = match is_last {
                true => Message::Last(FromBox::Port(output)),
                false => Message::Send(FromBox::Port(output)),
            };
            assert_eq!(message, expected);
        }
        for hostile in [None, Some(chunk(MAX_CHUNK + 1))] {
            let error = Connection
                .output(PortOutput { output: hostile })
                .unwrap_err();
            assert!(matches!(error, BoxError::Invalid(_)), "{error}");
        }
    }
}
