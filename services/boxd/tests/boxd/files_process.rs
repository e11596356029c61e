//! The process of a file operation: its user, its limits and its end.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use agentbox_contracts::files::file_input::Input;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{FileInput, FileRequest, MakeDirectory, Read, Stat};
use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::files_support::{Call, atomic, children, failure, open_directory, perform, request};
use crate::support::{Setup, TestBox, eventually, is_alive};

#[tokio::test]
async fn kernel_decides_on_permissions_of_the_given_user() {
    let (boxd, client) = TestBox::idle().await;
    let directory = open_directory(&boxd, "shared");
    fs::write(directory.join("secret"), "x").unwrap();
    fs::set_permissions(directory.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    let by = |user: &str, request: FileRequest| FileRequest {
        user: user.to_owned(),
        ..request
    };
    let read = request(&directory.join("secret"), Operation::Read(Read::default()));
    for (user, word) in [
        ("12345", "permission_denied"),
        ("no-such-user", "user_not_found"),
        ("root:no-such-group", "user_not_found"),
    ] {
        assert_eq!(
            failure(&client, by(user, read.clone())).await,
            word,
            "{user}"
        );
    }
    assert!(perform(&client, by("root", read)).await.is_ok());
    let make = Operation::MakeDirectory(MakeDirectory::default());
    let make = request(&directory.join("own"), make);
    perform(&client, by("12345:23456", make)).await.unwrap();
    let found = fs::metadata(directory.join("own")).unwrap();
    assert_eq!((found.uid(), found.gid()), (12345, 23456));
}

#[tokio::test]
async fn other_user_is_refused_where_boxd_is_not_root() {
    let mut setup = Setup {
        no_output_dir: true,
        ..Default::default()
    };
    let words = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    setup.wrapper = words.split(' ').map(str::to_owned).collect();
    let (_boxd, client) = TestBox::start(setup).await;
    for (user, word) in [("root", "user_not_allowed"), ("0", "user_not_allowed")] {
        let request = FileRequest {
            user: user.to_owned(),
            ..request(Path::new("/"), Operation::Stat(Stat::default()))
        };
        assert_eq!(failure(&client, request).await, word, "{user}");
    }
    let own = FileRequest {
        user: "65534".to_owned(),
        ..request(Path::new("/"), Operation::Stat(Stat::default()))
    };
    assert!(perform(&client, own).await.is_ok());
}

#[tokio::test]
async fn operations_beyond_the_limit_are_refused_and_end_with_their_caller() {
    let (boxd, client) = TestBox::idle().await;
    fs::File::create(boxd.path("file"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let read = request(&boxd.path("file"), Operation::Read(Read::default()));
    let mut calls = Vec::new();
    for _ in 0..64 {
        let mut call = Call::open(&client, read.clone()).await.unwrap();
        assert!(matches!(call.next().await, Output::Opened(_)));
        calls.push(call);
    }
    let refused = Call::open(&client, read.clone()).await.err().unwrap();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let processes = children(boxd.boxd_pid());
    assert_eq!(processes.len(), 64);
    drop(calls);
    eventually("all processes end", async || {
        processes.iter().all(|pid| !is_alive(*pid))
    })
    .await;
    eventually("a place is free", async || {
        Call::open(&client, read.clone()).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn killed_process_is_reported_as_unavailable() {
    let (boxd, client) = TestBox::idle().await;
    fs::File::create(boxd.path("file"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let read = request(&boxd.path("file"), Operation::Read(Read::default()));
    let mut call = Call::open(&client, read).await.unwrap();
    assert!(matches!(call.next().await, Output::Opened(_)));
    for pid in children(boxd.boxd_pid()) {
        let pid = Pid::from_raw(pid);
        kill(pid, Signal::SIGKILL).unwrap();
    }
    let failed = call.finish().await.unwrap_err();
    assert_eq!(failed.code, "unavailable");
    assert!(failed.message.contains("killed"), "{}", failed.message);
}

#[tokio::test]
async fn operation_without_a_free_descriptor_is_unavailable() {
    let (boxd, client) = TestBox::idle().await;
    // Sets boxd's soft limit.
    let limit = |files: &str| {
        let mut prlimit = Command::new("prlimit");
        let pid = boxd.boxd_pid().to_string();
        prlimit.args(["--pid", &pid, &format!("--nofile={files}:")]);
        assert!(prlimit.status().unwrap().success(), "{files}");
    };
    let stat = request(boxd.dir.path(), Operation::Stat(Stat::default()));
    limit("3");
    assert_eq!(failure(&client, stat.clone()).await, "unavailable");
    limit("500");
    perform(&client, stat).await.unwrap();
}

#[tokio::test]
async fn shutdown_ends_operations_and_the_box() {
    let (mut boxd, client) = TestBox::idle().await;
    fs::File::create(boxd.path("file"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let read = request(&boxd.path("file"), Operation::Read(Read::default()));
    let mut call = Call::open(&client, read).await.unwrap();
    assert!(matches!(call.next().await, Output::Opened(_)));
    let processes = children(boxd.boxd_pid());
    boxd.signal(Signal::SIGTERM);
    assert_eq!(boxd.exit_code().await, Some(0));
    assert!(processes.iter().all(|pid| !is_alive(*pid)));
}

#[tokio::test]
async fn file_process_holds_neither_environment_nor_descriptors_of_boxd() {
    let (boxd, client) = TestBox::idle().await;
    let mut file = fs::File::create(boxd.path("file")).unwrap();
    file.write_all(&[1; 1024 * 1024]).unwrap();
    let read = request(&boxd.path("file"), Operation::Read(Read::default()));
    let mut call = Call::open(&client, read).await.unwrap();
    assert!(matches!(call.next().await, Output::Opened(_)));
    let [pid] = children(boxd.boxd_pid())[..] else {
        panic!("one process is expected");
    };
    assert!(fs::read(format!("/proc/{pid}/environ")).unwrap().is_empty());
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "1000");
    // Its streams twice (as they are, and as the caller's two ends), and the file.
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert!(open <= 6, "{open} descriptors");
}

#[tokio::test]
async fn input_that_is_too_large_is_refused() {
    let (boxd, client) = TestBox::idle().await;
    let write = request(&boxd.path("file"), Operation::Write(atomic()));
    let large = FileInput {
        input: Some(Input::Data(Bytes::from(vec![0; 100 * 1024]))),
    };
    let first = FileInput {
        input: Some(Input::Request(write)),
    };
    let inputs = ReceiverStream::new({
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        sender.send(first).await.unwrap();
        sender.send(large).await.unwrap();
        receiver
    });
    let mut outputs = client.clone().files(inputs).await.unwrap().into_inner();
    let status = loop {
        match outputs.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(!boxd.path("file").exists());
}
