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
            .append(i64::try_from(number).unwrap(), &[entry], &[])
            .unwrap();
    }
}

fn piece(stream: OutputStream, partial: bool, line: &str) -> NewEntry<'_> {
    NewEntry {
        stream,
        partial,
        line: line.as_bytes(),
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

#[test]
fn forged_entry_numbers_are_lost_entries() {
    let dir = tempfile::tempdir().unwrap();
    let mut output = Output::in_directory(dir.path(), SMALL_SEGMENT).unwrap();
    append(&mut output, 0..100);
    let length = fs::metadata(dir.path().join(FILE_NAMES[0])).unwrap().len();
    for forged in [101, u64::MAX] {
        let mut bytes = record::MAGIC.to_vec();
        record::encode(&mut bytes, 1, 0, OutputStream::Stdout, false, b"mine");
        while (bytes.len() as u64) < length {
            record::encode(&mut bytes, forged, 0, OutputStream::Stdout, false, b"mine");
        }
        fs::write(dir.path().join(FILE_NAMES[0]), bytes).unwrap();
        let batch = output.read(1, usize::MAX).unwrap();
        assert_eq!((batch.entries.len(), batch.next_sequence), (1, 2));
        let rest = output.read(2, usize::MAX).unwrap();
        assert_eq!((rest.lost, rest.next_sequence), (99, 101), "{forged}");
        let tail = output.tail(50).unwrap();
        assert!(tail.sequence <= 101, "{forged}: {tail:?}");
    }
}

#[test]
fn unfinished_lines_outlive_the_writer_and_are_replaced_by_the_next_write() {
    use OutputStream::{Stderr, Stdout};

    let dir = tempfile::tempdir().unwrap();
    let mut output = Output::in_directory(dir.path(), SMALL_SEGMENT).unwrap();
    let found = || -> Vec<(u64, String, bool)> {
        let entries = read_newest(dir.path(), usize::MAX).unwrap();
        let text = |line| String::from_utf8(line).unwrap();
        entries
            .into_iter()
            .map(|entry| (entry.sequence, text(entry.line), entry.partial))
            .collect()
    };
    let unfinished = [piece(Stdout, true, "long pro"), piece(Stderr, true, "wa")];
    output.append(1, &[], &unfinished).unwrap();
    assert_eq!(
        found(),
        [(1, "long pro".into(), true), (2, "wa".into(), true)]
    );
    // They are not entries for boxd's own readers.
    assert_eq!(output.next_sequence(), 1);
    assert!(output.read(1, usize::MAX).unwrap().entries.is_empty());
    let full = [piece(Stderr, false, "was")];
    output.append(2, &full, &unfinished[..1]).unwrap();
    assert_eq!(
        found(),
        [(1, "was".into(), false), (2, "long pro".into(), true)]
    );
    output.append(3, &[piece(Stdout, false, "x")], &[]).unwrap();
    assert_eq!(found(), [(1, "was".into(), false), (2, "x".into(), false)]);
    // An unfinished line moves along when a segment is full.
    for number in 3..5_000_u64 {
        let line = [piece(Stdout, false, "0123456789")];
        output
            .append(4, &line, &[piece(Stderr, true, "end")])
            .unwrap();
        if number.is_multiple_of(98) {
            let last = found().pop().unwrap();
            assert_eq!(last, (number + 1, "end".into(), true));
        }
    }
    let all = sequences(dir.path(), usize::MAX);
    assert!(all.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    for name in FILE_NAMES {
        assert!(fs::metadata(dir.path().join(name)).unwrap().len() <= SMALL_SEGMENT);
    }
}

#[test]
fn tail_counts_lines_and_those_that_are_lost() {
    use OutputStream::{Stderr, Stdout};

    let mut output = Output::in_memory(SMALL_SEGMENT).unwrap();
    assert_eq!(
        output.tail(3).unwrap(),
        Tail {
            sequence: 1,
            lost: 0
        }
    );
    let entries = [
        piece(Stdout, false, "one"),
        piece(Stdout, true, "two, "),
        piece(Stderr, false, "three"),
        piece(Stdout, true, "continued, "),
        piece(Stdout, false, "and finished"),
        piece(Stdout, true, "four"),
    ];
    output.append(1, &entries, &[]).unwrap();
    for (count, sequence) in [(0, 7), (1, 6), (2, 3), (3, 2), (4, 1), (u64::MAX, 1)] {
        let expected = Tail { sequence, lost: 0 };
        assert_eq!(output.tail(count).unwrap(), expected, "{count}");
    }
    output.append(2, &[piece(Stdout, false, "")], &[]).unwrap();
    append(&mut output, 0..5_000);
    let first = output.first_sequence();
    // Entries 1 to 7 are four lines.
    let lost = first - 1 - 3;
    for (count, expected) in [
        (1, (5_007, 0)),
        (100, (4_908, 0)),
        (5_007 - first + 1, (first, 0)),
        (5_000, (first, lost - 4)),
        (5_004, (first, lost)),
        (9_999, (first, lost)),
    ] {
        let tail = output.tail(count).unwrap();
        assert_eq!((tail.sequence, tail.lost), expected, "{count}");
    }
}
