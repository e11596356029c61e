//! How a session ends, and the close code that says so.

use std::time::Duration;

use bytes::Bytes;
use futures::SinkExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::boxes::{idle, script, small};
use crate::support::caller::someone;
use crate::support::socket::Socket;
use crate::support::{eventually, within};

fn sleeping(mark: &str) -> String {
    format!("tty=false&command=sh&command=-c&command=sleep%20{mark}%3B%20true")
}

#[tokio::test]
async fn a_client_that_goes_takes_its_command_with_it_within_five_seconds() {
    let idle = idle().await;
    let caller = &idle.user.caller;
    for polite in [true, false] {
        let mark = format!("9{:05}", rand::random::<u16>());
        let text = format!("sleep {mark}");
        let mut socket = Socket::open(caller, &idle.id, &sleeping(&mark)).await;
        socket.ready().await;
        eventually("it runs", async || {
            caller.runs(&idle.id, &text).await.then_some(())
        })
        .await;
        if polite {
            socket.socket.close(None).await.unwrap();
        }
        drop(socket);
        within(Duration::from_secs(5), "it is killed", async || {
            (!caller.runs(&idle.id, &text).await).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn an_environment_that_ends_as_it_was_to_is_said_with_4409_and_no_exit_is_made_up() {
    let user = someone().await;
    let forced = user.caller.running(&small()).await;
    let deleted = user.caller.running(&small()).await;
    let expired = user.caller.running(&small()).await;
    let through = script("while [ ! -e /tmp/go ]; do sleep 0.1; done");
    let through = user.caller.running(&through).await;
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
        user.caller.delete(&path).await.is(204);
    }
    let path = format!("/environments/{expired}");
    let over = json!({"timeout": 1});
    user.caller.patch(&path, &over).await.is(200);
    user.caller.sh(&through, "touch /tmp/go").await;
    for (mut socket, reason) in sockets {
        let said = socket.rest().await;
        assert_eq!(said.close.0, 4409, "{reason}: {said:?}");
        assert!(said.exit.is_none(), "{said:?}");
        assert!(said.error.as_ref().unwrap().contains(reason), "{said:?}");
    }
}

/// Kills the box that runs a process with this text in its command line.
fn kill_box_of(text: &str) {
    let status = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/status"));
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let pids = || {
        let entries = std::fs::read_dir("/proc").unwrap();
        entries.filter_map(|entry| entry.unwrap().file_name().into_string().ok())
    };
    let runs = |pid: &String| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line)
            .replace('\0', " ")
            .contains(text)
    };
    let inside = pids().find(runs).expect("a process of the box");
    let wanted = namespace(&inside);
    let first = pids()
        .filter(|pid| pid.parse::<u32>().is_ok() && namespace(pid) == wanted)
        .find(|pid| {
            // Its last number is that in the box.
            let status = status(pid).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            numbers.is_some_and(|numbers| numbers.split_whitespace().last() == Some("1"))
        })
        .expect("the first process of the box");
    let pid = Pid::from_raw(first.parse().unwrap());
    assert_ne!(wanted, namespace("self"), "no box");
    kill(pid, Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_box_that_is_lost_is_said_with_4502_and_no_exit_is_made_up() {
    let user = someone().await;
    let id = user.caller.running(&small()).await;
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
        user.caller.runs(&id, &text).await.then_some(())
    })
    .await;
    kill_box_of(&text);
    for mut socket in sockets {
        let said = socket.rest().await;
        assert_eq!(said.close.0, 4502, "{said:?}");
        assert!(said.exit.is_none() && said.error.is_some(), "{said:?}");
    }
}

#[tokio::test]
async fn a_message_over_a_mebibyte_closes_with_1009_and_one_of_it_passes() {
    let idle = idle().await;
    let count = "tty=false&command=wc&command=-c";
    let mut socket = Socket::open(&idle.user.caller, &idle.id, count).await;
    let message = |length: usize| Message::Binary(Bytes::from(vec![b'x'; length]));
    socket.socket.send(message(1024 * 1024)).await.unwrap();
    socket.send(json!({"type": "eof"})).await;
    assert_eq!(socket.rest().await.stdout.trim(), "1048576");
    let mut socket = Socket::open(&idle.user.caller, &idle.id, count).await;
    socket.ready().await;
    // The server may close before it has read all of it.
    let _ = socket.socket.send(message(1024 * 1024 + 1)).await;
    let said = socket.rest().await;
    assert_eq!(said.close.0, 1009, "{said:?}");
}

#[tokio::test]
async fn the_exit_comes_after_all_output_and_is_the_last_message() {
    let idle = idle().await;
    for _ in 0..5 {
        let query = "tty=false&command=sh&command=-c&command=seq%202000%3B%20seq%202000%20%3E%262";
        let mut socket = Socket::open(&idle.user.caller, &idle.id, query).await;
        let said = socket.rest().await;
        let expected: String = (1..=2000).map(|n| format!("{n}\n")).collect();
        assert_eq!(said.stdout, expected);
        assert_eq!(said.stderr, expected);
        assert_eq!(said.close, (1000, "the command has ended".to_owned()));
    }
}
