//! File operations that read: metadata, listings and content.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use agentbox_contracts::files::file_input::Input;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{
    ByteRange, Delete, FileInput, FileRequest, FileType, List, Part, Read, Stat,
};
use bytes::Bytes;
use tonic::Code;

use crate::files_support::{
    Call, atomic, failure, get, page, path_bytes, perform, put, request, stat,
};
use crate::support::TestBox;

fn all() -> List {
    List {
        depth: 1,
        limit: 1000,
        ..List::default()
    }
}

#[tokio::test]
async fn metadata_is_of_the_link_or_of_its_target() {
    let (boxd, client) = TestBox::idle().await;
    fs::write(boxd.path("file"), "12345").unwrap();
    fs::set_permissions(boxd.path("file"), fs::Permissions::from_mode(0o4640)).unwrap();
    symlink("file", boxd.path("link")).unwrap();
    symlink("nowhere", boxd.path("dangling")).unwrap();
    let link = stat(&client, &boxd.path("link"), false).await.unwrap();
    assert_eq!(link.file_type, i32::from(FileType::Symlink));
    assert_eq!(link.target.as_deref(), Some(&b"file"[..]));
    let target = stat(&client, &boxd.path("link"), true).await.unwrap();
    assert_eq!((target.size, target.mode), (5, 0o4640));
    assert_eq!((target.uid, target.owner.as_str()), (0, "root"));
    assert_eq!(target.path, path_bytes(&boxd.path("link")));
    assert!(target.modified_unix_nanos > 1_600_000_000_000_000_000);
    let dangling = request(
        &boxd.path("dangling"),
        Operation::Stat(Stat { follow: true }),
    );
    assert_eq!(failure(&client, dangling).await, "file_not_found");
}

#[tokio::test]
async fn malformed_paths_and_first_inputs_are_refused() {
    let (boxd, client) = TestBox::idle().await;
    for path in ["", "relative", "/a\0b", &format!("/{}", "a/".repeat(2048))] {
        let stat = Operation::Stat(Stat::default());
        let code = failure(&client, request(Path::new(path), stat)).await;
        assert_eq!(code, "invalid_path", "{path}");
    }
    let long = boxd.path(&"n".repeat(300));
    let code = failure(&client, request(&long, Operation::Stat(Stat::default()))).await;
    assert_eq!(code, "name_too_long");
    let unknown = FileRequest {
        operation: None,
        ..request(boxd.dir.path(), Operation::Stat(Stat::default()))
    };
    assert_eq!(failure(&client, unknown).await, "bad_request");
    let no_request = FileInput {
        input: Some(Input::End(())),
    };
    let call = client.clone().files(tokio_stream::iter([no_request])).await;
    assert_eq!(call.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn names_with_line_feeds_and_broken_utf8_are_listed_read_and_deleted() {
    let (boxd, client) = TestBox::idle().await;
    let directory = boxd.path("names");
    let names: [&[u8]; 4] = [b"\n", b"a\nb", b"b\xff\xfe", b" "];
    for name in names {
        let path = directory.join(OsStr::from_bytes(name));
        put(&client, &path, atomic(), name).await.unwrap();
    }
    let (listed, cursor) = page(&client, &directory, all()).await;
    assert_eq!(listed, [&b"\n"[..], b" ", b"a\nb", b"b\xff\xfe"]);
    assert!(cursor.is_empty());
    for name in names {
        let path = directory.join(OsStr::from_bytes(name));
        assert_eq!(get(&client, &path, Read::default()).await.unwrap().1, name);
        let delete = Operation::Delete(Delete { recursive: false });
        perform(&client, request(&path, delete)).await.unwrap();
    }
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
}

// Creating the entries takes a while, in which another thread must answer the pings of boxd.
#[tokio::test(flavor = "multi_thread")]
async fn pages_have_each_of_10000_entries_once_while_the_directory_changes() {
    let (boxd, client) = TestBox::idle().await;
    let directory = boxd.path("many");
    fs::create_dir(&directory).unwrap();
    for number in 0..10_000 {
        fs::write(directory.join(format!("{number:05}")), "").unwrap();
    }
    let (mut seen, mut cursor) = (Vec::new(), Bytes::new());
    loop {
        let list = List {
            cursor: cursor.clone(),
            limit: 999,
            ..all()
        };
        let (paths, next) = page(&client, &directory, list).await;
        assert!(paths.len() <= 999);
        // The cursor's own entry goes away, and one appears before it.
        fs::remove_file(directory.join(OsStr::from_bytes(paths.last().unwrap()))).unwrap();
        fs::write(directory.join("00000x"), "").unwrap();
        seen.extend(paths);
        if next.is_empty() {
            break;
        }
        cursor = next;
    }
    let expected: Vec<Vec<u8>> = (0..10_000)
        .map(|n| format!("{n:05}").into_bytes())
        .collect();
    assert!(seen == expected, "{} entries", seen.len());
}

#[tokio::test]
async fn listing_goes_as_deep_as_asked_and_pages_across_levels() {
    let (boxd, client) = TestBox::idle().await;
    let root = boxd.path("tree");
    for directory in ["a/deep/er", "b", "c"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    for file in ["a/1", "a/deep/2", "a/deep/er/3", "c/4", "d"] {
        fs::write(root.join(file), "").unwrap();
    }
    symlink("a", root.join("link")).unwrap();
    let text = |paths: Vec<Vec<u8>>| String::from_utf8(paths.join(&b' ')).unwrap();
    let expected = "a a/1 a/deep a/deep/2 a/deep/er b c c/4 d link";
    let deep = List { depth: 3, ..all() };
    assert_eq!(text(page(&client, &root, deep.clone()).await.0), expected);
    assert_eq!(text(page(&client, &root, all()).await.0), "a b c d link");
    let (mut seen, mut cursor) = (Vec::new(), Bytes::new());
    loop {
        let one = List {
            limit: 1,
            cursor,
            ..deep.clone()
        };
        let (paths, next) = page(&client, &root, one).await;
        assert_eq!(paths.len(), 1);
        seen.extend(paths);
        cursor = next;
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(text(seen), expected);
    let bad = List {
        cursor: Bytes::from_static(b"../x"),
        ..all()
    };
    let code = failure(&client, request(&root, Operation::List(bad))).await;
    assert_eq!(code, "validation_failed");
    // Another file than a directory has metadata and no entries.
    assert!(page(&client, &root.join("d"), all()).await.0.is_empty());
}

#[tokio::test]
async fn content_is_read_whole_in_part_and_under_conditions() {
    let (boxd, client) = TestBox::idle().await;
    let content: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    fs::write(boxd.path("file"), &content).unwrap();
    symlink("file", boxd.path("link")).unwrap();
    let path = boxd.path("link");
    let (opened, all) = get(&client, &path, Read::default()).await.unwrap();
    assert!(all == content);
    assert_eq!((opened.length, opened.part), (Some(200_000), None));
    let range = |first, last| Read {
        range: Some(ByteRange { first, last }),
        ..Read::default()
    };
    let (part, bytes) = get(&client, &path, range(Some(70_000), Some(70_009)))
        .await
        .unwrap();
    assert_eq!(bytes, &content[70_000..70_010]);
    let expected = Part {
        first: 70_000,
        last: 70_009,
    };
    assert_eq!((part.part, part.length), (Some(expected), Some(10)));
    let (_, bytes) = get(&client, &path, range(None, Some(5))).await.unwrap();
    assert_eq!(bytes, &content[199_995..]);
    let (beyond, bytes) = get(&client, &path, range(Some(200_000), None))
        .await
        .unwrap();
    assert!(beyond.unsatisfiable && bytes.is_empty());
    let same = Read {
        if_none_match: vec![opened.etag.clone()],
        ..Read::default()
    };
    let (unchanged, bytes) = get(&client, &path, same.clone()).await.unwrap();
    assert!(unchanged.not_modified && bytes.is_empty());
    fs::write(boxd.path("file"), "other").unwrap();
    let (changed, bytes) = get(&client, &path, same).await.unwrap();
    assert!(!changed.not_modified && bytes == b"other");
    // The range of the content before is not one of the content now.
    let stale = Read {
        if_range: opened.etag,
        ..range(Some(2), None)
    };
    assert_eq!(get(&client, &path, stale).await.unwrap().1, b"other");
    let head = Read {
        head: true,
        ..Read::default()
    };
    let (head, bytes) = get(&client, &path, head).await.unwrap();
    assert!(head.length == Some(5) && bytes.is_empty());
}

#[tokio::test]
async fn files_of_size_zero_are_read_with_their_content() {
    let (boxd, client) = TestBox::idle().await;
    let version = Path::new("/proc/version");
    let (opened, content) = get(&client, version, Read::default()).await.unwrap();
    assert_eq!(opened.length, None);
    assert_eq!(content, fs::read(version).unwrap());
    fs::write(boxd.path("empty"), "").unwrap();
    let (opened, content) = get(&client, &boxd.path("empty"), Read::default())
        .await
        .unwrap();
    assert_eq!((opened.length, content.len()), (Some(0), 0));
}

#[tokio::test]
async fn huge_sparse_file_is_described_and_read_in_part() {
    let (boxd, client) = TestBox::idle().await;
    let file = fs::File::create(boxd.path("huge")).unwrap();
    let end = 1 << 40;
    file.set_len(end).unwrap();
    file.write_all_at(b"end", end - 3).unwrap();
    let found = stat(&client, &boxd.path("huge"), false).await.unwrap();
    assert_eq!(found.size, end);
    let last = Read {
        range: Some(ByteRange {
            first: None,
            last: Some(5),
        }),
        ..Read::default()
    };
    let (opened, content) = get(&client, &boxd.path("huge"), last).await.unwrap();
    assert_eq!((opened.length, &content[..]), (Some(5), &b"\0\0end"[..]));
}

#[tokio::test]
async fn file_that_shrinks_fails_in_the_middle() {
    let (boxd, client) = TestBox::idle().await;
    let file = fs::File::create(boxd.path("file")).unwrap();
    file.set_len(64 * 1024 * 1024).unwrap();
    let read = request(&boxd.path("file"), Operation::Read(Read::default()));
    let mut call = Call::open(&client, read).await.unwrap();
    assert!(matches!(call.next().await, Output::Opened(_)));
    // Far more than fits between the file and this test: most of it is still to be read.
    file.set_len(0).unwrap();
    let failed = call.finish().await.unwrap_err();
    assert_eq!(failed.code, "conflict");
}

#[tokio::test]
async fn fifos_devices_and_directories_are_not_read_and_never_hang() {
    let (boxd, client) = TestBox::idle().await;
    nix::unistd::mkfifo(&boxd.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (path, word) in [
        (boxd.path("fifo"), "validation_failed"),
        ("/dev/zero".into(), "validation_failed"),
        (boxd.dir.path().to_owned(), "is_a_directory"),
        (boxd.path("nothing"), "file_not_found"),
        (boxd.path("fifo/below"), "not_a_directory"),
    ] {
        let read = request(&path, Operation::Read(Read::default()));
        assert_eq!(failure(&client, read).await, word, "{}", path.display());
    }
}
