//! The ends of a session and their close codes.

use std::time::Duration;

use bytes::Bytes;
use futures::SinkExt;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::boxes::{idle, kill_box_running, script, small};
use crate::support::caller::new_user;
use crate::support::socket::Socket;
use crate::support::{eventually, eventually_some};

fn sleeping(mark: &str) -> String {
    format!("tty=false&command=sh&command=-c&command=sleep%20{mark}%3B%20true")
}

#[tokio::test]
async fn client_that_closes_kills_its_command_within_five_seconds() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let mark = format!("9{:05}", rand::random::<u16>());
    let text = format!("sleep {mark}");
    let mut socket = Socket::open(caller, &idle.id, &sleeping(&mark)).await;
    socket.ready().await;
    eventually("it runs", async || {
        caller.has_process(&idle.id, &text).await.then_some(())
    })
    .await;
    socket.socket.close(None).await.unwrap();
    drop(socket);
    eventually_some("it is killed", Duration::from_secs(5), async || {
        (!caller.has_process(&idle.id, &text).await).then_some(())
    })
    .await;
}

#[tokio::test]
async fn lost_connection_is_resumed_by_its_session_id_on_each_gateway() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    let cat = "tty=false&binary=false&command=cat";
    let mut socket = Socket::open(caller, &idle.id, cat).await;
    let id = socket.ready().await;
    let mut echoed = 0;
    for gateway in 0..caller.gateways() {
        let line = format!("line {gateway}\n");
        socket.stdin(&line).await;
        assert_eq!(socket.read_until("\n").await, line);
        echoed += line.len();
        // The connection ends without a close frame.
        drop(socket);
        let query = format!("session_id={id}&from={echoed}-0");
        let resumed = Socket::open_on(caller, gateway, &idle.id, &query).await;
        socket = resumed.unwrap();
        let ready = socket.message().await;
        assert_eq!(ready["session_id"], id.as_str(), "{ready}");
        assert_eq!(ready["offsets"], json!({"stdout": echoed, "stderr": 0}));
        assert_eq!(ready["has_input"], true, "{ready}");
    }
    socket.send(json!({"type": "eof"})).await;
    let output = socket.read_to_end().await;
    assert_eq!(output.stdout, "");
    assert_eq!(output.exit.unwrap()["exit_code"], 0);
}

#[tokio::test]
async fn intended_end_closes_with_4409_without_an_exit() {
    let user = new_user().await;
    let forced = user.caller.create_running(&small()).await;
    let deleted = user.caller.create_running(&small()).await;
    let expired = user.caller.create_running(&small()).await;
    let through = script("while [ ! -e /tmp/go ]; do sleep 0.1; done");
    let through = user.caller.create_running(&through).await;
    let mut sockets = Vec::new();
    for (id, reason) in [
        (&forced, "DELETED"),
        (&deleted, "DELETED"),
        (&expired, "EXPIRED"),
        (&through, "EXITED"),
    ] {
        for gateway in 0..user.caller.gateways() {
            let socket = Socket::open_on(&user.caller, gateway, id, &sleeping("600")).await;
            let mut socket = socket.unwrap();
            socket.ready().await;
            sockets.push((socket, reason));
        }
    }
    for path in [format!("{forced}?force=true"), deleted] {
        let path = format!("/environments/{path}");
        user.caller.delete(&path).await.expect_status(204);
    }
    let path = format!("/environments/{expired}");
    let over = json!({"timeout": 1});
    user.caller.patch(&path, &over).await.expect_status(200);
    user.caller.sh(&through, "touch /tmp/go").await;
    for (mut socket, reason) in sockets {
        let output = socket.read_to_end().await;
        assert_eq!(
            output.close,
            (4409, "environment_ended".to_owned()),
            "{reason}: {output:?}"
        );
        assert!(output.exit.is_none(), "{output:?}");
        assert!(
            output.error.as_ref().unwrap().contains(reason),
            "{output:?}"
        );
    }
}

#[tokio::test]
async fn lost_box_closes_with_4502_without_an_exit() {
    let user = new_user().await;
    let id = user.caller.create_running(&small()).await;
    let mark = format!("7{:06}", rand::random::<u16>());
    let mut sockets = Vec::new();
    for gateway in 0..user.caller.gateways() {
        let socket = Socket::open_on(&user.caller, gateway, &id, &sleeping(&mark)).await;
        let mut socket = socket.unwrap();
        socket.ready().await;
        sockets.push(socket);
    }
    let text = format!("sleep {mark}");
    eventually("it runs", async || {
        user.caller.has_process(&id, &text).await.then_some(())
    })
    .await;
    kill_box_running(&text);
    for mut socket in sockets {
        let output = socket.read_to_end().await;
        assert_eq!(output.close.0, 4502, "{output:?}");
        assert!(
            output.exit.is_none() && output.error.is_some(),
            "{output:?}"
        );
    }
}

#[tokio::test]
async fn message_above_the_largest_closes_with_1009() {
    let idle = idle().await;
    let count = "tty=false&command=wc&command=-c";
    let mut socket = Socket::open(&idle.user.caller, &idle.id, count).await;
    let message = |length: usize| Message::Binary(Bytes::from(vec![b'x'; length]));
    socket.socket.send(message(256 * 1024)).await.unwrap();
    socket.send(json!({"type": "eof"})).await;
    assert_eq!(socket.read_to_end().await.stdout.trim(), "262144");
    let mut socket = Socket::open(&idle.user.caller, &idle.id, count).await;
    socket.ready().await;
    // The server may close before it has read all of it.
    let _ = socket.socket.send(message(256 * 1024 + 1)).await;
    let output = socket.read_to_end().await;
    assert_eq!(output.close.0, 1009, "{output:?}");
}

#[tokio::test]
async fn exit_is_the_last_message_after_all_output() {
    let idle = idle().await;
    for _ in 0..5 {
        let query = "tty=false&command=sh&command=-c&command=seq%202000%3B%20seq%202000%20%3E%262";
        let mut socket = Socket::open(&idle.user.caller, &idle.id, query).await;
        let output = socket.read_to_end().await;
        let expected: String = (1..=2000).map(|n| format!("{n}\n")).collect();
        assert_eq!(output.stdout, expected);
        assert_eq!(output.stderr, expected);
        assert_eq!(output.close, (1000, "the command has ended".to_owned()));
    }
}

/// The memory of the box is used up by a session, while commands and another session follow.
#[tokio::test]
async fn memory_bomb_of_a_session_leaves_commands_and_sessions_an_end() {
    let user = new_user().await;
    let caller = &user.caller;
    let id = caller.create_running(&small()).await;
    let text = "tail /dev/zero; echo fu''ll; while :; do tail /dev/zero; done";
    let mut bomb = Socket::open(caller, &id, "command=sh").await;
    bomb.ready().await;
    bomb.stdin(&format!("{text}\n")).await;
    bomb.read_until("full").await;
    // The kernel may choose the other command, or leave it no memory to start.
    let is_honest = |code: &serde_json::Value| [json!(0), json!(126), json!(137)].contains(code);
    for _ in 0..2 {
        let reply = caller.exec(&id, &json!({"command": ["true"]})).await;
        assert!(is_honest(&reply["exit_code"]), "{reply}");
        let mut other = Socket::open(caller, &id, "tty=false&command=true").await;
        let output = other.read_to_end().await;
        let exit = output.exit.as_ref();
        assert!(
            exit.is_some_and(|exit| is_honest(&exit["exit_code"])),
            "{output:?}"
        );
    }
    drop(bomb);
    eventually("a command after the bomb succeeds", async || {
        let reply = caller.exec(&id, &json!({"command": ["true"]})).await;
        (reply["exit_code"] == 0).then_some(())
    })
    .await;
    caller.wait_for_status(&id, "running").await;
}
