//! Port sessions, with boxes whose boxd is the test.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentbox_box_protocol::ERROR_CODE_METADATA;
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::exec::{FromBox, MAX_CHUNK, OpenKind, ToBox};
use agentbox_contracts::ports::{
    ConnectPort, ListeningPort, PortInput, PortList, PortOutput, port_input, port_output,
};
use bytes::Bytes;
use port_output::Output;
use tokio::time::timeout;
use tonic::metadata::MetadataValue;
use tonic::{Status, Streaming};

use crate::support::fake_box::{Behaviour, FakeBox, Outputs};
use crate::support::gateway::receive;
use crate::support::{System, eventually, pattern};

const DEADLINE: Duration = Duration::from_secs(10);

/// An echo server listens on port 7. It ends when its client does. On port 9 a server ends at once, and
/// keeps what its client sends.
#[derive(Clone, Default)]
struct Ports {
    /// What port 9 has received, and whether its client has ended.
    received: Arc<Mutex<(Vec<u8>, bool)>>,
    /// Whether the last connection was closed before its end.
    closed: Arc<AtomicBool>,
    /// The number of listening ports.
    listening: u32,
}

impl Ports {
    /// Serves a connection to port 9. As an older boxd, it ends the call after the end of the inputs.
    async fn discard(&self, mut inputs: Streaming<PortInput>, outputs: Outputs<PortOutput>) {
        for first in [Output::Connected(()), Output::End(())] {
            let _ = outputs.send(Ok(output(first))).await;
        }
        while let Ok(Some(PortInput { input: Some(input) })) = inputs.message().await {
            let mut received = self.received.lock().unwrap();
            match input {
                port_input::Input::Data(bytes) => received.0.extend_from_slice(&bytes),
                port_input::Input::End(()) => received.1 = true,
                port_input::Input::Connect(_) => return,
            }
        }
    }
}

fn output(output: Output) -> PortOutput {
    PortOutput {
        output: Some(output),
    }
}

#[async_trait::async_trait]
impl Behaviour for Ports {
    async fn connect(&self, mut inputs: Streaming<PortInput>, outputs: Outputs<PortOutput>) {
        match inputs.message().await {
            Ok(Some(PortInput {
                input: Some(port_input::Input::Connect(ConnectPort { port: 7 })),
            })) => {}
            Ok(Some(PortInput {
                input: Some(port_input::Input::Connect(ConnectPort { port: 9 })),
            })) => return self.discard(inputs, outputs).await,
            _ => {
                let mut status = Status::unavailable("nothing listens on port 80");
                let word = MetadataValue::from_static("nothing_listening");
                status.metadata_mut().insert(ERROR_CODE_METADATA, word);
                let _ = outputs.send(Err(status)).await;
                return;
            }
        }
        let _ = outputs.send(Ok(output(Output::Connected(())))).await;
        while let Ok(Some(PortInput { input: Some(input) })) = inputs.message().await {
            let answer = match input {
                port_input::Input::Data(bytes) => Output::Data(bytes),
                port_input::Input::End(()) => {
                    let last = [Output::Data(Bytes::from_static(b"bye")), Output::End(())];
                    for answer in last {
                        let _ = outputs.send(Ok(output(answer))).await;
                    }
                    return;
                }
                port_input::Input::Connect(_) => return,
            };
            let _ = outputs.send(Ok(output(answer))).await;
        }
        self.closed.store(true, Ordering::SeqCst);
    }

    fn ports(&self) -> Result<PortList, Status> {
        Ok(list(self.listening))
    }
}

fn list(count: u32) -> PortList {
    let ports = (0..count).map(|port| ListeningPort {
        port,
        address: "::1".into(),
        pid: Some(1),
        process: "server".into(),
    });
    PortList {
        ports: ports.collect(),
    }
}

fn connect(port: u32) -> OpenKind {
    OpenKind::Port(ConnectPort { port })
}

fn sent(of: Output) -> FromBox {
    FromBox::Port(output(of))
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_flow_both_ways_and_the_box_may_send_after_the_callers_end() {
    let system = System::start().await;
    let inside = FakeBox::start(Ports::default()).await;
    let open = inside.open(connect(7));
    let mut session = system.gateway.open_as(&open).await.unwrap();
    let connected = receive(&mut session, DEADLINE).await;
    assert_eq!(connected, Some(sent(Output::Connected(()))));
    let bytes = pattern(4 * 1024 * 1024);
    let (mut sender, mut receiver) = session.split();
    let sending = async {
        for chunk in bytes.chunks(MAX_CHUNK) {
            let data = ToBox::Data(Bytes::copy_from_slice(chunk));
            sender.send(data).await.unwrap();
        }
        sender.send(ToBox::End).await.unwrap();
    };
    let receiving = async {
        let mut received = Vec::new();
        loop {
            match receiver.recv().await.unwrap() {
                Some(FromBox::Port(PortOutput {
                    output: Some(Output::Data(bytes)),
                })) => received.extend_from_slice(&bytes),
                end => {
                    assert_eq!(end, Some(sent(Output::End(()))));
                    break;
                }
            }
        }
        // Both have ended, and so has the session.
        let last = timeout(DEADLINE, receiver.recv()).await.unwrap();
        assert_eq!(last.unwrap(), Some(sent(Output::End(()))));
        let end = timeout(DEADLINE, receiver.recv()).await.unwrap();
        assert_eq!(end.unwrap(), None);
        received
    };
    let (received, ()) = tokio::join!(receiving, sending);
    let (echo, rest) = received.split_at(bytes.len());
    assert!(echo == bytes);
    assert_eq!(rest, b"bye");
}

#[tokio::test(flavor = "multi_thread")]
async fn port_that_ends_first_gets_the_callers_bytes_until_their_end() {
    let system = System::start().await;
    let ports = Ports::default();
    let inside = FakeBox::start(ports.clone()).await;
    let mut session = system
        .gateway
        .open_as(&inside.open(connect(9)))
        .await
        .unwrap();
    for expected in [Output::Connected(()), Output::End(())] {
        let message = receive(&mut session, DEADLINE).await;
        assert_eq!(message, Some(sent(expected)));
    }
    let bytes = pattern(1024 * 1024);
    for chunk in bytes.chunks(MAX_CHUNK) {
        let data = ToBox::Data(Bytes::copy_from_slice(chunk));
        session.send(data).await.unwrap();
    }
    session.send(ToBox::End).await.unwrap();
    // The end of the session, after the box has all bytes.
    let last = receive(&mut session, DEADLINE).await;
    assert_eq!(last, Some(sent(Output::End(()))));
    assert_eq!(receive(&mut session, DEADLINE).await, None);
    let received = ports.received.lock().unwrap();
    assert!(received.0 == bytes, "{} bytes", received.0.len());
    assert!(received.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_session_closes_the_connection() {
    let system = System::start().await;
    let ports = Ports::default();
    let inside = FakeBox::start(ports.clone()).await;
    let open = inside.open(connect(7));
    let mut session = system.gateway.open_as(&open).await.unwrap();
    receive(&mut session, DEADLINE).await;
    drop(session);
    eventually("the connection is closed", DEADLINE, async || {
        ports.closed.load(Ordering::SeqCst)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn port_without_listener_is_named_by_its_error() {
    let system = System::start().await;
    let inside = FakeBox::start(Ports::default()).await;
    let open = inside.open(connect(80));
    let mut session = system.gateway.open_as(&open).await.unwrap();
    let error = session.recv().await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NothingListening);
    assert_eq!(error.message, "nothing listens on port 80");
}

#[tokio::test(flavor = "multi_thread")]
async fn listening_ports_are_one_message_and_an_endless_list_is_refused() {
    let system = System::start().await;
    for (listening, is_refused) in [(0, false), (100, false), (200_000, true)] {
        let inside = FakeBox::start(Ports {
            listening,
            ..Ports::default()
        })
        .await;
        let open = inside.open(OpenKind::Ports);
        let mut session = system.gateway.open_as(&open).await.unwrap();
        if is_refused {
            let error = session.recv().await.unwrap_err();
            assert_eq!(error.code, ErrorCode::BoxLost, "{error}");
            continue;
        }
        let expected = FromBox::Ports(list(listening));
        assert_eq!(receive(&mut session, DEADLINE).await, Some(expected));
        assert_eq!(receive(&mut session, DEADLINE).await, None);
    }
}
