//! The journal of executions, read after boxd was killed.

use agentbox_box_protocol::executions::read;
use agentbox_box_protocol::variables;
use agentbox_contracts::executions::{ExecutionStart, ExecutionStatus};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::calls::{command, delete, pairs, run, script, start, status};
use crate::support::{Setup, TestBox};

#[tokio::test]
async fn executions_of_a_killed_box_are_read_from_its_journal() {
    let (mut boxd, client) = TestBox::idle().await;
    let ended = run(&client, script("echo out; exit 3")).await;
    let purged = run(&client, command(&["true"])).await;
    delete(&client, &purged.id, true).await.unwrap();
    let failed = run(&client, command(&["no-such-program"])).await;
    let wanted = ExecutionStart {
        name: "lost".into(),
        labels: pairs(&[("team", "a")]),
        ..command(&["sleep", "1000"])
    };
    let running = start(&client, wanted).await.unwrap();
    boxd.process.kill().unwrap();
    boxd.process.wait().unwrap();
    let found = read(&boxd.output_dir());
    assert_eq!(found, [ended, failed, running.clone()]);
    assert_eq!(status(&found[2]), ExecutionStatus::Running);
    // It is not in a PID namespace here.
    let pid = Pid::from_raw(i32::try_from(running.pid.unwrap()).unwrap());
    let _ = kill(pid, Signal::SIGKILL);
}

#[tokio::test]
async fn executions_work_without_a_journal() {
    let dir = tempfile::tempdir().unwrap();
    // boxd can neither remove this directory nor create its file.
    std::fs::create_dir_all(dir.path().join("executions/taken")).unwrap();
    let directory = dir.path().to_str().unwrap().to_owned();
    for variables in [vec![], vec![(variables::OUTPUT_DIR.to_owned(), directory)]] {
        let (_boxd, client) = TestBox::start(Setup {
            variables,
            no_output_dir: true,
            ..Setup::default()
        })
        .await;
        assert_eq!(run(&client, script("exit 3")).await.exit_code, Some(3));
    }
    assert!(read(dir.path()).is_empty());
}
