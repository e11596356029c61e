//! What the end of a box leaves of its executions.

use std::io::Read as _;
use std::process::Stdio;

use agentbox_box_protocol::executions::{OutputReader, read_output};
use agentbox_box_protocol::output::execution_text;
use agentbox_contracts::executions::execution_output::Output;
use agentbox_contracts::executions::{Execution, ExecutionStatus, OutputPiece};

use super::calls::{command, delete, follow, run, script, start, status};
use crate::support::{Setup, TestBox, shell};

fn head(id: &str, stdout_bytes: u64, stderr_bytes: u64) -> Output {
    Output::Execution(Execution {
        id: id.to_owned(),
        stdout_bytes,
        stderr_bytes,
        ..Execution::default()
    })
}

fn piece(stderr: bool, offset: u64, data: &'static [u8]) -> Output {
    Output::Output(OutputPiece {
        stderr,
        offset,
        data: data.into(),
    })
}

#[tokio::test]
async fn output_is_saved_and_records_are_on_stdout_when_the_main_command_exits() {
    let (mut boxd, client) = TestBox::start(Setup {
        main: shell("until [ -e end ]; do sleep 0.05; done"),
        stdout: Some(Stdio::piped()),
        ..Setup::default()
    })
    .await;
    let ended = run(&client, script("printf out; printf err >&2; exit 3")).await;
    let running = script("printf partial; exec sleep 600");
    let running = start(&client, running).await.unwrap();
    follow(&client, &running.id, None)
        .await
        .until("partial")
        .await;
    std::fs::write(boxd.path("end"), "").unwrap();
    let mut stdout = boxd.process.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        stdout.read_to_end(&mut text).unwrap();
        text
    });
    assert_eq!(boxd.exit_code().await, Some(0));

    let saved = OutputReader::new(read_output(&boxd.output_dir()));
    let saved: Vec<Output> = saved.filter_map(|message| message.output).collect();
    let expected = [
        head(&running.id, 7, 0),
        piece(false, 0, b"partial"),
        head(&ended.id, 3, 3),
        piece(false, 0, b"out"),
        piece(true, 0, b"err"),
    ];
    assert_eq!(saved, expected);
    let text = reader.join().unwrap();
    let records: Vec<(String, ExecutionStatus)> = text
        .split(|byte| *byte == b'\n')
        .filter_map(execution_text::decode)
        .map(|record| (record.id.clone(), status(&record)))
        .collect();
    let expected = [
        (ended.id.clone(), ExecutionStatus::Running),
        (ended.id, ExecutionStatus::Exited),
        (running.id, ExecutionStatus::Running),
    ];
    assert_eq!(records, expected);
}

#[tokio::test]
async fn purge_is_on_stdout_after_the_record() {
    let (mut boxd, client) = TestBox::start(Setup {
        main: shell("until [ -e end ]; do sleep 0.05; done"),
        stdout: Some(Stdio::piped()),
        ..Setup::default()
    })
    .await;
    let id = run(&client, command(&["true"])).await.id;
    delete(&client, &id, true).await.unwrap();
    std::fs::write(boxd.path("end"), "").unwrap();
    let mut stdout = boxd.process.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        stdout.read_to_end(&mut text).unwrap();
        text
    });
    assert_eq!(boxd.exit_code().await, Some(0));
    let text = reader.join().unwrap();
    let mut lines = text.split(|byte| *byte == b'\n');
    assert!(
        lines
            .by_ref()
            .any(|line| execution_text::decode(line).is_some())
    );
    let forgotten = lines.find_map(execution_text::decode_forgotten);
    assert_eq!(forgotten, Some(id.as_str()));
}

#[tokio::test]
async fn newest_mebibyte_of_each_stream_is_saved() {
    let (mut boxd, client) = TestBox::main("until [ -e end ]; do sleep 0.05; done").await;
    let mut wanted = script("head -c 3145728 /dev/zero");
    wanted.keep_bytes = 2 << 20;
    run(&client, wanted).await;
    std::fs::write(boxd.path("end"), "").unwrap();
    assert_eq!(boxd.exit_code().await, Some(0));
    let mut offsets = Vec::new();
    for message in OutputReader::new(read_output(&boxd.output_dir())) {
        if let Some(Output::Output(piece)) = message.output {
            offsets.push((piece.offset, piece.data.len() as u64));
        }
    }
    assert_eq!(offsets[0].0, 2 << 20);
    let mut next = 2 << 20;
    for (offset, length) in offsets {
        assert_eq!(offset, next);
        next += length;
    }
    assert_eq!(next, 3 << 20);
}
