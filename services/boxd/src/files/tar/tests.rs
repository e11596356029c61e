use super::*;

fn file(path: &[u8], size: u64) -> Entry {
    Entry {
        path: path.to_vec(),
        link: Vec::new(),
        kind: Kind::File,
        mode: 0o4755,
        uid: 1000,
        gid: 3_000_000,
        size,
        modified: 1_700_000_000,
    }
}

fn archive(entries: &[(Entry, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (entry, content) in entries {
        write_header(&mut bytes, entry).unwrap();
        bytes.extend_from_slice(content);
        write_padding(&mut bytes, content.len() as u64).unwrap();
    }
    write_end(&mut bytes).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        reader.read_to_end(&mut content)?;
        entries.push((entry, content));
    }
    Ok(entries)
}

/// Changes the first header and repairs its checksum.
fn changed(mut bytes: Vec<u8>, change: impl FnOnce(&mut [u8; BLOCK_BYTES])) -> Vec<u8> {
    let mut header = [0; BLOCK_BYTES];
    header.copy_from_slice(&bytes[..BLOCK_BYTES]);
    change(&mut header);
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes[..BLOCK_BYTES].copy_from_slice(&header);
    bytes
}

/// An extended header with these records, and an empty file after it.
fn with_records(records: &[u8]) -> Vec<u8> {
    let extension = archive(&[(file(b"pax", records.len() as u64), records)]);
    let mut bytes = changed(extension, |header| header[156] = b'x');
    bytes.truncate(bytes.len() - 2 * BLOCK_BYTES);
    bytes.extend(archive(&[(file(b"file", 0), b"")]));
    bytes
}

#[test]
fn written_entries_are_read_again() {
    let long = [b"directory/".repeat(30), b"\xff\n".to_vec()].concat();
    let large = Entry {
        uid: u32::MAX - 1,
        ..file(&long, 3)
    };
    let link = Entry {
        link: long.clone(),
        kind: Kind::SymbolicLink,
        ..file(b"link", 0)
    };
    let directory = Entry {
        kind: Kind::Directory,
        ..file(b"directory/", 0)
    };
    let written: [(Entry, &[u8]); 5] = [
        (file(b"a", 5), b"12345"),
        (large, b"abc"),
        (link, b""),
        (directory, b""),
        (file(&[b'n'; 100], 0), b""),
    ];
    let read = read(&archive(&written)).unwrap();
    assert_eq!(read.len(), written.len());
    for ((entry, content), (expected, bytes)) in read.iter().zip(&written) {
        assert_eq!(entry, expected);
        assert_eq!(content, bytes);
    }
}

#[test]
fn size_beyond_eight_gib_is_read_again() {
    let mut header = Vec::new();
    write_header(&mut header, &file(b"large", 1 << 40)).unwrap();
    let entry = Reader::new(header.as_slice()).next_entry().unwrap();
    assert_eq!(entry.unwrap().size, 1 << 40);
}

#[test]
fn pax_records_replace_the_fields_of_the_header() {
    let bytes = with_records(b"20 path=long/name/x\n13 uid=70000\n20 mtime=1234.56789\n");
    let (entry, _) = read(&bytes).unwrap().remove(0);
    assert_eq!(entry.path, b"long/name/x");
    assert_eq!((entry.uid, entry.modified), (70_000, 1234));
}

#[test]
fn malformed_pax_records_are_refused() {
    for records in [
        &b"x"[..],
        b"5 a=\n",
        b"99 path=a\n",
        b"1 path=a\n",
        b"9 path=a\n\n",
        b"7 path\n",
        b"10 size=x\n",
        b"-1 path=a\n",
        b"22 GNU.sparse.major=1\n",
    ] {
        let text = records.escape_ascii();
        if records == b"5 a=\n" {
            // An empty value is none.
            assert!(read(&with_records(records)).is_ok(), "{text}");
            continue;
        }
        assert!(read(&with_records(records)).is_err(), "{text}");
    }
}

#[test]
fn truncated_archive_is_an_error_at_each_length() {
    let bytes = archive(&[(file(b"a", 600), &[1; 600]), (file(b"b", 0), b"")]);
    for length in 0..bytes.len() - 2 * BLOCK_BYTES {
        assert!(read(&bytes[..length]).is_err(), "{length}");
    }
    assert!(read(&bytes).is_ok());
}

#[test]
fn changed_header_without_its_checksum_is_refused() {
    let mut bytes = archive(&[(file(b"a", 0), b"")]);
    bytes[0] = b'b';
    assert!(matches!(read(&bytes), Err(TarError::Malformed(_))));
}

#[test]
fn extension_that_is_too_large_is_refused_before_it_is_read() {
    let claimed = archive(&[(file(b"a", 1 << 30), b"")]);
    for kind in [b'L', b'K', b'x', b'g'] {
        let bytes = changed(claimed.clone(), |header| header[156] = kind);
        assert!(matches!(read(&bytes), Err(TarError::Malformed(_))));
    }
}

#[test]
fn endless_extensions_are_refused() {
    let one = with_records(b"9 path=a\n");
    let one = &one[..2 * BLOCK_BYTES];
    let bytes = one.repeat(MAX_EXTENSIONS + 2);
    assert!(read(&bytes).is_err());
}

#[test]
fn kinds_of_entries_are_told_apart() {
    for (kind, expected) in [
        (b'0', Kind::File),
        (0, Kind::File),
        (b'7', Kind::File),
        (b'1', Kind::HardLink),
        (b'2', Kind::SymbolicLink),
        (b'3', Kind::Other),
        (b'4', Kind::Other),
        (b'5', Kind::Directory),
        (b'6', Kind::Other),
        (b'S', Kind::Other),
    ] {
        let bytes = changed(archive(&[(file(b"a", 0), b"")]), |header| {
            header[156] = kind
        });
        assert_eq!(read(&bytes).unwrap()[0].0.kind, expected, "{kind}");
    }
    let old = archive(&[(file(b"directory/", 0), b"")]);
    assert_eq!(read(&old).unwrap()[0].0.kind, Kind::Directory);
}

#[test]
fn number_that_is_no_octal_number_is_refused() {
    for text in [
        &b"12x4567\0"[..],
        b"+000001\0",
        b"\x81\0\0\0\0\0\0\0",
        b"9999999\0",
    ] {
        let bytes = changed(archive(&[(file(b"a", 0), b"")]), |header| {
            header[108..116].copy_from_slice(text);
        });
        assert!(read(&bytes).is_err(), "{}", text.escape_ascii());
    }
}
