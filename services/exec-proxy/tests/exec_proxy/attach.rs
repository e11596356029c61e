//! Attach sessions.

use std::time::Duration;

use agentbox_contracts::exec::{Exit, FromBox, OpenKind, TerminalSize, ToBox};
use bytes::Bytes;

use crate::support::gateway::{ClientSession, attach};
use crate::support::{System, TestBox, eventually, is_alive};

const MEBIBYTE: usize = 1024 * 1024;

/// Reads until the output contains `text`.
async fn read_until(session: &mut ClientSession, text: &str) -> String {
    let mut seen = Vec::new();
    let read = async {
        loop {
            match session.recv().await.unwrap() {
                Some(FromBox::Stdout(bytes) | FromBox::Stderr(bytes)) => seen.extend(bytes),
                Some(FromBox::Started(_)) => {}
                other => panic!("before {text:?}: {other:?}"),
            }
            if String::from_utf8_lossy(&seen).contains(text) {
                return;
            }
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .is_ok();
    let seen = String::from_utf8_lossy(&seen).into_owned();
    assert!(in_time, "no {text:?} in {seen:?}");
    seen
}

async fn read_exit(session: &mut ClientSession) -> (Vec<u8>, Exit) {
    let mut seen = Vec::new();
    loop {
        match session.recv().await.unwrap() {
            Some(FromBox::Stdout(bytes) | FromBox::Stderr(bytes)) => seen.extend(bytes),
            Some(FromBox::Exit(exit)) => return (seen, exit),
            other => panic!("before the exit: {other:?}"),
        }
    }
}

async fn type_in(session: &mut ClientSession, text: &str) {
    session
        .send(ToBox::Data(Bytes::copy_from_slice(text.as_bytes())))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn terminal_has_given_size_and_can_be_resized() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let request = attach(&["sh"], Some((100, 40)));
    let id = request.id.clone();
    let mut session = system
        .gateway
        .open(&inside, OpenKind::Attach(request))
        .await
        .unwrap();
    assert_eq!(session.recv().await.unwrap(), Some(FromBox::Started(id)));
    type_in(&mut session, "stty size\n").await;
    read_until(&mut session, "40 100").await;
    session
        .send(ToBox::Resize(TerminalSize { cols: 33, rows: 11 }))
        .await
        .unwrap();
    type_in(&mut session, "stty size\n").await;
    read_until(&mut session, "11 33").await;
    type_in(&mut session, "exit 6\n").await;
    assert_eq!(read_exit(&mut session).await.1.exit_code, 6);
    assert_eq!(session.recv().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn typed_interrupt_reaches_foreground_command() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let script = "trap 'echo interrupted; exit 9' INT; echo ready; while :; do sleep 0.05; done";
    let request = attach(&["sh", "-c", script], Some((80, 24)));
    let mut session = system
        .gateway
        .open(&inside, OpenKind::Attach(request))
        .await
        .unwrap();
    read_until(&mut session, "ready").await;
    type_in(&mut session, "\u{3}").await;
    let (seen, exit) = read_exit(&mut session).await;
    let seen = String::from_utf8_lossy(&seen);
    assert!(seen.contains("interrupted"), "{seen}");
    assert_eq!(exit.exit_code, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn signal_reaches_command_and_shows_in_exit_code() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let request = attach(&["sh", "-c", "echo ready; exec sleep 600"], None);
    let mut session = system
        .gateway
        .open(&inside, OpenKind::Attach(request))
        .await
        .unwrap();
    read_until(&mut session, "ready").await;
    session.send(ToBox::Signal("SIGINT".into())).await.unwrap();
    assert_eq!(read_exit(&mut session).await.1.exit_code, 130);
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_eof_reaches_command() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let request = attach(&["sh", "-c", "cat; echo over >&2"], None);
    let mut session = system
        .gateway
        .open(&inside, OpenKind::Attach(request))
        .await
        .unwrap();
    session.recv().await.unwrap();
    type_in(&mut session, "some").await;
    session.send(ToBox::End).await.unwrap();
    let (seen, exit) = read_exit(&mut session).await;
    assert_eq!(seen, b"someover\n");
    assert_eq!(exit.exit_code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_start_prints_reason_before_exit() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let request = attach(&["no-such-program"], None);
    let mut session = system
        .gateway
        .open(&inside, OpenKind::Attach(request))
        .await
        .unwrap();
    session.recv().await.unwrap();
    let (seen, exit) = read_exit(&mut session).await;
    assert_eq!(exit.exit_code, 127);
    assert!(String::from_utf8_lossy(&seen).contains("no-such-program"));
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_session_kills_command() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let request = attach(
        &["sh", "-c", "echo $$ > pid; exec sleep 600"],
        Some((80, 24)),
    );
    let session = system
        .gateway
        .open(&inside, OpenKind::Attach(request))
        .await
        .unwrap();
    let pid = inside.number("pid").await;
    drop(session);
    eventually("the command is dead", Duration::from_secs(5), async || {
        !is_alive(pid)
    })
    .await;
}

/// Prints 100 MiB of 32-bit counters: a wrong, repeated or missing byte is visible.
const COUNTERS: &str = r#"import sys, array
out = sys.stdout.buffer
for start in range(0, 100 * 1024 * 1024 // 4, 65536):
    out.write(array.array("I", range(start, start + 65536)).tobytes())
"#;

#[tokio::test(flavor = "multi_thread")]
async fn hundred_mebibytes_arrive_exactly_with_flat_memory() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    let request = attach(&["python3", "-c", COUNTERS], None);
    let mut session = system
        .gateway
        .open(&inside, OpenKind::Attach(request))
        .await
        .unwrap();
    session.recv().await.unwrap();
    let before = system.proxy.peak_memory();
    let began = std::time::Instant::now();
    let mut expected: u32 = 0;
    let mut rest: Vec<u8> = Vec::new();
    let exit = loop {
        match session.recv().await.unwrap() {
            Some(FromBox::Stdout(bytes)) => {
                rest.extend_from_slice(&bytes);
                let whole = rest.len() / 4 * 4;
                for word in rest[..whole].chunks_exact(4) {
                    assert_eq!(u32::from_le_bytes(word.try_into().unwrap()), expected);
                    expected += 1;
                }
                rest.drain(..whole);
            }
            Some(FromBox::Exit(exit)) => break exit,
            other => panic!("{other:?}"),
        }
    };
    let grown = system.proxy.peak_memory() - before;
    println!(
        "100 MiB in {:?}, peak memory grew by {} KiB",
        began.elapsed(),
        grown / 1024
    );
    assert_eq!((exit.exit_code, expected as usize), (0, 25 * MEBIBYTE));
    assert!(grown < 16 * MEBIBYTE as u64, "{grown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_reader_stops_command_without_memory_growth() {
    let system = System::start().await;
    let inside = TestBox::idle().await;
    // Reports its progress after each mebibyte.
    let script = "i=0; while [ $i -lt 200 ]; do head -c 1048576 /dev/zero; i=$((i+1)); \
                  echo $i > progress.new; mv progress.new progress; done";
    let request = attach(&["sh", "-c", script], None);
    let mut session = system
        .gateway
        .open(&inside, OpenKind::Attach(request))
        .await
        .unwrap();
    session.recv().await.unwrap();
    let before = system.proxy.peak_memory();
    // Blocked: no progress for a second.
    let mut last = (0, std::time::Instant::now());
    eventually(
        "the command is blocked",
        Duration::from_secs(20),
        async || {
            let now = std::fs::read_to_string(inside.path("progress"))
                .ok()
                .and_then(|text| text.trim().parse::<u32>().ok())
                .unwrap_or(0);
            if now != last.0 {
                last = (now, std::time::Instant::now());
            }
            last.1.elapsed() > Duration::from_secs(1)
        },
    )
    .await;
    let grown = system.proxy.peak_memory() - before;
    println!(
        "blocked after {} MiB, peak memory grew by {} KiB",
        last.0,
        grown / 1024
    );
    assert!(last.0 < 16, "{} MiB were buffered", last.0);
    assert!(grown < 8 * MEBIBYTE as u64, "{grown}");
    let (seen, exit) = read_exit(&mut session).await;
    assert_eq!((seen.len(), exit.exit_code), (200 * MEBIBYTE, 0));
}
