//! Storing files: atomically and in place, under conditions, and uploads that fail.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use agentbox_box_protocol::client::BoxClient;
use agentbox_contracts::files::file_input::Input;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{ContentDigest, DigestAlgorithm, FileRequest, Read, Stored, Write};
use bytes::Bytes;
use rustix::fs::{FlockOperation, XattrFlags, flock, getxattr, setxattr};
use sha2::{Digest as _, Sha256};

use crate::files_support::{
    Call, Failed, assert_no_hidden_files, atomic, failure, get, open_directory, put, request,
    upload,
};
use crate::support::{Setup, TestBox, eventually};

fn in_place() -> Write {
    Write {
        atomic: false,
        ..atomic()
    }
}

fn code(result: Result<Stored, Failed>) -> String {
    result.unwrap_err().code
}

async fn etag(client: &BoxClient, path: &Path) -> String {
    get(client, path, Read::default()).await.unwrap().0.etag
}

#[tokio::test]
async fn upload_creates_then_replaces_and_answers_the_etag() {
    let (boxd, client) = TestBox::idle().await;
    let path = boxd.path("new/directory/file");
    let content: Vec<u8> = (0..300_000u32).map(|n| (n % 249) as u8).collect();
    for write in [atomic(), in_place()] {
        let created = put(&client, &path, write.clone(), &content).await.unwrap();
        assert!(created.created);
        assert_eq!(created.etag, etag(&client, &path).await);
        assert!(fs::read(&path).unwrap() == content);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
        let replaced = put(&client, &path, write, b"short").await.unwrap();
        assert!(!replaced.created && replaced.etag != created.etag);
        assert_eq!(replaced.etag, etag(&client, &path).await);
        assert_eq!(fs::read(&path).unwrap(), b"short");
        fs::remove_file(&path).unwrap();
    }
    let orphan = Write {
        parents: false,
        ..atomic()
    };
    let missing = put(&client, &boxd.path("no/such/file"), orphan, b"").await;
    assert_eq!(code(missing), "file_not_found");
}

#[tokio::test]
async fn replacement_keeps_mode_owner_and_attributes() {
    let (boxd, client) = TestBox::idle().await;
    let path = boxd.path("file");
    fs::write(&path, "before").unwrap();
    std::os::unix::fs::chown(&path, Some(1234), Some(5678)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4750)).unwrap();
    // Not each file system has them.
    let has_attributes = setxattr(&path, "user.test", b"value", XattrFlags::empty()).is_ok();
    let inode = fs::metadata(&path).unwrap().ino();
    put(&client, &path, atomic(), b"after").await.unwrap();
    let found = fs::metadata(&path).unwrap();
    assert_ne!(found.ino(), inode);
    assert_eq!((found.uid(), found.gid()), (1234, 5678));
    assert_eq!(found.mode() & 0o7777, 0o4750);
    if has_attributes {
        let mut value = [0u8; 16];
        let length = getxattr(&path, "user.test", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"value");
    }
    let with_mode = Write {
        mode: Some(0o600),
        ..atomic()
    };
    put(&client, &path, with_mode, b"again").await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
}

#[tokio::test]
async fn upload_through_links_reaches_the_final_target() {
    let (boxd, client) = TestBox::idle().await;
    fs::create_dir_all(boxd.path("real/sub")).unwrap();
    symlink("real/second", boxd.path("first")).unwrap();
    symlink("sub/file", boxd.path("real/second")).unwrap();
    for write in [atomic(), in_place()] {
        put(&client, &boxd.path("first"), write, b"content")
            .await
            .unwrap();
        assert!(boxd.path("first").is_symlink() && boxd.path("real/second").is_symlink());
        let target = boxd.path("real/sub/file");
        assert_eq!(fs::read(&target).unwrap(), b"content");
        fs::remove_file(target).unwrap();
    }
    symlink("loop", boxd.path("loop")).unwrap();
    let result = put(&client, &boxd.path("loop"), atomic(), b"").await;
    assert_eq!(code(result), "too_many_links");
}

#[tokio::test]
async fn directories_fifos_devices_and_mount_points_are_not_replaced() {
    let wrapper = "unshare --mount --propagation private";
    let setup = Setup {
        wrapper: wrapper.split(' ').map(str::to_owned).collect(),
        ..Setup::default()
    };
    let (boxd, client) = TestBox::start(setup).await;
    nix::unistd::mkfifo(&boxd.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for name in ["mounted", "source"] {
        fs::write(boxd.path(name), name).unwrap();
    }
    let (source, target) = (boxd.path("source"), boxd.path("mounted"));
    let bind = format!("mount --bind {} {}", source.display(), target.display());
    let outcome = crate::support::run(&client, crate::support::sh(&bind)).await;
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    for (path, write, word) in [
        (boxd.dir.path().to_owned(), atomic(), "is_a_directory"),
        (boxd.path("fifo"), atomic(), "not_replaceable"),
        (boxd.path("fifo"), in_place(), "not_replaceable"),
        ("/dev/null".into(), atomic(), "not_replaceable"),
        (boxd.path("mounted"), atomic(), "not_replaceable"),
    ] {
        let result = put(&client, &path, write, b"x").await;
        assert_eq!(code(result), word, "{}", path.display());
    }
    put(&client, &boxd.path("mounted"), in_place(), b"through")
        .await
        .unwrap();
    assert_eq!(fs::read(boxd.path("source")).unwrap(), b"through");
    assert_no_hidden_files(boxd.dir.path());
}

#[tokio::test]
async fn read_only_and_full_file_systems_have_their_words() {
    let wrapper = "unshare --mount --propagation private";
    let setup = Setup {
        wrapper: wrapper.split(' ').map(str::to_owned).collect(),
        ..Setup::default()
    };
    let (boxd, client) = TestBox::start(setup).await;
    for name in ["read-only", "small"] {
        fs::create_dir(boxd.path(name)).unwrap();
    }
    let script = "mount -t tmpfs none read-only && echo x >read-only/file && \
                  mount -o remount,ro read-only && mount -t tmpfs -o size=1m none small";
    let outcome = crate::support::run(&client, crate::support::sh(script)).await;
    assert_eq!(outcome.code(), 0, "{outcome:?}");
    for write in [atomic(), in_place()] {
        for name in ["read-only/file", "read-only/new"] {
            let result = put(&client, &boxd.path(name), write.clone(), b"x").await;
            assert_eq!(code(result), "read_only_filesystem", "{name}");
        }
    }
    let large = vec![7; 4 * 1024 * 1024];
    let announced = Write {
        length: Some(large.len() as u64),
        ..atomic()
    };
    let mut call = Call::open(
        &client,
        request(&boxd.path("small/file"), Operation::Write(announced)),
    )
    .await
    .unwrap();
    // Before any content.
    let failed = call.finish().await.unwrap_err();
    assert_eq!(failed.code, "no_space");
    put(&client, &boxd.path("small/file"), atomic(), b"before")
        .await
        .unwrap();
    let result = put(&client, &boxd.path("small/file"), atomic(), &large).await;
    assert_eq!(code(result), "no_space");
    let (_, kept) = get(&client, &boxd.path("small/file"), Read::default())
        .await
        .unwrap();
    assert_eq!(kept, b"before");
    let listed = crate::support::run(&client, crate::support::sh("ls -A small")).await;
    assert_eq!(listed.text(), "file\n");
}

#[tokio::test]
async fn conditions_are_checked_before_content_is_taken() {
    let (boxd, client) = TestBox::idle().await;
    let path = boxd.path("file");
    let if_match = |tag: &str| Write {
        if_match: vec![tag.to_owned()],
        ..atomic()
    };
    let if_absent = Write {
        if_absent: true,
        ..atomic()
    };
    let refused = |write: Write| request(&path, Operation::Write(write));
    assert_eq!(
        failure(&client, refused(if_match("*"))).await,
        "precondition_failed"
    );
    put(&client, &path, if_absent.clone(), b"first")
        .await
        .unwrap();
    for write in [
        if_absent.clone(),
        if_match("\"other\""),
        Write {
            atomic: false,
            ..if_absent
        },
    ] {
        assert_eq!(
            failure(&client, refused(write)).await,
            "precondition_failed"
        );
    }
    assert_eq!(fs::read(&path).unwrap(), b"first");
    let tag = etag(&client, &path).await;
    put(&client, &path, if_match(&tag), b"second")
        .await
        .unwrap();
    assert_eq!(
        failure(&client, refused(if_match(&tag))).await,
        "precondition_failed"
    );
    put(&client, &path, if_match("*"), b"third").await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"third");
}

#[tokio::test]
async fn of_conditional_writers_at_once_one_wins() {
    let (boxd, client) = TestBox::idle().await;
    let path = boxd.path("file");
    fs::write(&path, "before").unwrap();
    let tag = etag(&client, &path).await;
    let if_match = Write {
        if_match: vec![tag],
        ..atomic()
    };
    let if_absent = Write {
        if_absent: true,
        ..atomic()
    };
    for (path, write) in [(path, if_match), (boxd.path("new"), if_absent)] {
        // All have passed the first check before one of them is complete.
        let mut calls = Vec::new();
        for _ in 0..8 {
            let write = request(&path, Operation::Write(write.clone()));
            let mut call = Call::open(&client, write).await.unwrap();
            assert_eq!(call.next().await, Output::Ready(()));
            calls.push(call);
        }
        let finishing = calls
            .into_iter()
            .enumerate()
            .map(|(number, mut call)| async move {
                let content = Bytes::from(format!("writer {number}"));
                call.send(Input::Data(content)).await;
                call.send(Input::End(())).await;
                call.finish().await
            });
        let results = futures::future::join_all(finishing).await;
        let winners: Vec<_> = (0..8).filter(|number| results[*number].is_ok()).collect();
        let [winner] = winners[..] else {
            panic!("{winners:?}");
        };
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            format!("writer {winner}")
        );
        for result in results.iter().filter_map(|result| result.as_ref().err()) {
            assert_eq!(result.code, "precondition_failed");
        }
    }
    assert_no_hidden_files(boxd.dir.path());
}

#[tokio::test]
async fn aborted_upload_leaves_nothing_and_an_unchanged_target() {
    let (boxd, client) = TestBox::idle().await;
    let directory = boxd.path("target");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), "before").unwrap();
    for (name, ends_inputs) in [
        ("file", true),
        ("file", false),
        ("new", true),
        ("new", false),
    ] {
        let write = request(&directory.join(name), Operation::Write(atomic()));
        let mut call = Call::open(&client, write).await.unwrap();
        assert_eq!(call.next().await, Output::Ready(()));
        call.send(Input::Data(Bytes::from_static(b"half"))).await;
        if ends_inputs {
            // Without the end of the content.
            let Call {
                inputs,
                mut outputs,
            } = call;
            drop(inputs);
            let last = outputs.message().await.unwrap().unwrap().output.unwrap();
            let Output::Failed(failed) = last else {
                panic!("{last:?}");
            };
            assert_eq!(failed.code, "bad_request");
        } else {
            drop(call);
        }
        eventually("only the target is left", async || {
            let names: Vec<_> = fs::read_dir(&directory)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names == ["file"]
        })
        .await;
        assert_eq!(fs::read(directory.join("file")).unwrap(), b"before");
    }
}

#[tokio::test]
async fn aborted_upload_in_place_keeps_a_file_that_replaced_its_own() {
    let (boxd, client) = TestBox::idle().await;
    let path = boxd.path("file");
    let write = request(&path, Operation::Write(in_place()));
    let mut call = Call::open(&client, write).await.unwrap();
    assert_eq!(call.next().await, Output::Ready(()));
    fs::write(boxd.path("other"), "other").unwrap();
    fs::rename(boxd.path("other"), &path).unwrap();
    let Call {
        inputs,
        mut outputs,
    } = call;
    drop(inputs);
    let last = outputs.message().await.unwrap().unwrap().output.unwrap();
    assert!(matches!(last, Output::Failed(_)), "{last:?}");
    assert_eq!(fs::read(&path).unwrap(), b"other");
}

#[tokio::test]
async fn upload_whose_file_is_taken_away_at_once_is_stored() {
    let (boxd, client) = TestBox::idle().await;
    let path = boxd.path("inbox");
    let is_over = Arc::new(AtomicBool::new(false));
    let consumer = {
        let (path, is_over) = (path.clone(), Arc::clone(&is_over));
        std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let _ = fs::remove_file(&path);
            }
        })
    };
    let mut results = Vec::new();
    for _ in 0..300 {
        results.push(put(&client, &path, atomic(), b"message").await);
    }
    is_over.store(true, Ordering::Relaxed);
    consumer.join().unwrap();
    for result in results {
        assert!(result.unwrap().etag.starts_with('"'));
    }
}

#[tokio::test]
async fn digest_is_verified_before_the_target_changes() {
    let (boxd, client) = TestBox::idle().await;
    let path = boxd.path("file");
    let with_digest = |content: &[u8]| Write {
        digests: vec![ContentDigest {
            algorithm: DigestAlgorithm::Sha256.into(),
            value: Sha256::digest(content).to_vec().into(),
        }],
        ..atomic()
    };
    put(&client, &path, with_digest(b"right"), b"right")
        .await
        .unwrap();
    let result = put(&client, &path, with_digest(b"other"), b"wrong").await;
    assert_eq!(code(result), "digest_mismatch");
    assert_eq!(fs::read(&path).unwrap(), b"right");
    let in_place = Write {
        atomic: false,
        ..with_digest(b"other")
    };
    let result = put(&client, &boxd.path("new"), in_place, b"wrong").await;
    assert_eq!(code(result), "digest_mismatch");
    assert!(!boxd.path("new").exists());
    assert_no_hidden_files(boxd.dir.path());
}

#[tokio::test]
async fn other_user_replaces_only_files_that_the_user_may_write() {
    let (boxd, client) = TestBox::idle().await;
    let directory = open_directory(&boxd, "shared");
    fs::write(directory.join("private"), "root").unwrap();
    fs::write(directory.join("public"), "root").unwrap();
    let mode = fs::Permissions::from_mode(0o666);
    fs::set_permissions(directory.join("public"), mode).unwrap();
    let by_user = |name: &str, write: Write| FileRequest {
        user: "12345".to_owned(),
        ..request(&directory.join(name), Operation::Write(write))
    };
    let result = upload(&client, by_user("private", atomic()), b"x").await;
    assert_eq!(code(result), "permission_denied");
    // A replacement could not keep root as the owner.
    let result = upload(&client, by_user("public", atomic()), b"x").await;
    assert_eq!(code(result), "permission_denied");
    upload(&client, by_user("public", in_place()), b"written")
        .await
        .unwrap();
    assert_eq!(fs::read(directory.join("public")).unwrap(), b"written");
    upload(&client, by_user("own", atomic()), b"mine")
        .await
        .unwrap();
    assert_eq!(fs::metadata(directory.join("own")).unwrap().uid(), 12345);
    assert_no_hidden_files(&directory);
}

#[tokio::test]
async fn upload_waits_for_the_lock_of_its_directory() {
    let (boxd, client) = TestBox::idle().await;
    let directory = boxd.path("locked");
    fs::create_dir(&directory).unwrap();
    let holder = fs::File::open(&directory).unwrap();
    flock(&holder, FlockOperation::LockExclusive).unwrap();
    let write = request(&directory.join("file"), Operation::Write(atomic()));
    let mut call = Call::open(&client, write).await.unwrap();
    assert_eq!(call.next().await, Output::Ready(()));
    call.send(Input::End(())).await;
    assert!(!directory.join("file").exists());
    drop(holder);
    assert!(matches!(call.next().await, Output::Stored(_)));
    assert!(directory.join("file").exists());
}
