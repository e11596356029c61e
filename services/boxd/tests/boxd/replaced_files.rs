//! Files of the box that root in it has replaced, and that boxd opens by their paths.

use std::path::Path;

use agentbox_box_protocol::client::BoxClient;
use agentbox_box_protocol::proto;
use agentbox_box_protocol::termination::Termination;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{FileRequest, Stat};
use nix::sys::signal::Signal;

use crate::files_support::{atomic, perform, put, request};
use crate::support::{Setup, TestBox, run, sh};

/// A box whose root may mount.
async fn with_own_mounts() -> (TestBox, BoxClient) {
    let wrapper = "unshare --mount --propagation private";
    let setup = Setup {
        wrapper: wrapper.split(' ').map(str::to_owned).collect(),
        ..Setup::default()
    };
    TestBox::start(setup).await
}

/// Puts a FIFO, which nobody opens, into the place of a file.
async fn replace_by_fifo(client: &BoxClient, path: &str) {
    let script = format!("mkfifo -m 666 fifo; mount --bind fifo {path} && test -p {path}");
    assert_eq!(run(client, sh(&script)).await.code(), 0, "{path}");
}

#[tokio::test]
async fn fifo_in_place_of_the_null_device_blocks_no_start() {
    let (boxd, client) = with_own_mounts().await;
    replace_by_fifo(&client, "/dev/null").await;
    let outcome = run(&client, sh("cat; stat -L -c %t:%T /proc/self/fd/0")).await;
    assert_eq!(outcome.text(), "1:3\n");
    put(&client, &boxd.path("file"), atomic(), b"content")
        .await
        .unwrap();
}

#[tokio::test]
async fn fifo_in_place_of_the_accounts_blocks_no_operation() {
    let (_boxd, client) = with_own_mounts().await;
    replace_by_fifo(&client, "/etc/passwd").await;
    let stat = FileRequest {
        user: "12345".to_owned(),
        ..request(Path::new("/"), Operation::Stat(Stat::default()))
    };
    perform(&client, stat).await.unwrap();
}

#[tokio::test]
async fn fifo_in_place_of_the_terminal_device_is_named_in_the_error() {
    let (_boxd, client) = with_own_mounts().await;
    replace_by_fifo(&client, "/dev/ptmx").await;
    let size = proto::Resize { cols: 80, rows: 24 };
    let command = proto::StartCommand {
        tty: Some(size),
        ..sh("true")
    };
    let exited = run(&client, command).await.exited.unwrap();
    assert_eq!(exited.exit_code, 126);
    let error = exited.start_error;
    assert!(error.contains("/dev/ptmx"), "{error}");
    assert_eq!(run(&client, sh("true")).await.code(), 0);
}

#[tokio::test]
async fn fifo_in_place_of_the_new_termination_file_does_not_block_the_end() {
    let (mut boxd, client) = TestBox::idle().await;
    let made = run(&client, sh("mkfifo termination.new")).await;
    assert_eq!(made.code(), 0);
    boxd.signal(Signal::SIGTERM);
    assert_eq!(boxd.exit_code().await, Some(0));
    let ended = Termination::read(&boxd.path("termination")).unwrap();
    assert_eq!(ended.map(|ended| ended.exit_code), Some(0));
}
