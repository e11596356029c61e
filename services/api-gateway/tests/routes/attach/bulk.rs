//! Large output: complete, in order, and with constant memory.

use std::time::Duration;

use serde_json::json;

use crate::support::boxes::idle;
use crate::support::socket::{Frame, Socket};
use crate::support::system::{resident_bytes, shared};

const TOTAL_BYTES: usize = 100 * 1024 * 1024;
const MAX_GROWTH_BYTES: u64 = 40 * 1024 * 1024;
/// The line that `yes` repeats; no frame length is a multiple of its length.
const LINE: &[u8] = b"0123456789abcdef-0123456789abcdef-0123456789abcdef-0123456789abcdef\n";

/// The resident memory of the gateways and exec-proxies.
async fn resident_bytes_of_replicas() -> Vec<(&'static str, usize, u64)> {
    let system = shared().await;
    ["api-gateway", "exec-proxy"]
        .into_iter()
        .flat_map(|service| {
            [0, 1].map(|index| (service, index, resident_bytes(system, service, index)))
        })
        .collect()
}

fn query(total: usize) -> String {
    let line = std::str::from_utf8(LINE.trim_ascii_end()).unwrap();
    format!(
        "tty=false&binary=true&command=sh&command=-c&command=yes%20{line}%20%7C%20head%20-c%20{total}"
    )
}

#[tokio::test]
async fn hundred_mebibytes_arrive_unchanged_with_constant_memory() {
    let idle = idle().await;
    let before = resident_bytes_of_replicas().await;
    let mut socket = Socket::open(&idle.user.caller, &idle.id, &query(TOTAL_BYTES)).await;
    socket.ready().await;
    let mut seen = 0;
    let expected = LINE.repeat(2048);
    let exit = loop {
        match socket.next().await {
            Frame::Binary(frame) => {
                assert_eq!(frame[0], 1, "stdout");
                let piece = &frame[1..];
                let from = seen % LINE.len();
                assert!(
                    piece.len() <= expected.len() - LINE.len()
                        && piece[..] == expected[from..from + piece.len()],
                    "other bytes after {seen}"
                );
                seen += piece.len();
            }
            Frame::Json(message) => break message,
            closed @ Frame::Closed(..) => panic!("{closed:?} after {seen}"),
        }
    };
    assert_eq!(seen, TOTAL_BYTES);
    assert_eq!(exit, json!({"type": "exit", "exit_code": 0}));
    for ((service, index, before), (.., after)) in
        before.into_iter().zip(resident_bytes_of_replicas().await)
    {
        let grown = after.saturating_sub(before);
        assert!(
            grown < MAX_GROWTH_BYTES,
            "{service}-{index} grew by {grown} bytes"
        );
    }
}

#[tokio::test]
async fn client_that_does_not_read_blocks_the_command_with_constant_memory() {
    let idle = idle().await;
    let before = resident_bytes_of_replicas().await;
    let mut socket = Socket::open(&idle.user.caller, &idle.id, &query(TOTAL_BYTES)).await;
    socket.ready().await;
    // A fixed time, because the claim is that nothing happens.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for ((service, index, before), (.., after)) in
        before.into_iter().zip(resident_bytes_of_replicas().await)
    {
        let grown = after.saturating_sub(before);
        assert!(
            grown < MAX_GROWTH_BYTES,
            "{service}-{index} grew by {grown} bytes"
        );
    }
    // It continues where it stopped.
    let mut seen = 0;
    while seen < 10 * 1024 * 1024 {
        match socket.next().await {
            Frame::Binary(frame) => seen += frame.len() - 1,
            other => panic!("{other:?}"),
        }
    }
}
