//! Terminals.

use std::time::{Duration, Instant};

use agentbox_box_protocol::proto::{self, run_input};
use agentbox_testing::repeat_until_below;

use crate::support::{Session, TestBox, run, sh, start};

fn terminal(command: proto::StartCommand) -> proto::StartCommand {
    proto::StartCommand {
        tty: Some(proto::Resize {
            cols: 101,
            rows: 37,
        }),
        ..command
    }
}

fn keys(text: &str) -> run_input::Input {
    run_input::Input::Stdin(text.to_owned().into())
}

#[tokio::test]
async fn terminal_has_given_size_and_term_variable() {
    let (_boxd, client) = TestBox::idle().await;
    let outcome = run(
        &client,
        terminal(sh("stty size; echo $TERM; tty; echo err >&2; exit 4")),
    )
    .await;
    let text = outcome.text();
    assert!(
        text.starts_with("37 101\r\nxterm-256color\r\n/dev/pts/"),
        "{text:?}"
    );
    assert!(text.ends_with("err\r\n"), "{text:?}");
    assert_eq!(outcome.code(), 4);
}

#[tokio::test]
async fn resize_reaches_command() {
    let (_boxd, client) = TestBox::idle().await;
    let script = "trap 'stty size; exit 0' WINCH; echo up; while :; do sleep 0.05; done";
    let mut session = Session::start(&client, terminal(sh(script))).await;
    session.until("up").await;
    session
        .send(run_input::Input::Resize(proto::Resize {
            cols: 55,
            rows: 11,
        }))
        .await;
    session.until("11 55").await;
    assert_eq!(session.finish().await.code(), 0);
}

#[tokio::test]
async fn ctrl_c_and_signal_reach_foreground_job_but_not_shell() {
    let (_boxd, client) = TestBox::idle().await;
    let mut session = Session::start(&client, terminal(start(&[]))).await;
    for interrupt in [keys("\u{3}"), run_input::Input::Signal("SIGINT".into())] {
        let job = "sh -c 'trap \"exit 33\" INT; echo u\"\"p; while :; do sleep 0.05; done'";
        session.send(keys(&format!("{job}; echo code=$?\n"))).await;
        session.until("up\r\n").await;
        session.send(interrupt).await;
        session.until("code=33").await;
    }
    session.send(keys("exit 7\n")).await;
    assert_eq!(session.finish().await.code(), 7);
}

#[tokio::test]
async fn stdin_eof_ends_terminal_reader() {
    let (_boxd, client) = TestBox::idle().await;
    let mut session = Session::start(&client, terminal(start(&["cat"]))).await;
    session.send(keys("hello\n")).await;
    session.until("hello\r\nhello\r\n").await;
    session
        .send(run_input::Input::StdinEof(proto::Empty {}))
        .await;
    assert_eq!(session.finish().await.code(), 0);
}

#[tokio::test]
async fn stdin_eof_ends_input_after_unfinished_line() {
    let (_boxd, client) = TestBox::idle().await;
    let session = Session::start(&client, terminal(start(&["wc", "-c"]))).await;
    session.send(keys("abc")).await;
    session
        .send(run_input::Input::StdinEof(proto::Empty {}))
        .await;
    let outcome = session.finish().await;
    assert!(outcome.text().trim_end().ends_with('3'), "{outcome:?}");
    assert_eq!(outcome.code(), 0);
}

#[tokio::test]
async fn stdin_eof_ends_input_of_one_reader_only() {
    let (_boxd, client) = TestBox::idle().await;
    for first in ["one\n", "one"] {
        let command = terminal(sh("cat; echo next; read x; echo got=$x"));
        let mut session = Session::start(&client, command).await;
        session.send(keys(first)).await;
        session
            .send(run_input::Input::StdinEof(proto::Empty {}))
            .await;
        session.until("next\r\n").await;
        session.send(keys("two\n")).await;
        session.until("got=two").await;
        assert_eq!(session.finish().await.code(), 0);
    }
}

#[tokio::test]
async fn terminal_output_of_short_command_is_complete() {
    let (_boxd, client) = TestBox::idle().await;
    for _ in 0..20 {
        let outcome = run(&client, terminal(start(&["seq", "1", "20000"]))).await;
        let expected: String = (1..=20_000).map(|number| format!("{number}\r\n")).collect();
        assert!(
            outcome.text() == expected,
            "{} of {} bytes",
            outcome.stdout.len(),
            expected.len()
        );
    }
}

#[tokio::test]
async fn background_job_does_not_delay_terminal_exit() {
    let (_boxd, client) = TestBox::idle().await;
    repeat_until_below(Duration::from_secs(3), async || {
        let began = Instant::now();
        let outcome = run(&client, terminal(sh("trap '' HUP; sleep 30 & exit 5"))).await;
        assert_eq!(outcome.code(), 5);
        began.elapsed()
    })
    .await;
}
