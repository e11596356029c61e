//! Upgraded connections of which one side has ended.

use std::fmt::Write as _;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Served, upgrade};
use crate::support::{TIMEOUT, eventually};

/// Many chunks, which arrive while one side has ended.
const BYTES: usize = 4 << 20;

impl Served {
    async fn upgrade(&self, protocol: &str) -> TcpStream {
        let caller = &self.user.caller;
        let gateway = caller.host(0);
        let token = caller.token.as_ref().unwrap();
        let lines = [
            format!("Host: {gateway}"),
            format!("Authorization: Bearer {token}"),
        ];
        let path = format!("/api/v1/environments/{}/ports/8000/", self.id);
        upgrade(gateway, &path, protocol, &lines).await
    }
}

async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    let read = timeout(TIMEOUT, stream.read_to_end(&mut received)).await;
    read.expect("the end in time").unwrap();
    received
}

#[tokio::test]
async fn server_that_has_ended_its_side_gets_the_clients_bytes_to_their_end() {
    let served = Served::start().await;
    let mut expected = String::new();
    // Short ones, because the last bytes and the end of a connection follow each other at once.
    for length in std::iter::once(BYTES).chain([9000; 20]) {
        let mut stream = served.upgrade("first").await;
        assert_eq!(read_to_end(&mut stream).await, b"first\n");
        let bytes = vec![b'x'; length];
        let sent = timeout(TIMEOUT, stream.write_all(&bytes)).await;
        sent.expect("the server reads").unwrap();
        stream.shutdown().await.unwrap();
        writeln!(expected, "{length}").unwrap();
        eventually("the server has the end", async || {
            let received = served.user.caller.sh(&served.id, "cat /tmp/received").await;
            let lines = received["stdout"].as_str().unwrap().lines().count();
            (lines == expected.lines().count()).then(|| assert_eq!(received["stdout"], expected))
        })
        .await;
    }
}

#[tokio::test]
async fn client_that_has_ended_its_side_gets_the_servers_bytes_to_their_end() {
    let served = Served::start().await;
    let stream = served.upgrade("echo").await;
    let (mut reader, mut writer) = stream.into_split();
    let bytes: Vec<u8> = (0..BYTES).map(|number| (number % 251) as u8).collect();
    let sending = async {
        writer.write_all(&bytes).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let receiving = async {
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.unwrap();
        received
    };
    let both = async { tokio::join!(receiving, sending).0 };
    let received = timeout(TIMEOUT, both).await.expect("the end in time");
    assert!(received == bytes, "{} bytes", received.len());
}
