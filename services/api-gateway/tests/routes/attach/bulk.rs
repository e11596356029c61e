//! Much output: whole, in order, and held nowhere.

use std::time::Duration;

use serde_json::json;

use crate::support::boxes::idle;
use crate::support::socket::{Frame, Socket};
use crate::support::system::{resident, shared};

const TOTAL: usize = 100 * 1024 * 1024;
const MAY_GROW: u64 = 40 * 1024 * 1024;
/// `yes` with this line, which is no divisor of any frame's length.
const LINE: &[u8] = b"0123456789abcdef-0123456789abcdef-0123456789abcdef-0123456789abcdef\n";

/// What the gateways and exec-proxies hold now.
async fn residents() -> Vec<(&'static str, usize, u64)> {
    let system = shared().await;
    ["api-gateway", "exec-proxy"]
        .into_iter()
        .flat_map(|service| [0, 1].map(|index| (service, index, resident(system, service, index))))
        .collect()
}

fn query(total: usize) -> String {
    let line = std::str::from_utf8(LINE.trim_ascii_end()).unwrap();
    format!(
        "tty=false&binary=true&command=sh&command=-c&command=yes%20{line}%20%7C%20head%20-c%20{total}"
    )
}

#[tokio::test]
async fn a_hundred_mebibytes_arrive_byte_for_byte_and_memory_stays_flat() {
    let idle = idle().await;
    let before = residents().await;
    let mut socket = Socket::open(&idle.user.caller, &idle.id, &query(TOTAL)).await;
    socket.ready().await;
    let mut seen = 0;
    let expected = LINE.repeat(2048);
    let exit = loop {
        match socket.next().await {
            Frame::Binary(piece) => {
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
    assert_eq!(seen, TOTAL);
    assert_eq!(exit, json!({"type": "exit", "exit_code": 0}));
    for ((service, index, before), (.., after)) in before.into_iter().zip(residents().await) {
        let grown = after.saturating_sub(before);
        assert!(grown < MAY_GROW, "{service}-{index} grew by {grown} bytes");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_command_and_memory_stays_flat() {
    let idle = idle().await;
    let before = residents().await;
    let mut socket = Socket::open(&idle.user.caller, &idle.id, &query(TOTAL)).await;
    socket.ready().await;
    // Nothing to wait for: that nothing happens is the claim.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for ((service, index, before), (.., after)) in before.into_iter().zip(residents().await) {
        let grown = after.saturating_sub(before);
        assert!(grown < MAY_GROW, "{service}-{index} grew by {grown} bytes");
    }
    // And goes on where it stopped.
    let mut seen = 0;
    while seen < 10 * 1024 * 1024 {
        match socket.next().await {
            Frame::Binary(piece) => seen += piece.len(),
            other => panic!("{other:?}"),
        }
    }
}
