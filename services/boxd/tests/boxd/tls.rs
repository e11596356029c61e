//! Encryption: who may read a call, and who may not.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use agentbox_box_protocol::client::{connect, start_http2};
use agentbox_box_protocol::proto;
use agentbox_box_protocol::tls;
use agentbox_box_protocol::token::BoxToken;
use agentbox_testing::repeat_until_below;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::support::{DEADLINE, Setup, TOKEN, TestBox, run, sh, start, token};

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

#[tokio::test]
async fn peer_with_another_key_gets_no_token_and_no_command() {
    let (boxd, _client) = TestBox::idle().await;
    let (listener, between) = listener().await;
    // Ends the encryption with a key of its own, to read what arrives.
    let reading = async {
        let (stream, _) = listener.accept().await.unwrap();
        let other = BoxToken::parse("token-of-another-box").unwrap();
        let accepted = tls::acceptor(&other).unwrap().accept(stream).await;
        assert!(accepted.is_err(), "the client accepted another key");
    };
    let calling = async {
        let stream = TcpStream::connect(between).await.unwrap();
        connect(stream, &token()).await.err().unwrap()
    };
    let both = async { tokio::join!(reading, calling) };
    let ((), error) = timeout(DEADLINE, both).await.unwrap();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("key of this box"), "{cause}");
    assert_eq!(
        run(&boxd.client().await, sh("echo here")).await.text(),
        "here\n"
    );
}

#[tokio::test]
async fn bytes_on_the_network_have_neither_token_nor_command() {
    let (boxd, _client) = TestBox::idle().await;
    let (listener, between) = listener().await;
    let mut far = boxd.stream().await;
    let recording = tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let (mut from_client, mut from_box) = (Vec::new(), Vec::new());
        let (mut near_buffer, mut far_buffer) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
        loop {
            let passed = tokio::select! {
                read = near.read(&mut near_buffer) => {
                    let bytes = &near_buffer[..read.unwrap_or(0)];
                    from_client.extend_from_slice(bytes);
                    !bytes.is_empty() && far.write_all(bytes).await.is_ok()
                }
                read = far.read(&mut far_buffer) => {
                    let bytes = &far_buffer[..read.unwrap_or(0)];
                    from_box.extend_from_slice(bytes);
                    !bytes.is_empty() && near.write_all(bytes).await.is_ok()
                }
            };
            if !passed {
                return (from_client, from_box);
            }
        }
    });
    let stream = TcpStream::connect(between).await.unwrap();
    let client = connect(stream, &token()).await.unwrap();
    let outcome = run(&client, sh("echo the-output-of-the-command")).await;
    assert_eq!(outcome.text(), "the-output-of-the-command\n");
    drop(client);
    let (from_client, from_box) = timeout(DEADLINE, recording).await.unwrap().unwrap();
    assert!(!from_client.is_empty() && !from_box.is_empty());
    for text in [TOKEN, "authorization", "the-output-of-the-command"] {
        assert!(
            !contains(&from_client, text),
            "{text} was sent in the clear"
        );
        assert!(!contains(&from_box, text), "{text} was sent in the clear");
    }
}

#[tokio::test]
async fn call_without_tls_is_refused() {
    let (boxd, client) = TestBox::idle().await;
    let call = async {
        let mut plain = start_http2(boxd.stream().await, &token()).await?;
        let reply = plain.status(proto::StatusRequest {}).await;
        assert!(reply.is_err(), "boxd answered without TLS: {reply:?}");
        Ok::<_, agentbox_box_protocol::client::ConnectError>(())
    };
    // Either step may notice that boxd has closed the connection.
    let _ = timeout(DEADLINE, call).await.unwrap();

    let mut stream = boxd.stream().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    stream.write_all(preface).await.unwrap();
    let mut answer = Vec::new();
    match timeout(DEADLINE, stream.read_to_end(&mut answer)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        Err(_) => panic!("boxd keeps the connection open"),
    }
    // At most an alert of TLS (content type 21), and no frame of HTTP/2.
    assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
    assert_eq!(run(&client, start(&["true"])).await.code(), 0);
}

#[tokio::test]
async fn silent_connections_do_not_delay_a_client() {
    let (boxd, _client) = TestBox::idle().await;
    let mut silent = Vec::new();
    // A client that waits for the silent ones waits for their deadline, 5 s.
    repeat_until_below(Duration::from_secs(4), async || {
        for _ in 0..100 {
            silent.push(boxd.stream().await);
        }
        let begun = Instant::now();
        let client = boxd.client().await;
        assert_eq!(run(&client, start(&["true"])).await.code(), 0);
        begun.elapsed()
    })
    .await;
    // They end, although they send nothing.
    let mut byte = [0];
    for mut stream in silent {
        let ended = timeout(DEADLINE, stream.read(&mut byte)).await;
        assert!(!matches!(ended.unwrap(), Ok(1..)));
    }
}

#[tokio::test]
async fn new_connection_is_served_when_no_process_is_free() {
    // The kernel does not limit the number of root's processes.
    let user = [
        "setpriv",
        "--reuid=64322",
        "--regid=64322",
        "--clear-groups",
    ];
    let (boxd, _client) = TestBox::start(Setup {
        wrapper: user.map(str::to_owned).to_vec(),
        no_output_dir: true,
        ..Setup::default()
    })
    .await;
    let limited = Command::new(user[0])
        .args(&user[1..])
        .args([
            "prlimit",
            "--pid",
            &boxd.boxd_pid().to_string(),
            "--nproc=1:",
        ])
        .status()
        .unwrap();
    assert!(limited.success());
    for _ in 0..20 {
        let mut client = boxd.client().await;
        let status = client.status(proto::StatusRequest {}).await.unwrap();
        assert_eq!(status.into_inner().main, "idle");
    }
}
