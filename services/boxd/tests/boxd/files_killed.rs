//! What is left of an operation whose process is killed in the middle.
//!
//! The processes of these boxes may not write beyond [`LIMIT`] of a file: the kernel kills the one that
//! does (SIGXFSZ).

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use agentbox_box_protocol::client::BoxClient;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{Archive, Copy, FileRequest, Write};

use crate::files_support::{
    Failed, atomic, failure, open_directory, path_bytes, perform, put, request, tar, tar_file,
    unpacking,
};
use crate::support::{Setup, TestBox, eventually};

const LIMIT: usize = 4 * 1024 * 1024;
/// Another user than boxd's.
const USER: &str = "12345";

async fn limited() -> (TestBox, BoxClient) {
    let wrapper = format!("prlimit --core=0 --fsize={LIMIT}");
    TestBox::start(Setup {
        wrapper: wrapper.split(' ').map(str::to_owned).collect(),
        no_output_dir: true,
        ..Setup::default()
    })
    .await
}

fn copy_to(from: &Path, to: &Path, user: &str) -> FileRequest {
    let copy = Copy {
        to: path_bytes(to),
        overwrite: true,
        recursive: true,
    };
    FileRequest {
        user: user.to_owned(),
        ..request(from, Operation::Copy(copy))
    }
}

/// A file with data beyond the limit, and none before.
fn make_large(path: &Path) {
    let file = fs::File::create(path).unwrap();
    file.write_all_at(b"data", 2 * LIMIT as u64).unwrap();
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Waits until these names, and no hidden one, are left.
async fn only(directory: &Path, expected: &[&str]) {
    eventually("nothing else is left", async || {
        names(directory) == expected
    })
    .await;
}

fn assert_killed(failed: &Failed) {
    assert_eq!(failed.code, "unavailable", "{}", failed.message);
}

#[tokio::test]
async fn killed_copy_leaves_nothing_and_an_unchanged_target() {
    let (boxd, client) = limited().await;
    let directory = open_directory(&boxd, "shared");
    fs::create_dir_all(directory.join("tree/sub")).unwrap();
    symlink("nowhere", directory.join("tree/link")).unwrap();
    make_large(&directory.join("tree/sub/large"));
    fs::write(directory.join("old"), "content").unwrap();
    let mode = fs::Permissions::from_mode(0o666);
    fs::set_permissions(directory.join("old"), mode).unwrap();
    for user in ["", USER] {
        for (from, to) in [("tree", "new"), ("tree/sub/large", "old")] {
            let copy = copy_to(&directory.join(from), &directory.join(to), user);
            assert_killed(&perform(&client, copy).await.unwrap_err());
            only(&directory, &["old", "tree"]).await;
        }
    }
    assert_eq!(fs::read(directory.join("old")).unwrap(), b"content");
}

#[tokio::test]
async fn failed_copy_of_directories_without_permissions_leaves_nothing() {
    let (boxd, client) = TestBox::idle().await;
    let directory = open_directory(&boxd, "shared");
    // The owner of the copy may not write to the one, and not even read the other.
    for (name, mode) in [("read-only", 0o555), ("closed", 0o055)] {
        let locked = directory.join("tree").join(name);
        fs::create_dir_all(&locked).unwrap();
        fs::write(locked.join("file"), "").unwrap();
        fs::set_permissions(&locked, fs::Permissions::from_mode(mode)).unwrap();
    }
    // The complete copy cannot replace it.
    fs::create_dir_all(directory.join("full/sub")).unwrap();
    let copy = copy_to(&directory.join("tree"), &directory.join("full"), USER);
    assert_eq!(failure(&client, copy).await, "not_empty");
    only(&directory, &["full", "tree"]).await;
}

#[tokio::test]
async fn killed_upload_leaves_nothing_and_an_unchanged_target() {
    let (boxd, client) = limited().await;
    let directory = open_directory(&boxd, "target");
    fs::write(directory.join("old"), "content").unwrap();
    let large = vec![7; LIMIT + 1024 * 1024];
    let in_place = Write {
        atomic: false,
        ..atomic()
    };
    for (name, write) in [("old", atomic()), ("new", atomic()), ("new", in_place)] {
        let result = put(&client, &directory.join(name), write, &large).await;
        assert_killed(&result.unwrap_err());
        only(&directory, &["old"]).await;
    }
    assert_eq!(fs::read(directory.join("old")).unwrap(), b"content");
}

#[tokio::test]
async fn killed_unpacking_leaves_whole_files_only() {
    let (boxd, client) = limited().await;
    let directory = open_directory(&boxd, "target");
    fs::write(directory.join("old"), "content").unwrap();
    let large = vec![7; LIMIT + 1024 * 1024];
    for name in ["old", "new"] {
        let archive = tar(&[tar_file("first", b"first"), tar_file(name, &large)]);
        let result = put(&client, &directory, unpacking(Archive::Tar), &archive).await;
        assert_killed(&result.unwrap_err());
        only(&directory, &["first", "old"]).await;
        assert_eq!(fs::read(directory.join("first")).unwrap(), b"first");
    }
    assert_eq!(fs::read(directory.join("old")).unwrap(), b"content");
}
