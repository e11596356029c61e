//! Connections to ports, and the list of those that listen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agentbox_box_protocol::ERROR_CODE_METADATA;
use agentbox_box_protocol::client::BoxClient;
use agentbox_box_protocol::proto;
use agentbox_contracts::ports::{ConnectPort, PortInput, PortOutput, port_input, port_output};
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::support::{DEADLINE, TestBox, eventually};

/// One `Connect` call.
struct Connection {
    inputs: mpsc::Sender<PortInput>,
    outputs: Streaming<PortOutput>,
}

impl Connection {
    async fn open(client: &BoxClient, port: u32) -> Result<Self, Status> {
        let (inputs, receiver) = mpsc::channel(4);
        let first = port_input::Input::Connect(ConnectPort { port });
        let first = PortInput { input: Some(first) };
        inputs.send(first).await.unwrap();
        let call = ReceiverStream::new(receiver);
        let outputs = client.clone().connect(call).await?.into_inner();
        let mut connection = Self { inputs, outputs };
        let first = connection.next().await?;
        assert_eq!(first, Some(port_output::Output::Connected(())));
        Ok(connection)
    }

    async fn send(&self, input: port_input::Input) {
        let input = PortInput { input: Some(input) };
        timeout(DEADLINE, self.inputs.send(input))
            .await
            .expect("the input is taken in time")
            .unwrap();
    }

    async fn send_bytes(&self, bytes: &'static [u8]) {
        self.send(port_input::Input::Data(Bytes::from_static(bytes)))
            .await;
    }

    async fn next(&mut self) -> Result<Option<port_output::Output>, Status> {
        let message = timeout(DEADLINE, self.outputs.message());
        let message = message.await.expect("an output in time")?;
        Ok(message.map(|message| message.output.unwrap()))
    }

    /// Reads to the end of what the port sends.
    async fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            match self.next().await.unwrap() {
                Some(port_output::Output::Data(part)) => bytes.extend_from_slice(&part),
                Some(port_output::Output::End(())) => return bytes,
                other => panic!("{other:?}"),
            }
        }
    }
}

async fn listen(address: impl Into<IpAddr>) -> (TcpListener, u32) {
    let listener = TcpListener::bind((address.into(), 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port.into())
}

async fn accept(listener: &TcpListener) -> TcpStream {
    let accepted = timeout(DEADLINE, listener.accept()).await;
    accepted.expect("a connection in time").unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_carries_bytes_both_ways_and_each_side_ends_its_own() {
    let (_boxd, client) = TestBox::idle().await;
    let (listener, port) = listen(Ipv4Addr::LOCALHOST).await;
    let mut connection = Connection::open(&client, port).await.unwrap();
    let mut server = accept(&listener).await;

    connection.send_bytes(b"request").await;
    connection.send(port_input::Input::End(())).await;
    let mut request = Vec::new();
    let read = timeout(DEADLINE, server.read_to_end(&mut request)).await;
    read.expect("the caller's end arrives").unwrap();
    assert_eq!(request, b"request");
    // The port sends after the caller has ended.
    server.write_all(b"answer").await.unwrap();
    drop(server);
    assert_eq!(connection.read_to_end().await, b"answer");
    drop(connection.inputs);
    let end = timeout(DEADLINE, connection.outputs.message()).await;
    assert_eq!(end.expect("the call ends").unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_sends_after_the_end_of_the_port() {
    let (_boxd, client) = TestBox::idle().await;
    let (listener, port) = listen(Ipv4Addr::LOCALHOST).await;
    let mut connection = Connection::open(&client, port).await.unwrap();
    let mut server = accept(&listener).await;
    server.shutdown().await.unwrap();
    assert_eq!(connection.read_to_end().await, b"");
    connection.send_bytes(b"late").await;
    connection.send(port_input::Input::End(())).await;
    let mut received = Vec::new();
    let read = timeout(DEADLINE, server.read_to_end(&mut received)).await;
    read.expect("the bytes arrive").unwrap();
    assert_eq!(received, b"late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_ends_when_both_sides_have_ended_although_its_inputs_are_open() {
    let (_boxd, client) = TestBox::idle().await;
    let (listener, port) = listen(Ipv4Addr::LOCALHOST).await;
    for port_is_first in [false, true] {
        let mut connection = Connection::open(&client, port).await.unwrap();
        let mut server = accept(&listener).await;
        if port_is_first {
            server.shutdown().await.unwrap();
            assert_eq!(connection.read_to_end().await, b"");
        }
        connection.send_bytes(b"late").await;
        connection.send(port_input::Input::End(())).await;
        let mut received = Vec::new();
        let read = timeout(DEADLINE, server.read_to_end(&mut received)).await;
        read.expect("the caller's end arrives").unwrap();
        assert_eq!(received, b"late");
        if !port_is_first {
            server.write_all(b"answer").await.unwrap();
            server.shutdown().await.unwrap();
            assert_eq!(connection.read_to_end().await, b"answer");
        }
        assert_eq!(connection.next().await.unwrap(), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_ends_when_the_port_has_ended_and_takes_no_more() {
    let (_boxd, client) = TestBox::idle().await;
    let (listener, port) = listen(Ipv4Addr::LOCALHOST).await;
    let mut connection = Connection::open(&client, port).await.unwrap();
    drop(accept(&listener).await);
    assert_eq!(connection.read_to_end().await, b"");
    let Connection {
        inputs,
        mut outputs,
    } = connection;
    // The kernel of a closed socket answers bytes with a reset, and then refuses more.
    let sending = async {
        let data = port_input::Input::Data(Bytes::from_static(b"late"));
        let input = PortInput { input: Some(data) };
        while inputs.send(input.clone()).await.is_ok() {
            tokio::task::yield_now().await;
        }
        std::future::pending::<()>().await;
    };
    let end = tokio::select! {
        end = timeout(DEADLINE, outputs.message()) => end,
        () = sending => unreachable!("it waits"),
    };
    assert_eq!(end.expect("the call ends").unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_of_other_addresses_of_the_box_are_reached() {
    let (boxd, client) = TestBox::idle().await;
    for address in [IpAddr::V6(Ipv6Addr::LOCALHOST), boxd.address.ip()] {
        let (listener, port) = listen(address).await;
        let connection = Connection::open(&client, port).await.unwrap();
        accept(&listener).await;
        drop(connection);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn port_without_a_listener_is_refused_by_its_number() {
    let (_boxd, client) = TestBox::idle().await;
    let (listener, port) = listen(Ipv4Addr::LOCALHOST).await;
    drop(listener);
    let refused = Connection::open(&client, port).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains(&port.to_string()), "{refused}");
    let code = refused.metadata().get(ERROR_CODE_METADATA).unwrap();
    assert_eq!(code, "nothing_listening");
    for port in [0, 65_536] {
        let refused = Connection::open(&client, port).await.err().unwrap();
        assert_eq!(refused.code(), Code::InvalidArgument, "{port}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_call_closes_the_connection() {
    let (_boxd, client) = TestBox::idle().await;
    let (listener, port) = listen(Ipv4Addr::LOCALHOST).await;
    let connection = Connection::open(&client, port).await.unwrap();
    let mut server = accept(&listener).await;
    drop(connection);
    let mut byte = [0];
    let read = timeout(DEADLINE, server.read(&mut byte)).await;
    // The end of the bytes, or a reset.
    assert_eq!(read.expect("the connection ends").unwrap_or(0), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn port_that_nobody_reads_stops_its_writer() {
    let (boxd, client) = TestBox::idle().await;
    let (listener, port) = listen(Ipv4Addr::LOCALHOST).await;
    let _connection = Connection::open(&client, port).await.unwrap();
    let server = accept(&listener).await;
    let chunk = vec![0; 1024 * 1024];
    let mut written = 0;
    // As long as the sockets and the windows take bytes.
    while timeout(std::time::Duration::from_secs(2), server.writable())
        .await
        .is_ok()
    {
        written += server.try_write(&chunk).unwrap_or(0);
        assert!(written < 256 * 1024 * 1024, "{written}");
    }
    assert!(boxd.resident_kib() < 64 * 1024, "{}", boxd.resident_kib());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_above_the_limit_are_refused_until_one_ends() {
    let (_boxd, client) = TestBox::idle().await;
    let (listener, port) = listen(Ipv4Addr::LOCALHOST).await;
    let mut open = Vec::new();
    for _ in 0..256 {
        open.push(Connection::open(&client, port).await.unwrap());
        drop(accept(&listener).await);
    }
    let refused = Connection::open(&client, port).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    open.pop();
    eventually("a connection is accepted again", async || {
        Connection::open(&client, port).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_has_the_listening_sockets_with_their_processes() {
    let (boxd, client) = TestBox::idle().await;
    let (_listener, port) = listen(Ipv4Addr::LOCALHOST).await;
    let list = client.clone().ports(proto::PortsRequest {}).await.unwrap();
    let ports = list.into_inner().ports;
    let found = ports.iter().find(|listening| listening.port == port);
    let found = found.expect("the socket of this test");
    assert_eq!(found.address, "127.0.0.1");
    assert_eq!(found.pid, Some(std::process::id()));
    assert!(!found.process.is_empty());
    let own = boxd.address.ip().to_string();
    assert!(ports.iter().all(|listening| listening.address != own));
}
