//! File operations that change names, modes and owners.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{Change, Copy, Delete, FileRequest, MakeDirectory, Move};
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, mkdirat, openat, renameat_with};

use crate::files_support::{assert_no_hidden_files, failure, path_bytes, perform, request};
use crate::support::TestBox;

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
async fn new_directory_that_becomes_a_link_does_not_change_its_target() {
    let (boxd, client) = TestBox::idle().await;
    let path = |name: &str| boxd.path(name);
    fs::write(path("victim"), "").unwrap();
    fs::set_permissions(path("victim"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink("victim", path("bait")).unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let attacker = {
        let (new, bait, is_over) = (path("new"), path("bait"), Arc::clone(&is_over));
        std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let exchange = RenameFlags::EXCHANGE;
                if renameat_with(CWD, &new, CWD, &bait, exchange).is_ok() {
                    fs::remove_dir(&bait).unwrap();
                    fs::rename(&new, &bait).unwrap();
                }
            }
        })
    };
    for _ in 0..300 {
        let request = MakeDirectory {
            mode: Some(0o777),
            parents: false,
        };
        // Fails when it meets the link.
        let _ = perform(&client, make(&path("new"), &request)).await;
    }
    is_over.store(true, Ordering::Relaxed);
    attacker.join().unwrap();
    let found = fs::metadata(path("victim")).unwrap();
    assert_eq!(found.mode() & 0o7777, 0o600);
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

#[tokio::test]
async fn copy_of_another_users_program_has_no_set_uid_bit() {
    let (boxd, client) = TestBox::idle().await;
    let path = |name: &str| boxd.path(name);
    fs::create_dir(path("tree")).unwrap();
    for (name, owner, group, expected) in [
        ("own", 0, 0, 0o6755),
        ("foreign", 1234, 1234, 0o755),
        ("group", 0, 1234, 0o4755),
    ] {
        let from = path("tree").join(name);
        fs::write(&from, "").unwrap();
        std::os::unix::fs::chown(&from, Some(owner), Some(group)).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o6755)).unwrap();
        let to = path(name);
        perform(&client, copy_to(&from, &to, false, false))
            .await
            .unwrap();
        let found = fs::metadata(&to).unwrap();
        assert_eq!((found.uid(), found.gid()), (0, 0), "{name}");
        assert_eq!(found.mode() & 0o7777, expected, "{name}");
    }
    let copy = copy_to(&path("tree"), &path("copy"), false, true);
    perform(&client, copy).await.unwrap();
    let found = fs::metadata(path("copy/foreign")).unwrap();
    assert_eq!(found.mode() & 0o7777, 0o755);
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
