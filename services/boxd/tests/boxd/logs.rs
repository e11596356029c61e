//! The main command's output.

use std::io::Read;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use agentbox_box_protocol::client::BoxClient;
use agentbox_box_protocol::output::{MAX_LINE_BYTES, read_newest, text};
use agentbox_box_protocol::proto::{self, LogsRequest, logs_reply};
use agentbox_box_protocol::termination::Termination;
use agentbox_contracts::logs::OutputStream;
use agentbox_testing::{assert_fastest_below, repeat_until_below};
use nix::sys::signal::Signal;

use crate::support::{Setup, TestBox, eventually, run, sh, shell};

/// All entries of a request, and the number of lost ones.
async fn read(client: &BoxClient, request: LogsRequest) -> (Vec<proto::LogEntry>, u64) {
    let mut replies = client.clone().logs(request).await.unwrap().into_inner();
    let (mut entries, mut lost) = (Vec::new(), 0);
    while let Some(reply) = replies.message().await.unwrap() {
        match reply.reply.unwrap() {
            logs_reply::Reply::Batch(batch) => entries.extend(batch.entries),
            logs_reply::Reply::LostEntries(count) => lost += count,
        }
    }
    (entries, lost)
}

fn sequences(entries: &[proto::LogEntry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.sequence).collect()
}

/// Waits until the log's newest line is `line`.
async fn written(client: &BoxClient, line: &str) {
    eventually("the line is logged", async || {
        let request = LogsRequest {
            tail: Some(1),
            ..Default::default()
        };
        let (entries, _) = read(client, request).await;
        entries
            .last()
            .is_some_and(|entry| entry.line == line.as_bytes())
    })
    .await;
}

#[tokio::test]
async fn output_and_termination_are_closed_to_other_users() {
    let (boxd, _client) = TestBox::main("sleep 1000").await;
    for (path, expected) in [
        (boxd.output_dir(), 0o700),
        (boxd.path("termination"), 0o600),
    ] {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, expected, "{}", path.display());
    }
}

#[tokio::test]
async fn log_lines_are_numbered_from_one_and_readable_from_any() {
    let (_boxd, client) =
        TestBox::main("for i in 1 2 3 4 5; do echo line $i; done; sleep 1000").await;
    written(&client, "line 5").await;
    let (all, lost) = read(&client, LogsRequest::default()).await;
    assert_eq!((sequences(&all), lost), (vec![1, 2, 3, 4, 5], 0));
    assert_eq!(all[2].line, b"line 3");
    assert_eq!(all[2].stream(), proto::Stream::Stdout);
    for (request, expected) in [
        (
            LogsRequest {
                from_sequence: 4,
                ..Default::default()
            },
            vec![4, 5],
        ),
        (
            LogsRequest {
                from_sequence: 6,
                ..Default::default()
            },
            vec![],
        ),
        (
            LogsRequest {
                tail: Some(2),
                ..Default::default()
            },
            vec![4, 5],
        ),
        (
            LogsRequest {
                tail: Some(0),
                ..Default::default()
            },
            vec![],
        ),
        (
            LogsRequest {
                tail: Some(99),
                ..Default::default()
            },
            vec![1, 2, 3, 4, 5],
        ),
        (
            LogsRequest {
                since_unix_nanos: Some(all[4].unix_nanos + 1),
                ..Default::default()
            },
            vec![],
        ),
        (
            LogsRequest {
                since_unix_nanos: Some(all[0].unix_nanos),
                ..Default::default()
            },
            vec![1, 2, 3, 4, 5],
        ),
    ] {
        assert_eq!(
            sequences(&read(&client, request).await.0),
            expected,
            "{request:?}"
        );
    }
}

#[tokio::test]
async fn follower_gets_lines_at_once_and_stream_end_before_box_ends() {
    let script =
        "echo first; while [ ! -e go ]; do sleep 0.02; done; echo last; printf unended >&2; exit 3";
    let (mut boxd, client) = TestBox::main(script).await;
    let request = LogsRequest {
        follow: true,
        ..Default::default()
    };
    let mut logs = client.clone().logs(request).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while let Some(reply) = logs.message().await.unwrap() {
        if let Some(logs_reply::Reply::Batch(batch)) = reply.reply {
            seen.extend(
                batch
                    .entries
                    .into_iter()
                    .map(|entry| String::from_utf8(entry.line).unwrap()),
            );
        }
        if seen == ["first"] {
            std::fs::write(boxd.path("go"), "").unwrap();
        }
    }
    seen.sort();
    assert_eq!(seen, ["first", "last", "unended"]);
    assert_eq!(boxd.exit_code().await, Some(3));
    let termination = Termination::read(&boxd.path("termination"))
        .unwrap()
        .unwrap();
    assert_eq!((termination.exit_code, termination.oom_killed), (3, false));
    assert!(termination.started_at <= termination.finished_at);
}

#[tokio::test]
async fn log_is_bounded_and_dropped_lines_are_counted() {
    let (boxd, client) = TestBox::start(Setup {
        main: shell("seq 1 100000; sleep 1000"),
        variables: vec![("AGENTBOX_BOXD_SEGMENT_BYTES".into(), "200000".into())],
        ..Setup::default()
    })
    .await;
    written(&client, "100000").await;
    let (kept, lost) = read(&client, LogsRequest::default()).await;
    let first = kept[0].sequence;
    assert!(first > 1);
    assert_eq!(lost, first - 1);
    assert_eq!(sequences(&kept), (first..=100_000).collect::<Vec<_>>());
    assert_eq!(kept[0].line, first.to_string().as_bytes());
    let (same, lost) = read(
        &client,
        LogsRequest {
            from_sequence: 2,
            ..Default::default()
        },
    )
    .await;
    assert_eq!((same[0].sequence, lost), (first, first - 2));
    for (tail, lost) in [(100_000, first - 1), (99_990, first - 11), (5, 0)] {
        let request = LogsRequest {
            tail: Some(tail),
            ..Default::default()
        };
        let (entries, reported) = read(&client, request).await;
        assert_eq!((entries.len() as u64 + reported, reported), (tail, lost));
    }
    // The lost entries are older than a kept one, which is older than asked.
    let since = LogsRequest {
        since_unix_nanos: Some(kept[kept.len() - 1].unix_nanos),
        ..Default::default()
    };
    let oldest = kept[0].unix_nanos;
    if oldest < kept[kept.len() - 1].unix_nanos {
        assert_eq!(read(&client, since).await.1, 0);
    }
    let size: u64 = std::fs::read_dir(boxd.output_dir())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(size <= 400_000, "{size}");
}

#[tokio::test]
async fn last_output_survives_boxd() {
    let (mut boxd, _client) =
        TestBox::main("echo out; echo err >&2; printf unended; sleep 1000").await;
    // The unfinished line is stored before readers get it.
    eventually("three are stored", async || {
        read_newest(&boxd.output_dir(), 1 << 20).unwrap().len() == 3
    })
    .await;
    boxd.signal(Signal::SIGKILL);
    boxd.process.wait().unwrap();
    let mut entries = read_newest(&boxd.output_dir(), 1 << 20).unwrap();
    entries.sort_by_key(|entry| entry.stream == OutputStream::Stderr);
    let lines: Vec<_> = entries
        .iter()
        .map(|entry| (entry.line.as_slice(), entry.partial))
        .collect();
    assert_eq!(
        lines,
        [(&b"out"[..], false), (b"unended", true), (b"err", false)]
    );
    assert_eq!(Termination::read(&boxd.path("termination")).unwrap(), None);
    // Ends the main command, which is in no PID namespace here.
    let own = format!("{}", boxd.dir.path().display());
    for entry in std::fs::read_dir("/proc").unwrap() {
        let path = entry.unwrap().path();
        if std::fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.starts_with(&own)) {
            let pid = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[tokio::test]
async fn foreign_bytes_in_output_directory_damage_only_own_log() {
    let script = "echo before; while [ ! -e go ]; do sleep 0.02; done; \
                  head -c 3000 /dev/zero > output/output-0; echo after; sleep 1000";
    let (boxd, client) = TestBox::main(script).await;
    written(&client, "before").await;
    std::fs::write(boxd.path("go"), "").unwrap();
    eventually("lost entries are reported", async || {
        let (_, lost) = read(
            &client,
            LogsRequest {
                from_sequence: 1,
                ..Default::default()
            },
        )
        .await;
        lost > 0
    })
    .await;
    let outcome = run(&client, sh("echo well")).await;
    assert_eq!(outcome.text(), "well\n");
    read_newest(&boxd.output_dir(), 1 << 20).unwrap();
}

#[tokio::test]
async fn long_line_is_split_into_partial_entries() {
    let (_boxd, client) =
        TestBox::main("head -c 40000 /dev/zero | tr '\\0' x; echo; echo next; sleep 1000").await;
    written(&client, "next").await;
    let (entries, _) = read(&client, LogsRequest::default()).await;
    let shape: Vec<_> = entries
        .iter()
        .map(|entry| (entry.line.len(), entry.partial))
        .collect();
    let rest = 40_000 - 2 * MAX_LINE_BYTES;
    assert_eq!(
        shape,
        [
            (MAX_LINE_BYTES, true),
            (MAX_LINE_BYTES, true),
            (rest, false),
            (4, false)
        ]
    );
    // The pieces of a line count as one line.
    for (tail, expected) in [(1, 1), (2, 4), (3, 4)] {
        let request = LogsRequest {
            tail: Some(tail),
            ..Default::default()
        };
        let (entries, lost) = read(&client, request).await;
        assert_eq!((entries.len(), lost), (expected, 0), "{tail}");
    }
}

#[tokio::test]
async fn unfinished_line_reaches_follower_within_a_second_and_continues() {
    repeat_until_below(Duration::from_secs(1), async || {
        let script = "printf 'continue? €'; while [ ! -e go ]; do sleep 0.02; done; echo yes; \
                      sleep 1000";
        let (boxd, client) = TestBox::main(script).await;
        let request = LogsRequest {
            follow: true,
            ..Default::default()
        };
        let mut logs = client.clone().logs(request).await.unwrap().into_inner();
        let began = Instant::now();
        let mut next = async || {
            let reply = logs.message().await.unwrap().unwrap();
            let Some(logs_reply::Reply::Batch(batch)) = reply.reply else {
                panic!("not a batch of entries");
            };
            let entry = &batch.entries[0];
            (
                String::from_utf8(entry.line.clone()).unwrap(),
                entry.partial,
            )
        };
        assert_eq!(next().await, ("continue? €".to_owned(), true));
        let took = began.elapsed();
        std::fs::write(boxd.path("go"), "").unwrap();
        assert_eq!(next().await, ("yes".to_owned(), false));
        took
    })
    .await;
}

/// Starts a box whose command writes far more than a pipe holds and ends, while nobody reads boxd's
/// stdout.
async fn box_with_unread_output() -> TestBox {
    let (boxd, client) = TestBox::start(Setup {
        main: shell("seq 1 100000; echo done; while [ ! -e go ]; do sleep 0.02; done"),
        stdout: Some(Stdio::piped()),
        ..Setup::default()
    })
    .await;
    written(&client, "done").await;
    std::fs::write(boxd.path("go"), "").unwrap();
    boxd
}

/// The entries that boxd's stdout has.
fn copied(stdout: &mut impl Read) -> Vec<(u64, String)> {
    let mut copied = Vec::new();
    stdout.read_to_end(&mut copied).unwrap();
    copied
        .split(|byte| *byte == b'\n')
        .filter_map(text::decode)
        .map(|(sequence, entry)| (sequence, String::from_utf8(entry.line.to_vec()).unwrap()))
        .collect()
}

#[tokio::test]
async fn entries_that_the_reader_of_stdout_takes_late_are_copied_at_the_end() {
    let mut boxd = box_with_unread_output().await;
    let mut stdout = boxd.process.stdout.take().unwrap();
    let reader = std::thread::spawn(move || copied(&mut stdout));
    assert_eq!(boxd.exit_code().await, Some(0));
    let copied = reader.join().unwrap();
    let expected: Vec<(u64, String)> = (1..=100_000)
        .map(|number| (number, number.to_string()))
        .chain([(100_001, "done".to_owned())])
        .collect();
    assert!(copied == expected, "{} {:?}", copied.len(), copied.last());
}

#[tokio::test]
async fn box_ends_although_nobody_reads_its_stdout() {
    let mut boxd = box_with_unread_output().await;
    assert_eq!(boxd.exit_code().await, Some(0));
    let copied = copied(&mut boxd.process.stdout.take().unwrap());
    assert_eq!(copied[0], (1, "1".to_owned()));
    assert!(
        copied.is_sorted() && copied.len() < 100_000,
        "{}",
        copied.len()
    );
}

#[tokio::test]
async fn box_whose_stdout_is_closed_ends_at_once() {
    let mut boxd = box_with_unread_output().await;
    let begun = Instant::now();
    drop(boxd.process.stdout.take());
    assert_eq!(boxd.exit_code().await, Some(0));
    // A reader that stalls would be waited for.
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn failed_main_command_is_reported_in_log_and_termination_file() {
    for (program, code) in [("no-such-program", 127), ("/tmp", 126)] {
        let mut boxd = TestBox::launch(Setup {
            main: vec![program.into()],
            ..Setup::default()
        });
        assert_eq!(boxd.exit_code().await, Some(code));
        let termination = Termination::read(&boxd.path("termination"))
            .unwrap()
            .unwrap();
        assert_eq!(termination.exit_code, code);
        assert!(
            termination.message.contains(program),
            "{}",
            termination.message
        );
        let entries = read_newest(&boxd.output_dir(), 1000).unwrap();
        assert!(String::from_utf8_lossy(&entries[0].line).contains(program));
    }
}

#[tokio::test]
async fn line_reaches_follower_at_once() {
    // It holds the pipe open for writing too: no line is lost, and it has no end.
    let (boxd, client) = TestBox::main("mkfifo pipe; exec cat 0<>pipe").await;
    let request = LogsRequest {
        follow: true,
        ..Default::default()
    };
    let mut logs = client.clone().logs(request).await.unwrap().into_inner();
    let fifo = boxd.path("pipe");
    eventually("the pipe exists", async || fifo.exists()).await;
    let mut times = Vec::new();
    for _ in 0..3 {
        let began = Instant::now();
        std::fs::write(&fifo, "now\n").unwrap();
        logs.message().await.unwrap().unwrap();
        times.push(began.elapsed());
    }
    assert_fastest_below(times, Duration::from_millis(500));
}
