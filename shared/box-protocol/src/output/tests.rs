//! Writer and reader together, and files that a hostile box has changed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use agentbox_contracts::logs::OutputStream;

use super::*;

const SMALL_SEGMENT: u64 = 128 * 1024;

fn append(output: &mut Output, lines: std::ops::Range<u64>) {
    for number in lines {
        let line = format!("line {number} {}", "x".repeat(100));
        let entry = NewEntry {
            stream: OutputStream::Stdout,
            partial: false,
            line: line.as_bytes(),
        };
        output
            .append(i64::try_from(number).unwrap(), &[entry])
            .unwrap();
    }
}

fn sequences(directory: &Path, limit: usize) -> Vec<u64> {
    read_newest(directory, limit)
        .unwrap()
        .iter()
        .map(|entry| entry.sequence)
        .collect()
}

#[test]
fn rotated_output_keeps_at_least_newest_segment_without_gap() {
    let dir = tempfile::tempdir().unwrap();
    let mut output = Output::in_directory(dir.path(), SMALL_SEGMENT).unwrap();
    append(&mut output, 0..10_000);
    let found = sequences(dir.path(), usize::MAX);
    assert_eq!(found.last(), Some(&10_000));
    assert_eq!(found.first(), Some(&output.first_sequence()));
    assert!(found.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    assert!(found.len() as u64 * 140 >= SMALL_SEGMENT, "{}", found.len());
    for name in FILE_NAMES {
        assert!(fs::metadata(dir.path().join(name)).unwrap().len() <= SMALL_SEGMENT);
    }
}

#[test]
fn limit_keeps_newest_entries() {
    let dir = tempfile::tempdir().unwrap();
    let mut output = Output::in_directory(dir.path(), SMALL_SEGMENT).unwrap();
    append(&mut output, 0..50);
    assert_eq!(sequences(dir.path(), 250), [49, 50]);
    assert_eq!(sequences(dir.path(), 0), Vec::<u64>::new());
}

#[test]
fn read_continues_anywhere_and_counts_rotated_entries() {
    let mut output = Output::in_memory(SMALL_SEGMENT).unwrap();
    append(&mut output, 0..5_000);
    let first = output.first_sequence();
    assert!(first > 1);
    let mut cursor = 1;
    let mut seen = Vec::new();
    let mut lost = 0;
    while cursor < output.next_sequence() {
        let batch = output.read(cursor, 10_000).unwrap();
        assert!(batch.next_sequence > cursor);
        cursor = batch.next_sequence;
        lost += batch.lost;
        seen.extend(batch.entries.iter().map(|entry| entry.sequence));
    }
    assert_eq!(lost, first - 1);
    assert_eq!(seen, (first..=5_000).collect::<Vec<_>>());
    let end = output.read(5_001, 1_000).unwrap();
    assert_eq!(
        end,
        Batch {
            next_sequence: 5_001,
            ..Batch::default()
        }
    );
    let from_middle = output.read(4_321, 1).unwrap();
    assert_eq!(from_middle.entries[0].sequence, 4_321);
    assert_eq!(from_middle.lost, 0);
}

#[test]
fn truncated_or_overwritten_tail_loses_only_later_entries() {
    let dir = tempfile::tempdir().unwrap();
    let mut output = Output::in_directory(dir.path(), SMALL_SEGMENT).unwrap();
    append(&mut output, 0..100);
    let path = dir.path().join(FILE_NAMES[0]);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    assert_eq!(
        sequences(dir.path(), usize::MAX),
        (1..=99).collect::<Vec<_>>()
    );
    let mut scribbled = whole.clone();
    scribbled.extend_from_slice(&[0xff; 5000]);
    fs::write(&path, &scribbled).unwrap();
    assert_eq!(sequences(dir.path(), usize::MAX).len(), 100);
    fs::write(&path, b"no segment").unwrap();
    assert!(sequences(dir.path(), usize::MAX).is_empty());
}

#[test]
fn links_fifos_and_directories_are_not_read_as_segments() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    let mut output = Output::in_directory(dir.path(), SMALL_SEGMENT).unwrap();
    append(&mut output, 0..3);
    let segment = dir.path().join(FILE_NAMES[0]);
    fs::rename(&segment, &secret).unwrap();
    symlink(&secret, &segment).unwrap();
    assert!(sequences(dir.path(), usize::MAX).is_empty());
    fs::remove_file(&segment).unwrap();
    nix::unistd::mkfifo(&segment, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(sequences(dir.path(), usize::MAX).is_empty());
    fs::remove_file(&segment).unwrap();
    fs::create_dir(&segment).unwrap();
    assert!(sequences(dir.path(), usize::MAX).is_empty());
    assert!(
        read_newest(&dir.path().join("nowhere"), 10)
            .unwrap()
            .is_empty()
    );
    assert!(read_newest(&secret, 10).is_err());
}

#[test]
fn new_output_ignores_old_files_and_links() {
    let dir = tempfile::tempdir().unwrap();
    let victim = dir.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    symlink(&victim, dir.path().join(FILE_NAMES[0])).unwrap();
    fs::write(dir.path().join(FILE_NAMES[1]), "old").unwrap();
    let mut output = Output::in_directory(dir.path(), SMALL_SEGMENT).unwrap();
    append(&mut output, 0..3);
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
    assert_eq!(sequences(dir.path(), usize::MAX), [1, 2, 3]);
}

#[test]
fn overwritten_entries_are_counted_as_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut output = Output::in_directory(dir.path(), SMALL_SEGMENT).unwrap();
    append(&mut output, 0..100);
    fs::write(dir.path().join(FILE_NAMES[0]), vec![0; 50_000]).unwrap();
    let batch = output.read(1, usize::MAX).unwrap();
    assert_eq!((batch.lost, batch.next_sequence), (100, 101));
}
