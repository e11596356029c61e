//! File operations: metadata, listings, reading, and changes of names and modes.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use agentbox_contracts::files::file_input::Input;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{
    ByteRange, Change, Copy, Delete, FileInput, FileRequest, FileType, List, MakeDirectory, Move,
    Part, Read, Stat,
};
use bytes::Bytes;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::files_support::{
    Call, atomic, failure, get, open_directory, page, path_bytes, perform, put, request, stat,
};
use crate::support::{TestBox, eventually, is_alive};

fn make(path: &Path, request: &MakeDirectory) -> FileRequest {
    crate::files_support::request(path, Operation::MakeDirectory(request.clone()))
}

fn move_to(from: &Path, to: &Path, overwrite: bool) -> FileRequest {
    let to = path_bytes(to);
    request(from, Operation::Move(Move { to, overwrite }))
}

fn copy_to(from: &Path, to: &Path, overwrite: bool, recursive: bool) -> FileRequest {
    let copy = Copy {
        to: path_bytes(to),
        overwrite,
        recursive,
    };
    request(from, Operation::Copy(copy))
}

fn delete(path: &Path, recursive: bool) -> FileRequest {
    request(path, Operation::Delete(Delete { recursive }))
}

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
        perform(&client, delete(&path, false)).await.unwrap();
    }
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
}

#[tokio::test]
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

#[tokio::test]
async fn directories_are_created_with_mode_and_parents() {
    let (boxd, client) = TestBox::idle().await;
    let path = boxd.path("a/b/c");
    let plain = MakeDirectory::default();
    assert_eq!(
        failure(&client, make(&path, &plain)).await,
        "file_not_found"
    );
    let with_parents = MakeDirectory {
        mode: Some(0o2750),
        parents: true,
    };
    for created in [true, false] {
        let outputs = perform(&client, make(&path, &with_parents)).await.unwrap();
        let [Output::Stored(stored)] = outputs.as_slice() else {
            panic!("{outputs:?}");
        };
        assert_eq!(stored.created, created);
    }
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o2750);
    assert_eq!(fs::metadata(boxd.path("a")).unwrap().mode() & 0o7777, 0o755);
    fs::write(boxd.path("file"), "").unwrap();
    let code = failure(&client, make(&boxd.path("file"), &plain)).await;
    assert_eq!(code, "already_exists");
    let code = failure(&client, make(&boxd.path("file/x"), &with_parents)).await;
    assert_eq!(code, "not_a_directory");
}

#[tokio::test]
async fn move_acts_on_the_link_and_replaces_only_when_asked() {
    let (boxd, client) = TestBox::idle().await;
    let path = |name: &str| boxd.path(name);
    fs::write(path("file"), "content").unwrap();
    fs::write(path("other"), "other").unwrap();
    symlink("file", path("link")).unwrap();
    fs::create_dir_all(path("full/sub")).unwrap();
    fs::create_dir(path("empty")).unwrap();
    perform(&client, move_to(&path("link"), &path("moved"), false))
        .await
        .unwrap();
    assert_eq!(fs::read_link(path("moved")).unwrap(), Path::new("file"));
    for (from, to, overwrite, word) in [
        ("file", "other", false, "already_exists"),
        ("nothing", "x", false, "file_not_found"),
        ("file", "no/where", false, "file_not_found"),
        ("file", "full", true, "is_a_directory"),
        ("full", "file", true, "not_a_directory"),
        ("empty", "full", true, "not_empty"),
        ("full", "full/sub/x", false, "invalid_path"),
    ] {
        let code = failure(&client, move_to(&path(from), &path(to), overwrite)).await;
        assert_eq!(code, word, "{from} to {to}");
    }
    perform(&client, move_to(&path("file"), &path("other"), true))
        .await
        .unwrap();
    assert_eq!(fs::read(path("other")).unwrap(), b"content");
    perform(&client, move_to(&path("full"), &path("empty"), true))
        .await
        .unwrap();
    assert!(path("empty/sub").is_dir());
    if fs::metadata("/dev/shm")
        .is_ok_and(|shm| shm.dev() != fs::metadata(path("other")).unwrap().dev())
    {
        let to = Path::new("/dev/shm").join(format!("agentbox-test-{}", std::process::id()));
        let code = failure(&client, move_to(&path("other"), &to, false)).await;
        assert_eq!(code, "cross_device");
    }
}

#[tokio::test]
async fn copy_keeps_modes_links_and_holes_and_leaves_nothing_when_it_fails() {
    let (boxd, client) = TestBox::idle().await;
    let path = |name: &str| boxd.path(name);
    fs::create_dir_all(path("tree/sub")).unwrap();
    fs::write(path("tree/sub/file"), "content").unwrap();
    fs::set_permissions(path("tree/sub/file"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(path("tree/sub"), fs::Permissions::from_mode(0o500)).unwrap();
    symlink("sub/file", path("tree/link")).unwrap();
    let sparse = fs::File::create(path("tree/sparse")).unwrap();
    sparse.set_len(1 << 30).unwrap();
    let code = failure(&client, copy_to(&path("tree"), &path("copy"), false, false)).await;
    assert_eq!(code, "is_a_directory");
    perform(&client, copy_to(&path("tree"), &path("copy"), false, true))
        .await
        .unwrap();
    assert_eq!(fs::read(path("copy/sub/file")).unwrap(), b"content");
    assert_eq!(
        fs::metadata(path("copy/sub/file")).unwrap().mode() & 0o7777,
        0o751
    );
    assert_eq!(
        fs::metadata(path("copy/sub")).unwrap().mode() & 0o7777,
        0o500
    );
    assert_eq!(
        fs::read_link(path("copy/link")).unwrap(),
        Path::new("sub/file")
    );
    let copied = fs::metadata(path("copy/sparse")).unwrap();
    assert_eq!((copied.len(), copied.blocks()), (1 << 30, 0));
    let code = failure(&client, copy_to(&path("tree"), &path("copy"), false, true)).await;
    assert_eq!(code, "already_exists");
    let code = failure(&client, copy_to(&path("tree"), &path("copy"), true, true)).await;
    assert_eq!(code, "not_empty");
    let code = failure(
        &client,
        copy_to(&path("tree"), &path("tree/x"), false, true),
    )
    .await;
    assert_eq!(code, "invalid_path");
    nix::unistd::mkfifo(&path("tree/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let code = failure(&client, copy_to(&path("tree"), &path("again"), false, true)).await;
    assert_eq!(code, "validation_failed");
    assert_no_hidden_files(boxd.dir.path());
    // A link itself is copied.
    perform(
        &client,
        copy_to(&path("tree/link"), &path("link"), false, false),
    )
    .await
    .unwrap();
    assert!(path("link").is_symlink());
}

/// No temporary file is left.
pub fn assert_no_hidden_files(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(!name.as_bytes().starts_with(b".agentbox-"), "{name:?}");
    }
}

#[tokio::test]
async fn change_sets_mode_owner_and_group_of_the_target() {
    let (boxd, client) = TestBox::idle().await;
    fs::write(boxd.path("file"), "").unwrap();
    symlink("file", boxd.path("link")).unwrap();
    let change = |mode, owner: &str, group: &str| {
        let change = Change {
            mode,
            owner: owner.to_owned(),
            group: group.to_owned(),
        };
        request(&boxd.path("link"), Operation::Change(change))
    };
    let outputs = perform(&client, change(Some(0o4711), "1234", "5678"))
        .await
        .unwrap();
    let [Output::Metadata(metadata)] = outputs.as_slice() else {
        panic!("{outputs:?}");
    };
    assert_eq!(
        (metadata.mode, metadata.uid, metadata.gid),
        (0o4711, 1234, 5678)
    );
    assert_eq!(metadata.owner, "");
    let found = fs::metadata(boxd.path("file")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid()), (0o4711, 1234));
    perform(&client, change(None, "root", "")).await.unwrap();
    let found = fs::metadata(boxd.path("file")).unwrap();
    assert_eq!((found.uid(), found.gid()), (0, 5678));
    let code = failure(&client, change(None, "no-such-user", "")).await;
    assert_eq!(code, "user_not_found");
    let code = failure(&client, change(Some(0o10000), "", "")).await;
    assert_eq!(code, "validation_failed");
}

#[tokio::test]
async fn delete_acts_on_the_link_and_never_follows_one() {
    let (boxd, client) = TestBox::idle().await;
    let path = |name: &str| boxd.path(name);
    fs::create_dir_all(path("keep/inner")).unwrap();
    fs::create_dir_all(path("tree/a/b")).unwrap();
    symlink("../keep", path("tree/link")).unwrap();
    symlink("keep", path("link")).unwrap();
    assert_eq!(
        failure(&client, delete(&path("tree"), false)).await,
        "not_empty"
    );
    perform(&client, delete(&path("link"), true)).await.unwrap();
    perform(&client, delete(&path("tree"), true)).await.unwrap();
    assert!(path("keep/inner").is_dir());
    assert!(!path("link").is_symlink() && !path("tree").exists());
    assert_eq!(
        failure(&client, delete(&path("tree"), true)).await,
        "file_not_found"
    );
    assert_eq!(
        failure(&client, delete(Path::new("/"), true)).await,
        "invalid_path"
    );
}

#[tokio::test]
async fn tree_that_is_deeper_than_any_path_is_deleted() {
    let (boxd, client) = TestBox::idle().await;
    fs::create_dir(boxd.path("deep")).unwrap();
    let (name, mode) = ("d".repeat(100), Mode::from_raw_mode(0o755));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut directory = openat(CWD, boxd.path("deep"), flags, Mode::empty()).unwrap();
    for _ in 0..3000 {
        mkdirat(&directory, &name, mode).unwrap();
        directory = openat(&directory, &name, flags, Mode::empty()).unwrap();
    }
    perform(&client, delete(&boxd.path("deep"), true))
        .await
        .unwrap();
    assert!(!boxd.path("deep").exists());
}

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
    let make = make(&directory.join("own"), &MakeDirectory::default());
    perform(&client, by("12345:23456", make)).await.unwrap();
    let found = fs::metadata(directory.join("own")).unwrap();
    assert_eq!((found.uid(), found.gid()), (12345, 23456));
}

#[tokio::test]
async fn other_user_is_refused_where_boxd_is_not_root() {
    let mut setup = crate::support::Setup {
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
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    let failed = call.finish().await.unwrap_err();
    assert_eq!(failed.code, "unavailable");
    assert!(failed.message.contains("killed"), "{}", failed.message);
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
    boxd.signal(nix::sys::signal::Signal::SIGTERM);
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

fn children(parent: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).unwrap();
    tasks
        .flat_map(|task| {
            let children = task.unwrap().path().join("children");
            let children = fs::read_to_string(children).unwrap();
            let pids = children.split_whitespace().map(|pid| pid.parse().unwrap());
            pids.collect::<Vec<i32>>()
        })
        .collect()
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
