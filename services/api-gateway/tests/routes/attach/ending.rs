//! How a session ends, and the close code that says so.

use std::time::Duration;

use bytes::Bytes;
use futures::SinkExt;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::support::boxes::{idle, small};
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
async fn a_box_that_goes_is_said_with_4502_and_no_exit_is_made_up() {
    let user = someone().await;
    let id = user.caller.running(&small()).await;
    let mut socket = Socket::open(&user.caller, &id, &sleeping("600")).await;
    socket.ready().await;
    user.caller
        .delete(&format!("/environments/{id}?force=true"))
        .await
        .is(204);
    let said = socket.rest().await;
    assert_eq!(said.close.0, 4502, "{said:?}");
    assert!(said.exit.is_none() && said.error.is_some(), "{said:?}");
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
