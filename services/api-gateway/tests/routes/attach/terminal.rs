//! The data of a session: a terminal or two streams, and the client's messages.

use bytes::Bytes;
use futures::SinkExt;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::boxes::idle;
use crate::support::socket::{Frame, Socket};

async fn open(query: &str) -> Socket {
    let idle = idle().await;
    Socket::open(&idle.user.caller, &idle.id, query).await
}

const CAT: &str = "tty=false&command=cat";

#[tokio::test]
async fn default_command_is_a_shell_on_a_terminal_of_default_size() {
    let mut socket = open("").await;
    assert!(socket.ready().await.starts_with("exec-"));
    socket.stdin("tty; stty size; echo mar''k\n").await;
    let seen = socket.read_until("mark").await;
    assert!(seen.contains("/dev/pts/"), "{seen}");
    assert!(seen.contains("24 80"), "{seen}");
    socket.stdin("exit 5\n").await;
    let output = socket.read_to_end().await;
    assert_eq!(output.exit, Some(json!({"type": "exit", "exit_code": 5})));
    assert_eq!(output.close.0, 1000);
}

#[tokio::test]
async fn terminal_has_the_requested_size_and_resizes() {
    let mut socket = open("tty=true&cols=132&rows=50").await;
    socket.ready().await;
    socket.stdin("stty size; echo mar''k\n").await;
    assert!(socket.read_until("mark").await.contains("50 132"));
    socket
        .send(json!({"type": "resize", "cols": 100, "rows": 30}))
        .await;
    // Messages are processed in order: the size is set before this is read.
    socket.stdin("stty size; echo agai''n\n").await;
    let seen = socket.read_until("again").await;
    assert!(seen.contains("30 100"), "{seen}");
    socket.stdin("exit\n").await;
    socket.read_to_end().await;
}

#[tokio::test]
async fn session_without_terminal_separates_streams_and_accepts_eof() {
    let mut socket =
        open("tty=false&command=sh&command=-c&command=cat;%20echo%20err%20%3E%262;%20exit%203")
            .await;
    socket.ready().await;
    socket.stdin("in\n").await;
    socket.send(json!({"type": "eof"})).await;
    let output = socket.read_to_end().await;
    assert_eq!(
        (output.stdout.as_str(), output.stderr.as_str()),
        ("in\n", "err\n")
    );
    assert_eq!(output.exit.unwrap()["exit_code"], 3);
}

#[tokio::test]
async fn session_without_terminal_and_command_is_a_shell() {
    let mut socket = open("tty=false").await;
    socket.ready().await;
    socket.stdin("echo out; echo err >&2; exit 4\n").await;
    let output = socket.read_to_end().await;
    assert_eq!(
        (output.stdout.as_str(), output.stderr.as_str()),
        ("out\n", "err\n")
    );
    assert_eq!(output.exit.unwrap()["exit_code"], 4);
}

#[tokio::test]
async fn command_gets_the_variables_and_the_working_directory() {
    let query = "tty=false&env=A%3Db%3Dc&working_dir=/tmp&command=sh&command=-c\
                 &command=pwd;%20echo%20%24A";
    let mut socket = open(query).await;
    assert_eq!(socket.read_to_end().await.stdout, "/tmp\nb=c\n");
}

#[tokio::test]
async fn eof_ends_the_input_of_a_terminal_after_an_unfinished_line() {
    let mut socket = open("command=wc&command=-c").await;
    socket.ready().await;
    socket.stdin("abc").await;
    socket.send(json!({"type": "eof"})).await;
    let output = socket.read_to_end().await;
    assert!(output.stdout.trim_end().ends_with('3'), "{output:?}");
    assert_eq!(output.exit.unwrap()["exit_code"], 0);
}

#[tokio::test]
async fn signal_is_accepted_with_and_without_prefix() {
    for (name, code) in [("SIGINT", 130), ("TERM", 143), ("KILL", 137)] {
        let mut socket = open("tty=false&command=sleep&command=600").await;
        socket.ready().await;
        socket.send(json!({"type": "signal", "signal": name})).await;
        let output = socket.read_to_end().await;
        assert_eq!(output.exit.unwrap()["exit_code"], code, "{name}");
    }
}

#[tokio::test]
async fn control_c_interrupts_the_foreground_process() {
    let mut socket = open("").await;
    socket.ready().await;
    // Waits for the foreground process: the shell may not have started it yet.
    socket
        .stdin("sh -c \"echo star''ted; exec sleep 600\"\n")
        .await;
    socket.read_until("started").await;
    socket.stdin("\u{3}").await;
    socket.stdin("echo $?-aft''er\n").await;
    let seen = socket.read_until("-after").await;
    assert!(seen.contains("130-after"), "{seen}");
}

#[tokio::test]
async fn binary_frames_carry_stdin_and_output() {
    let bytes: Vec<u8> = (0..=255).collect();
    let mut socket = open(&format!("{CAT}&binary=true")).await;
    socket.ready().await;
    socket
        .socket
        .send(Message::Binary(bytes.clone().into()))
        .await
        .unwrap();
    socket.send(json!({"type": "eof"})).await;
    let mut seen = Vec::new();
    let exit = loop {
        match socket.next().await {
            Frame::Binary(frame) => {
                assert_eq!(frame[0], 1, "stdout");
                seen.extend_from_slice(&frame[1..]);
            }
            Frame::Json(message) => break message,
            closed @ Frame::Closed(..) => panic!("{closed:?}"),
        }
    };
    assert_eq!(seen, bytes);
    assert_eq!(exit, json!({"type": "exit", "exit_code": 0}));

    let mut socket = open(CAT).await;
    socket.ready().await;
    socket
        .socket
        .send(Message::Binary(Bytes::from_static(b"a\xffb")))
        .await
        .unwrap();
    socket.send(json!({"type": "eof"})).await;
    assert_eq!(socket.read_to_end().await.stdout, "a\u{fffd}b");
}

#[tokio::test]
async fn binary_frame_names_its_stream() {
    let query = "tty=false&binary=true&command=sh&command=-c&command=echo%20err%20%3E%262";
    let mut socket = open(query).await;
    socket.ready().await;
    assert_eq!(
        socket.next().await,
        Frame::Binary(Bytes::from_static(b"\x02err\n"))
    );
}

#[tokio::test]
async fn character_split_between_frames_is_kept() {
    let mut socket = open(CAT).await;
    socket.ready().await;
    for piece in [&b"\xe2\x82"[..], b"\xac\n"] {
        socket
            .socket
            .send(Message::Binary(Bytes::copy_from_slice(piece)))
            .await
            .unwrap();
    }
    assert_eq!(socket.read_until("\n").await, "\u{20ac}\n");
}

#[tokio::test]
async fn invalid_message_returns_an_error_and_the_session_continues() {
    let mut socket = open(CAT).await;
    socket.ready().await;
    for (bad, named) in [
        ("ls", "JSON"),
        (r#"{"type":"exit"}"#, "exit"),
        (r#"{"type":"stdin"}"#, "data"),
        (r#"{"type":"stdin","data":"a","x":1}"#, "x"),
        (r#"{"type":"resize","cols":0,"rows":1}"#, "cols"),
        (r#"{"type":"signal","signal":"SIGFOO"}"#, "signal: "),
    ] {
        socket.socket.send(Message::text(bad)).await.unwrap();
        let answer = socket.message().await;
        assert_eq!(answer["type"], "error", "{bad}: {answer}");
        let message = answer["message"].as_str().unwrap();
        assert!(message.contains(named), "{bad}: {message}");
    }
    socket.stdin("still here\n").await;
    assert_eq!(socket.read_until("\n").await, "still here\n");
}

#[tokio::test]
async fn invalid_query_returns_400_naming_the_parameter() {
    let idle = idle().await;
    for (query, field) in [
        ("cols=0", "cols"),
        ("rows=x", "rows"),
        ("tty=maybe", "tty"),
        ("binary=1", "binary"),
        ("shell=bash", "shell"),
        ("tty=true&tty=false", "tty"),
        ("command=", "command[0]"),
        ("env=A", "env: "),
        ("env=A%3D1&env=A%3D2", "env.A: "),
        ("working_dir=tmp", "working_dir: "),
    ] {
        let refused = Socket::open_on(&idle.user.caller, 0, &idle.id, query).await;
        let (status, body) = refused.err().unwrap();
        assert_eq!(status, 400, "{query}: {body}");
        assert_eq!(body["error"], "validation_failed");
        assert!(
            body["message"].as_str().unwrap().starts_with(field),
            "{body}"
        );
    }
    // A request without a handshake.
    let path = format!("/environments/{}/attach", idle.id);
    idle.user
        .caller
        .get(&path)
        .await
        .expect_error(400, "bad_request");
}

#[tokio::test]
async fn missing_program_exits_with_127() {
    let mut socket = open("tty=false&command=no-such-program").await;
    let output = socket.read_to_end().await;
    assert_eq!(
        output.exit.as_ref().map(|exit| &exit["exit_code"]),
        Some(&json!(127))
    );
    assert_eq!(output.close.0, 1000);
}
