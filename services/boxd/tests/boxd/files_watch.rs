//! Changes that a watch reports.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use agentbox_box_protocol::client::BoxClient;
use agentbox_contracts::files::file_input::Input;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{ChangeKind, FileChange, Watch};

use crate::files_support::{Call, children, failure, path_bytes, request};
use crate::support::{TestBox, eventually};

struct Watching {
    call: Call,
    /// Received and not looked at yet.
    pending: VecDeque<FileChange>,
}

impl Watching {
    async fn start(client: &BoxClient, path: &Path, recursive: bool, after: &str) -> Self {
        let watch = Watch {
            recursive,
            after: after.to_owned(),
        };
        let mut call = Call::open(client, request(path, Operation::Watch(watch)))
            .await
            .unwrap();
        assert_eq!(call.next().await, Output::Ready(()));
        Self {
            call,
            pending: VecDeque::new(),
        }
    }

    /// Reads changes until one has this kind and path.
    async fn until(&mut self, kind: ChangeKind, path: &Path) -> FileChange {
        loop {
            while let Some(change) = self.pending.pop_front() {
                if change.kind == i32::from(kind) && change.path == path_bytes(path) {
                    return change;
                }
            }
            let Output::Changes(changes) = self.call.next().await else {
                panic!("other output before {kind:?} of {}", path.display());
            };
            self.pending.extend(changes.changes);
        }
    }
}

#[tokio::test]
async fn each_kind_of_change_is_reported() {
    let (boxd, client) = TestBox::idle().await;
    let root = boxd.path("root");
    fs::create_dir(&root).unwrap();
    let file = root.join("file");
    let mut watching = Watching::start(&client, &root, false, "").await;
    fs::write(&file, "content").unwrap();
    assert_eq!(watching.until(ChangeKind::Created, &file).await.number, 1);
    watching.until(ChangeKind::Modified, &file).await;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    watching.until(ChangeKind::Attributes, &file).await;
    fs::rename(&file, root.join("new")).unwrap();
    let moved = watching.until(ChangeKind::Moved, &root.join("new")).await;
    assert_eq!(moved.from, Some(path_bytes(&file)));
    fs::write(boxd.path("outside"), "").unwrap();
    fs::rename(boxd.path("outside"), root.join("inside")).unwrap();
    let moved = watching
        .until(ChangeKind::Moved, &root.join("inside"))
        .await;
    assert_eq!(moved.from, None);
    fs::rename(root.join("inside"), boxd.path("outside")).unwrap();
    watching
        .until(ChangeKind::Deleted, &root.join("inside"))
        .await;
    fs::remove_file(root.join("new")).unwrap();
    watching.until(ChangeKind::Deleted, &root.join("new")).await;
    // The end of the watched directory is the end of the operation.
    fs::remove_dir(&root).unwrap();
    watching.until(ChangeKind::Deleted, &root).await;
    assert_eq!(watching.call.next().await, Output::Done(()));
}

#[tokio::test]
async fn new_and_renamed_directories_are_watched_when_recursive() {
    let (boxd, client) = TestBox::idle().await;
    let root = boxd.path("root");
    fs::create_dir_all(root.join("old/inner")).unwrap();
    let mut watching = Watching::start(&client, &root, true, "").await;
    fs::write(root.join("old/inner/first"), "").unwrap();
    watching
        .until(ChangeKind::Created, &root.join("old/inner/first"))
        .await;
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::write(root.join("a/b/c/file"), "").unwrap();
    watching
        .until(ChangeKind::Created, &root.join("a/b/c/file"))
        .await;
    fs::rename(root.join("old"), root.join("renamed")).unwrap();
    watching
        .until(ChangeKind::Moved, &root.join("renamed"))
        .await;
    fs::write(root.join("renamed/inner/second"), "").unwrap();
    watching
        .until(ChangeKind::Created, &root.join("renamed/inner/second"))
        .await;
}

#[tokio::test]
async fn first_change_after_a_reconnect_is_an_overflow() {
    let (boxd, client) = TestBox::idle().await;
    let mut watching = Watching::start(&client, boxd.dir.path(), false, "17").await;
    let overflow = watching.until(ChangeKind::Overflow, Path::new("")).await;
    assert_eq!(overflow.number, 1);
}

#[tokio::test]
async fn watch_ends_with_its_caller() {
    let (boxd, client) = TestBox::idle().await;
    let mut watching = Watching::start(&client, boxd.dir.path(), true, "").await;
    watching.call.send(Input::End(())).await;
    assert_eq!(watching.call.next().await, Output::Done(()));
    let watching = Watching::start(&client, boxd.dir.path(), true, "").await;
    drop(watching);
    let no_process = async || children(boxd.boxd_pid()).is_empty();
    eventually("the processes end", no_process).await;
}

#[tokio::test]
async fn missing_path_cannot_be_watched() {
    let (boxd, client) = TestBox::idle().await;
    let watch = request(&boxd.path("nothing"), Operation::Watch(Watch::default()));
    assert_eq!(failure(&client, watch).await, "file_not_found");
}
