use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use agentbox_contracts::executions::{Execution, ExecutionStatus};

use super::*;

fn execution(id: &str, status: ExecutionStatus) -> Execution {
    Execution {
        id: id.to_owned(),
        command: vec!["sleep".into(), "1".into()],
        status: status.into(),
        ..Default::default()
    }
}

fn ids(executions: &[Execution]) -> Vec<&str> {
    executions.iter().map(|found| found.id.as_str()).collect()
}

#[test]
fn newest_record_of_each_execution_is_read_in_the_order_of_starts() {
    let directory = tempfile::tempdir().unwrap();
    assert!(read(directory.path()).is_empty());
    let mut journal = Journal::create(directory.path()).unwrap();
    for id in ["exec-a", "exec-b", "exec-c"] {
        journal
            .record(&execution(id, ExecutionStatus::Running))
            .unwrap();
    }
    let mut ended = execution("exec-a", ExecutionStatus::Exited);
    ended.exit_code = Some(3);
    journal.record(&ended).unwrap();
    journal.forget("exec-b").unwrap();
    let found = read(directory.path());
    assert_eq!(
        found,
        [ended, execution("exec-c", ExecutionStatus::Running)]
    );
    let mode = fs::metadata(directory.path().join(FILE_NAME)).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    // A box that starts again begins with an empty journal.
    drop(Journal::create(directory.path()).unwrap());
    assert!(read(directory.path()).is_empty());
}

#[test]
fn torn_record_is_ignored_and_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    let mut journal = Journal::create(directory.path()).unwrap();
    journal
        .record(&execution("exec-a", ExecutionStatus::Running))
        .unwrap();
    let complete = fs::read(&path).unwrap();
    journal
        .record(&execution("exec-b", ExecutionStatus::Running))
        .unwrap();
    let both = fs::read(&path).unwrap();
    for length in complete.len()..both.len() {
        fs::write(&path, &both[..length]).unwrap();
        assert_eq!(ids(&read(directory.path())), ["exec-a"], "{length}");
    }
    fs::write(&path, &both).unwrap();
    assert_eq!(ids(&read(directory.path())), ["exec-a", "exec-b"]);
}

#[test]
fn full_journal_keeps_running_executions_and_the_newest_ended_ones() {
    let directory = tempfile::tempdir().unwrap();
    let mut journal = Journal::create(directory.path()).unwrap();
    let mut running = execution("exec-running", ExecutionStatus::Running);
    running.created_unix_nanos = 1;
    journal.record(&running).unwrap();
    let count = 5000;
    for number in 2..=count {
        let mut ended = execution(&format!("exec-{number}"), ExecutionStatus::Exited);
        ended.command.push("x".repeat(100));
        ended.created_unix_nanos = number;
        journal.record(&ended).unwrap();
    }
    let size = fs::metadata(directory.path().join(FILE_NAME))
        .unwrap()
        .len();
    assert!(size <= MAX_BYTES, "{size}");
    assert!(!directory.path().join(NEW_FILE_NAME).exists());
    let found = read(directory.path());
    assert_eq!(found.last().unwrap().id, format!("exec-{count}"));
    let created: Vec<i64> = found.iter().map(|e| e.created_unix_nanos).collect();
    assert!(created.is_sorted(), "{created:?}");
    assert_eq!(found[0].id, "exec-running");
    assert!(found.len() > 500, "{}", found.len());
}

#[test]
fn running_executions_that_fill_the_journal_are_an_error_for_later_ones() {
    let directory = tempfile::tempdir().unwrap();
    let mut journal = Journal::create(directory.path()).unwrap();
    let refused = (0..256).find_map(|number| {
        let mut running = execution(&format!("exec-{number}"), ExecutionStatus::Running);
        running.command = vec!["x".repeat(4000)];
        journal.record(&running).err()
    });
    // The newest ones are kept, so that each new record fits.
    assert!(refused.is_none(), "{refused:?}");
    let found = read(directory.path());
    assert_eq!(found.last().unwrap().id, "exec-255");
    assert!(found.len() > 40, "{}", found.len());
}

#[test]
fn long_texts_are_cut_and_records_of_others_are_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let mut journal = Journal::create(directory.path()).unwrap();
    let mut long = execution("exec-long", ExecutionStatus::Running);
    long.command = vec!["ä".repeat(1000), "b".repeat(1_000_000), "c".into()];
    long.working_dir = "/d".repeat(100_000);
    long.labels = [("key".to_owned(), "v".repeat(100_000))].into();
    long.status_reason = "r".repeat(100_000);
    journal.record(&long).unwrap();
    let mut impossible = execution("exec-code", ExecutionStatus::Exited);
    impossible.exit_code = Some(256);
    journal.record(&impossible).unwrap();
    for (id, status) in [
        ("../passwd", ExecutionStatus::Running),
        ("", ExecutionStatus::Running),
        ("exec-lost", ExecutionStatus::Lost),
    ] {
        journal.record(&execution(id, status)).unwrap();
    }
    let found = read(directory.path());
    assert_eq!(ids(&found), ["exec-long"]);
    assert_eq!(found[0].command.len(), 2);
    assert_eq!(found[0].command[0], "ä".repeat(1000));
    let bytes: usize = found[0].command.iter().map(String::len).sum();
    assert!(bytes <= 4096, "{bytes}");
    assert!(found[0].labels.is_empty());
    assert!(found[0].working_dir.len() <= 4096);
}

#[test]
fn link_garbage_and_a_huge_file_are_no_journal() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    symlink("/etc/passwd", &path).unwrap();
    assert!(read(directory.path()).is_empty());
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(read(directory.path()).is_empty());
    fs::remove_file(&path).unwrap();
    for content in [
        &b""[..],
        b"abxexe1\n",
        b"abxexe1\n\xff\xff\xff\xff\0\0\0\0",
        b"garbage",
    ] {
        fs::write(&path, content).unwrap();
        assert!(read(directory.path()).is_empty(), "{content:?}");
    }
    fs::write(&path, MAGIC).unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    assert!(read(directory.path()).is_empty());
    assert!(read(&path).is_empty());
}
