//! Output and input bytes: exact, bounded, resumable.

use std::fmt::Write as _;
use std::time::Duration;

use agentbox_box_protocol::proto::{self, run_input, run_output};
use bytes::Bytes;

use crate::support::{DEADLINE, Session, TestBox, run, sh, start};

const MIB: usize = 1024 * 1024;

/// Reads the output of `seq` without keeping all of it.
struct Sequence {
    next: u64,
    pending: String,
}

impl Sequence {
    fn new() -> Self {
        Self {
            next: 1,
            pending: String::new(),
        }
    }

    fn expect(&mut self, bytes: &[u8]) {
        while self.pending.len() < bytes.len() {
            writeln!(self.pending, "{}", self.next).unwrap();
            self.next += 1;
        }
        assert!(
            self.pending.as_bytes()[..bytes.len()] == *bytes,
            "wrong bytes near {}",
            self.next
        );
        self.pending.drain(..bytes.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundred_mib_of_output_arrive_exactly_with_flat_memory() {
    let (boxd, client) = TestBox::idle().await;
    let mut session = Session::start(&client, start(&["seq", "1", "13000000"])).await;
    let (mut expected, mut total, mut early) = (Sequence::new(), 0, 0);
    loop {
        match session.next().await.unwrap().unwrap() {
            run_output::Output::Stdout(bytes) => {
                expected.expect(&bytes);
                total += bytes.len();
                if early == 0 && total > 10 * MIB {
                    early = boxd.resident_kib();
                }
            }
            run_output::Output::Exited(exited) => {
                assert_eq!(exited.exit_code, 0);
                break;
            }
            _ => {}
        }
    }
    assert!(total > 100 * MIB, "{total}");
    let late = boxd.resident_kib();
    assert!(
        late < early + 4 * 1024,
        "{early} KiB early, {late} KiB late"
    );
}

#[tokio::test]
async fn binary_output_arrives_exactly_on_both_streams() {
    let (boxd, client) = TestBox::idle().await;
    let data: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    std::fs::write(boxd.path("data"), &data).unwrap();
    let outcome = run(&client, sh("cat data; cat data >&2")).await;
    assert!(outcome.stdout == data && outcome.stderr == data);
}

#[tokio::test]
async fn stalled_reader_blocks_command_within_bounded_memory() {
    let (boxd, client) = TestBox::idle().await;
    let before = boxd.resident_kib();
    let mut session =
        Session::start(&client, start(&["head", "-c", "50000000", "/dev/zero"])).await;
    let Some(run_output::Output::Started(started)) = session.next().await.unwrap() else {
        panic!("no start")
    };
    let written = || {
        let io = std::fs::read_to_string(format!("/proc/{}/io", started.pid)).unwrap();
        let line = io.lines().find(|line| line.starts_with("wchar:")).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<usize>()
            .unwrap()
    };
    // Blocked: no progress for a while, far from the end.
    let (mut last, mut same) = (0, 0);
    let deadline = std::time::Instant::now() + DEADLINE;
    while same < 20 {
        assert!(
            std::time::Instant::now() < deadline,
            "the command does not block"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = written();
        same = if now == last && now > 0 { same + 1 } else { 0 };
        last = now;
    }
    assert!(last < 4 * MIB, "{last} bytes were taken from the command");
    let grown = boxd.resident_kib() - before;
    assert!(grown < 8 * 1024, "{grown} KiB");
    assert_eq!(session.finish().await.stdout.len(), 50_000_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_streams_do_not_block_others_on_same_connection() {
    let (_boxd, client) = TestBox::idle().await;
    let mut stalled = Vec::new();
    for _ in 0..40 {
        stalled.push(Session::start(&client, start(&["head", "-c", "5000000", "/dev/zero"])).await);
    }
    let outcome = run(&client, start(&["head", "-c", "5000000", "/dev/zero"])).await;
    assert_eq!(outcome.stdout.len(), 5_000_000);
    for session in stalled {
        assert_eq!(session.finish().await.stdout.len(), 5_000_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_mib_of_stdin_round_trip_through_cat() {
    let (_boxd, client) = TestBox::idle().await;
    let data: Vec<u8> = (0..5 * MIB).map(|at| (at * 31 % 251) as u8).collect();
    let session = Session::start(
        &client,
        proto::StartCommand {
            stdin: true,
            ..start(&["cat"])
        },
    )
    .await;
    let inputs = session.inputs.clone();
    let chunks: Vec<Bytes> = data.chunks(32 * 1024).map(Bytes::copy_from_slice).collect();
    let feeding = tokio::spawn(async move {
        for chunk in chunks {
            let input = Some(run_input::Input::Stdin(chunk));
            inputs.send(proto::RunInput { input }).await.unwrap();
        }
        let input = Some(run_input::Input::StdinEof(proto::Empty {}));
        inputs.send(proto::RunInput { input }).await.unwrap();
    });
    let outcome = session.finish().await;
    feeding.await.unwrap();
    assert!(outcome.stdout == data, "{} bytes", outcome.stdout.len());
    assert_eq!(outcome.code(), 0);
}

#[tokio::test]
async fn unrequested_stdin_is_dev_null_and_unread_stdin_does_not_block() {
    let (_boxd, client) = TestBox::idle().await;
    assert_eq!(run(&client, start(&["cat"])).await.code(), 0);
    let session = Session::start(
        &client,
        proto::StartCommand {
            stdin: true,
            ..sh("exec <&-; echo gone; read x")
        },
    )
    .await;
    for _ in 0..4 {
        let _ = session.inputs.try_send(proto::RunInput {
            input: Some(run_input::Input::Stdin(vec![0; 500_000].into())),
        });
    }
    assert_eq!(session.finish().await.text(), "gone\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reader_resumes_after_lost_connection_without_loss_or_repeat() {
    let (boxd, client) = TestBox::idle().await;
    let (cut, relay) = boxd.abortable_client().await;
    let command = proto::StartCommand {
        acks: true,
        ..start(&["seq", "1", "1000000"])
    };
    let run_id = command.run_id.clone();
    let mut expected = Sequence::new();
    let mut session = Session::start(&cut, command).await;
    let mut total = 0;
    while total < 2 * MIB {
        if let Some(run_output::Output::Stdout(bytes)) = session.next().await.unwrap() {
            expected.expect(&bytes);
            total += bytes.len();
            session.send(run_input::Input::Ack(total as u64)).await;
        }
    }
    relay.abort();
    while session.next().await.is_ok_and(|output| output.is_some()) {
        // Bytes in transit are dropped, as in a lost connection.
    }
    let mut resumed = Session::resume(&client, &run_id, total as u64)
        .await
        .unwrap();
    loop {
        match resumed.next().await.unwrap().unwrap() {
            run_output::Output::Stdout(bytes) => {
                expected.expect(&bytes);
                total += bytes.len();
                resumed.send(run_input::Input::Ack(total as u64)).await;
            }
            run_output::Output::Exited(exited) => {
                assert_eq!(exited.exit_code, 0);
                break;
            }
            run_output::Output::Gap(gap) => panic!("{gap:?}"),
            _ => {}
        }
    }
    assert_eq!(expected.next, 1_000_001);
}

#[tokio::test]
async fn resume_before_kept_output_reports_gap() {
    let (_boxd, client) = TestBox::idle().await;
    let command = sh("head -c 3000000 /dev/zero; echo end; sleep 1000");
    let run_id = command.run_id.clone();
    let mut session = Session::start(&client, command).await;
    session.until("end\n").await;
    let mut resumed = Session::resume(&client, &run_id, 0).await.unwrap();
    let mut lost = None;
    let mut kept = 0;
    while lost.unwrap_or(0) + kept < 3_000_004 {
        match resumed.next().await.unwrap().unwrap() {
            run_output::Output::Gap(gap) => {
                assert_eq!((lost, kept), (None, 0));
                lost = Some(gap.lost_bytes);
            }
            run_output::Output::Stdout(bytes) => kept += bytes.len() as u64,
            other => assert!(matches!(other, run_output::Output::Started(_)), "{other:?}"),
        }
    }
    assert!(
        lost.unwrap() > 1_000_000 && kept <= MIB as u64,
        "{lost:?} {kept}"
    );
}
