//! The output that outlives a box: files that a process of the box may have written, lines of the
//! container's log on Kubernetes, the exit of the main command, executions, and the archive.
//!
//! The input is the first output file. From the second magic number on, it is the second file.
//!
//! * Entries have rising numbers, and bounded lines within the limit of the reader.
//! * A reader gets entries of the files, from its position on, each once, and the number of lost
//!   entries is exact.
//! * Entries are the same after they were archived, and after they were written as text.

#![no_main]

use std::fs;
use std::sync::LazyLock;

use agentbox_box_protocol::executions::{self, OutputReader};
use agentbox_box_protocol::output::{
    MAX_LINE_BYTES, NewEntry, execution_text, read_newest, record, text,
};
use agentbox_box_protocol::termination::Termination;
use agentbox_contracts::exec::LogsRequest;
use agentbox_contracts::logs::LogEntry;
use agentbox_exec_proxy::archive::object;
use agentbox_exec_proxy::select_logs;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

/// The limit of the reader, in bytes of lines.
const LIMIT: usize = 4096;

static DIRECTORY: LazyLock<TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));

fuzz_target!(|bytes: &[u8]| {
    let entries = entries_of_files(bytes);
    check_archive(&entries);
    for entry in &entries {
        check_text(&text_of(entry));
    }
    check_selections(&entries);
    bytes.split(|byte| *byte == b'\n').for_each(check_text);
    if let Ok(lines) = object::decode(bytes) {
        check_archive(&lines);
    }
    let path = DIRECTORY.path().join("termination");
    fs::write(&path, bytes).expect("a written file");
    // Any content is read or is an error.
    let _ = Termination::read(&path);
    let _ = Termination::read_claim(&path);
    read_executions(bytes);
});

/// Any content is a number of executions and of outputs.
fn read_executions(bytes: &[u8]) {
    for (name, magic) in [
        ("executions", &b"abxexe1\n"[..]),
        ("execution-output", b"abxexo1\n"),
    ] {
        let content = [magic, bytes].concat();
        fs::write(DIRECTORY.path().join(name), content).expect("a written file");
    }
    let read = executions::read(DIRECTORY.path());
    assert!(read.len() <= 1000, "{}", read.len());
    OutputReader::new(executions::read_output(DIRECTORY.path())).for_each(drop);
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Some(execution) = execution_text::decode(line)
            && executions::is_id(&execution.id)
        {
            let mut text = Vec::new();
            execution_text::encode(&mut text, &execution);
            assert!(text.len() < 16 * 1024, "{}", text.len());
        }
    }
}

fn entries_of_files(bytes: &[u8]) -> Vec<LogEntry> {
    let magic = record::MAGIC.len();
    let second = bytes
        .windows(magic)
        .skip(1)
        .position(|window| window == record::MAGIC)
        .map_or(bytes.len(), |at| at + 1);
    let (first, second) = bytes.split_at(second);
    for (name, content) in [("output-0", first), ("output-1", second)] {
        fs::write(DIRECTORY.path().join(name), content).expect("a written file");
    }
    let entries = read_newest(DIRECTORY.path(), LIMIT).expect("readable files");
    let rises = |pair: &[LogEntry]| pair[0].sequence < pair[1].sequence;
    assert!(entries.windows(2).all(rises));
    assert!(entries.iter().all(|e| e.line.len() <= MAX_LINE_BYTES));
    let size: usize = entries.iter().map(|entry| entry.line.len()).sum();
    assert!(size <= LIMIT, "{size}");
    entries
}

fn check_archive(entries: &[LogEntry]) {
    let encoded = object::encode(entries).expect("entries are JSON");
    assert_eq!(object::decode(&encoded).expect("an archive"), entries);
    let newest = object::newest(entries.to_vec(), LIMIT);
    assert!(entries.ends_with(&newest));
    let cost = |entry: &LogEntry| entry.line.len() + object::ENTRY_COST;
    assert!(newest.iter().map(cost).sum::<usize>() <= LIMIT);
}

/// The line of an entry, without its line feed.
fn text_of(entry: &LogEntry) -> Vec<u8> {
    let line = NewEntry {
        stream: entry.stream,
        partial: entry.partial,
        line: &entry.line,
    };
    let mut written = Vec::new();
    text::encode(&mut written, entry.sequence, &line);
    let (sequence, read) = text::decode(&written[..written.len() - 1]).expect("a written line");
    assert_eq!(sequence, entry.sequence);
    assert_eq!((read.stream, read.partial), (entry.stream, entry.partial));
    assert_eq!(read.line, entry.line);
    written.pop();
    written
}

/// A line of a container's log that is read and written again is the same entry.
fn check_text(line: &[u8]) {
    let Some((sequence, read)) = text::decode(line) else {
        return;
    };
    let mut written = Vec::new();
    text::encode(&mut written, sequence, &read);
    let (again, entry) = text::decode(&written[..written.len() - 1]).expect("a written line");
    assert_eq!(again, sequence);
    assert_eq!((entry.stream, entry.partial), (read.stream, read.partial));
    assert_eq!(entry.line, read.line);
}

fn check_selections(kept: &[LogEntry]) {
    let middle = kept.get(kept.len() / 2).map(|entry| entry.sequence);
    for from in [None, middle] {
        let request = LogsRequest {
            from_sequence: from,
            ..LogsRequest::default()
        };
        let (lost, all) = select_logs(&request, kept.to_vec());
        let first = from.unwrap_or(1).max(1);
        assert!(kept.ends_with(&all));
        assert!(all.iter().all(|entry| entry.sequence >= first));
        if let Some(last) = all.last() {
            let numbers = u128::from(last.sequence) - u128::from(first) + 1;
            assert_eq!(u128::from(lost) + all.len() as u128, numbers);
        }
        for tail in [0, 1, 2, u64::MAX] {
            let request = LogsRequest {
                tail: Some(tail),
                ..request.clone()
            };
            let (lost_lines, newest) = select_logs(&request, kept.to_vec());
            assert!(all.ends_with(&newest), "{tail}");
            assert!(lost_lines <= lost, "{tail}");
        }
    }
}
