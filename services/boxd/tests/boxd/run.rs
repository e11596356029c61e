//! Commands: finding, starting and ending them.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use agentbox_box_protocol::client::BoxClient;
use agentbox_box_protocol::proto::{self, control_request, run_input, run_output};
use agentbox_testing::{assert_fastest_below, repeat_until_below};
use nix::sys::signal::Signal;
use tonic::Code;

use crate::support::{Session, Setup, TestBox, eventually, is_alive, read_text, run, sh, start};

#[tokio::test]
async fn each_kind_of_end_has_its_exit_code() {
    let (boxd, client) = TestBox::idle().await;
    std::fs::write(boxd.path("plain"), "no program").unwrap();
    for (command, code, start_error) in [
        (start(&["true"]), 0, ""),
        (sh("exit 3"), 3, ""),
        (sh("kill -9 $$"), 137, ""),
        (sh("kill -TERM $$"), 143, ""),
        (sh("kill -34 $$"), 128 + 34, ""),
        (start(&["no-such-program"]), 127, "not found"),
        (start(&["./no-such-program"]), 127, "not found"),
        (start(&["./plain"]), 126, "not executable"),
        (start(&["./output"]), 126, "is a directory"),
    ] {
        let outcome = run(&client, command.clone()).await;
        let exited = outcome.exited.unwrap();
        assert_eq!(exited.exit_code, code, "{command:?}");
        assert!(
            exited.start_error.contains(start_error),
            "{command:?}: {exited:?}"
        );
        assert_eq!(
            exited.start_error.is_empty(),
            start_error.is_empty(),
            "{exited:?}"
        );
    }
}

#[tokio::test]
async fn command_gets_directory_and_variables_without_boxd_variables() {
    let (boxd, client) = TestBox::idle().await;
    std::fs::create_dir(boxd.path("bin")).unwrap();
    std::fs::copy("/bin/true", boxd.path("bin/only-here")).unwrap();
    let command = proto::StartCommand {
        env: [
            ("A".into(), "b c".into()),
            ("PATH".into(), "/bin:/usr/bin".into()),
        ]
        .into(),
        working_dir: "/tmp".into(),
        ..sh("pwd; echo $A; env; ls /proc/self/fd | wc -l; cut -d' ' -f6 /proc/self/stat")
    };
    let outcome = run(&client, command).await;
    let text = outcome.text();
    assert!(text.starts_with("/tmp\nb c\n"), "{text}");
    assert!(!text.contains("AGENTBOX_BOXD"), "{text}");
    // 0, 1, 2, and the directory that ls reads: no descriptor is inherited.
    assert!(text.contains("\n4\n"), "{text}");
    let path = boxd.path("bin").to_str().unwrap().to_owned();
    let found = proto::StartCommand {
        env: [("PATH".into(), path)].into(),
        ..start(&["only-here"])
    };
    assert_eq!(run(&client, found).await.code(), 0);
    assert_eq!(run(&client, start(&["only-here"])).await.code(), 127);
}

#[tokio::test]
async fn empty_command_is_a_shell_without_a_terminal_too() {
    let (_boxd, client) = TestBox::idle().await;
    let shell = proto::StartCommand {
        stdin: true,
        ..start(&[])
    };
    let session = Session::start(&client, shell).await;
    let script = "echo out; echo err >&2; exit 4\n";
    session.send(run_input::Input::Stdin(script.into())).await;
    let outcome = session.finish().await;
    assert_eq!(
        (outcome.text(), outcome.stderr.as_slice()),
        ("out\n", &b"err\n"[..])
    );
    assert_eq!(outcome.code(), 4);
}

#[tokio::test]
async fn command_starts_with_default_signals_and_highest_oom_score() {
    let (_boxd, client) = TestBox::idle().await;
    let outcome = run(
        &client,
        sh("grep Sig /proc/self/status; cat /proc/self/oom_score_adj"),
    )
    .await;
    let text = outcome.text();
    assert!(text.contains("SigBlk:\t0000000000000000"), "{text}");
    assert!(text.contains("SigIgn:\t0000000000000000"), "{text}");
    assert!(text.ends_with("1000\n"), "{text}");
}

#[tokio::test]
async fn timeout_kills_process_group_and_answers_within_a_second() {
    let (_boxd, client) = TestBox::idle().await;
    let timeout = Duration::from_secs(1);
    repeat_until_below(Duration::from_secs(1), async || {
        let command = proto::StartCommand {
            timeout_ms: 1000,
            ..sh("trap '' TERM; sleep 1000 & echo $!; echo partial >&2; wait")
        };
        let began = Instant::now();
        let outcome = run(&client, command).await;
        let took = began.elapsed();
        assert!(took >= timeout, "{took:?}");
        let exited = outcome.exited.as_ref().unwrap();
        assert!(exited.timed_out);
        assert_eq!(exited.exit_code, 124);
        if outcome.stderr.is_empty() {
            // The shell was stalled for the whole timeout.
            return took;
        }
        assert_eq!(outcome.stderr, b"partial\n");
        let child: i32 = outcome.text().trim().parse().unwrap();
        eventually("the group is dead", async || !is_alive(child)).await;
        took - timeout
    })
    .await;
}

#[tokio::test]
async fn timeout_kills_jobs_of_shell_with_job_control() {
    let (_boxd, client) = TestBox::idle().await;
    let command = proto::StartCommand {
        timeout_ms: 300,
        ..sh("set -m; sleep 1000 & echo $!; wait")
    };
    let outcome = run(&client, command).await;
    let job: i32 = outcome.text().trim().parse().unwrap();
    eventually("the job is dead", async || !is_alive(job)).await;
}

#[tokio::test]
async fn background_child_with_open_pipe_does_not_delay_exit_and_survives() {
    let (_boxd, client) = TestBox::idle().await;
    repeat_until_below(Duration::from_secs(2), async || {
        let began = Instant::now();
        let outcome = run(&client, sh("sleep 1000 & echo $!")).await;
        let took = began.elapsed();
        assert_eq!(outcome.code(), 0);
        let child: i32 = outcome.text().trim().parse().unwrap();
        assert!(is_alive(child));
        end(child);
        took
    })
    .await;
}

#[tokio::test]
async fn noisy_background_child_does_not_delay_exit() {
    let (_boxd, client) = TestBox::idle().await;
    let began = Instant::now();
    let outcome = run(&client, sh("yes survivor & echo $! >&2")).await;
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(outcome.code(), 0);
    let survivor: i32 = String::from_utf8(outcome.stderr)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    // Far more than a pipe holds.
    let before = written_bytes(survivor);
    eventually("the survivor writes on", async || {
        written_bytes(survivor) > before + 1024 * 1024
    })
    .await;
    end(survivor);
}

#[tokio::test]
async fn background_process_lives_when_it_writes_to_stderr_after_unread_output() {
    let (_boxd, client) = TestBox::idle().await;
    // One stream has ended, the other one has a writer that is silent at first.
    let script = "(sleep 0.5; while echo tick >&2; do sleep 0.05; done) >/dev/null & echo $!";
    let ticking = left_in_background(&client, script).await;
    let before = written_bytes(ticking);
    eventually("it writes on", async || {
        written_bytes(ticking) > before + 50
    })
    .await;
    end(ticking);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn background_output_is_kept_for_128_pipes() {
    let (_boxd, client) = TestBox::idle().await;
    let noisy = "(while echo tick; do sleep 0.05; done) & echo $!";
    let first = left_in_background(&client, noisy).await;
    let mut silent = Vec::new();
    // Each of them, like the first one, holds two pipes.
    for _ in 1..64 {
        silent.push(left_in_background(&client, "sleep 1000 & echo $!").await);
    }
    let refused = left_in_background(&client, noisy).await;
    eventually("SIGPIPE ends the one over the limit", async || {
        !is_alive(refused)
    })
    .await;
    let before = written_bytes(first);
    eventually("the first one writes on", async || {
        written_bytes(first) > before
    })
    .await;
    // The end of one makes room for another one.
    end(silent.pop().unwrap());
    eventually("another one is kept", async || {
        let next = left_in_background(&client, noisy).await;
        let before = written_bytes(next);
        let deadline = Instant::now() + Duration::from_secs(1);
        while is_alive(next) && written_bytes(next) == before && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let kept = is_alive(next) && written_bytes(next) > before;
        end(next);
        kept
    })
    .await;
    for pid in silent.into_iter().chain([first]) {
        end(pid);
    }
}

/// Runs a script that leaves a process behind; a line of its output is the process's id.
async fn left_in_background(client: &BoxClient, script: &str) -> i32 {
    let outcome = run(client, sh(script)).await;
    let mut lines = outcome.text().lines();
    lines.find_map(|line| line.parse().ok()).unwrap()
}

/// The number of bytes that the process has passed to write(2); 0 when it has ended.
fn written_bytes(pid: i32) -> u64 {
    let io = read_text(Path::new(&format!("/proc/{pid}/io")));
    io.lines()
        .find_map(|line| line.strip_prefix("wchar: ")?.parse().ok())
        .unwrap_or(0)
}

/// Kills the process, if it is still there.
fn end(pid: i32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
}

#[tokio::test]
async fn command_without_reader_is_killed_after_grace() {
    let (boxd, _client) = TestBox::idle().await;
    repeat_until_below(Duration::from_secs(5), async || {
        let (cut, relay) = boxd.abortable_client().await;
        let pid_file = boxd.path("pid");
        let script = format!(
            "sleep 1000 & echo $! > {}; echo up; wait",
            pid_file.display()
        );
        let mut session = Session::start(&cut, sh(&script)).await;
        session.until("up").await;
        let child: i32 = read_text(&pid_file).trim().parse().unwrap();
        let began = Instant::now();
        relay.abort();
        eventually("the orphan is killed", async || !is_alive(child)).await;
        let took = began.elapsed();
        assert!(took > Duration::from_secs(2), "{took:?}");
        took
    })
    .await;
}

#[tokio::test]
async fn kill_and_signal_reach_command_with_blocked_stdin() {
    let (_boxd, mut client) = TestBox::idle().await;
    for control in [
        control_request::Control::Kill(proto::Empty {}),
        control_request::Control::Signal("TERM".into()),
    ] {
        let command = proto::StartCommand {
            stdin: true,
            ..start(&["sleep", "1000"])
        };
        let run_id = command.run_id.clone();
        let session = Session::start(&client, command).await;
        let inputs = session.inputs.clone();
        let flood = tokio::spawn(async move {
            let chunk = bytes::Bytes::from(vec![0; 32 * 1024]);
            let stdin = || proto::RunInput {
                input: Some(run_input::Input::Stdin(chunk.clone())),
            };
            while inputs.send(stdin()).await.is_ok() {}
        });
        let expected = match &control {
            control_request::Control::Kill(_) => 137,
            _ => 143,
        };
        let request = proto::ControlRequest {
            run_id,
            control: Some(control),
        };
        client.control(request).await.unwrap();
        assert_eq!(session.finish().await.code(), expected);
        flood.abort();
    }
    let unknown = proto::ControlRequest {
        run_id: "unknown".into(),
        control: None,
    };
    assert_eq!(
        client.control(unknown).await.unwrap_err().code(),
        Code::NotFound
    );
}

/// The words of a command that runs its arguments as a user of its own: the kernel does not
/// limit the number of root's processes.
fn as_other_user() -> Vec<String> {
    [
        "setpriv",
        "--reuid=64321",
        "--regid=64321",
        "--clear-groups",
    ]
    .map(str::to_owned)
    .to_vec()
}

#[tokio::test]
async fn command_fails_alone_when_no_process_or_descriptor_is_free() {
    let (boxd, client) = TestBox::start(Setup {
        wrapper: as_other_user(),
        no_output_dir: true,
        ..Setup::default()
    })
    .await;
    let boxd_pid = boxd.boxd_pid().to_string();
    // Sets boxd's soft limit, as any process of its user can.
    let limit = |option: &str| {
        let words = as_other_user();
        let mut prlimit = Command::new(&words[0]);
        prlimit.args(&words[1..]);
        prlimit.args(["prlimit", "--pid", &boxd_pid, option]);
        assert!(prlimit.status().unwrap().success(), "{option}");
    };
    for (lowered, restored, reason) in [
        ("--nproc=1:", "--nproc=500:", "process limit"),
        ("--nofile=3:", "--nofile=500:", "creating a pipe"),
    ] {
        // boxd has started no command yet, or has been idle: no thread waits to be used.
        limit(lowered);
        for _ in 0..3 {
            let exited = run(&client, start(&["true"])).await.exited.unwrap();
            assert_eq!(exited.exit_code, 126, "{lowered}: {exited:?}");
            assert!(exited.start_error.contains(reason), "{exited:?}");
        }
        limit(restored);
        assert_eq!(run(&client, start(&["true"])).await.code(), 0);
    }
}

#[tokio::test]
async fn run_id_is_used_once_and_ended_run_can_be_resumed() {
    let (_boxd, client) = TestBox::idle().await;
    let command = sh("echo out; exit 9");
    let first = run(&client, command.clone()).await;
    assert_eq!((first.text(), first.code()), ("out\n", 9));
    let again = Session::open(&client, run_input::Input::Start(command.clone())).await;
    assert_eq!(again.err().unwrap().code(), Code::AlreadyExists);
    let resumed = Session::resume(&client, &command.run_id, 0)
        .await
        .unwrap()
        .finish()
        .await;
    assert_eq!((resumed.text(), resumed.code()), ("out\n", 9));
    let beyond = Session::resume(&client, &command.run_id, 99).await;
    assert_eq!(beyond.err().unwrap().code(), Code::OutOfRange);
    let unknown = Session::resume(&client, "unknown", 0).await;
    assert_eq!(unknown.err().unwrap().code(), Code::NotFound);
}

#[tokio::test]
async fn newest_reader_replaces_older_one() {
    let (_boxd, client) = TestBox::idle().await;
    let command = proto::StartCommand {
        stdin: true,
        ..start(&["cat"])
    };
    let run_id = command.run_id.clone();
    let mut old = Session::start(&client, command).await;
    let new = Session::resume(&client, &run_id, 0).await.unwrap();
    let ended = loop {
        match old.next().await {
            Ok(Some(run_output::Output::Started(_))) => {}
            other => break other,
        }
    };
    assert_eq!(ended.unwrap_err().code(), Code::Aborted);
    new.send(run_input::Input::Stdin("mine".into())).await;
    new.send(run_input::Input::StdinEof(proto::Empty {})).await;
    assert_eq!(new.finish().await.text(), "mine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_limited_to_256_and_die_with_box() {
    let (mut boxd, client) = TestBox::idle().await;
    let (mut sessions, mut pids) = (Vec::new(), Vec::new());
    for _ in 0..256 {
        let mut session = Session::start(&client, start(&["sleep", "1000"])).await;
        let Some(run_output::Output::Started(started)) = session.next().await.unwrap() else {
            panic!("no start")
        };
        pids.push(i32::try_from(started.pid).unwrap());
        sessions.push(session);
    }
    let refused = Session::open(&client, run_input::Input::Start(start(&["true"]))).await;
    assert_eq!(refused.err().unwrap().code(), Code::ResourceExhausted);
    let freed = sessions.pop().unwrap();
    freed.send(run_input::Input::Kill(proto::Empty {})).await;
    eventually("another command can start", async || {
        let start = run_input::Input::Start(start(&["true"]));
        Session::open(&client, start).await.is_ok()
    })
    .await;
    boxd.signal(Signal::SIGTERM);
    assert_eq!(boxd.exit_code().await, Some(0));
    for pid in pids {
        assert!(!is_alive(pid), "{pid}");
    }
}

#[tokio::test]
async fn short_command_waits_for_no_timer() {
    let (_boxd, client) = TestBox::idle().await;
    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..100 {
        let began = Instant::now();
        assert_eq!(run(&client, start(&["true"])).await.code(), 0);
        took.push(began.elapsed());
    }
    assert_fastest_below(took, Duration::from_millis(50));
}
