//! Directories as tar streams, and archives from anybody that are unpacked.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use agentbox_box_protocol::client::BoxClient;
use agentbox_contracts::files::file_output::Output;
use agentbox_contracts::files::file_request::Operation;
use agentbox_contracts::files::{Archive, FileRequest, Read};
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::files_support::{
    Call, TarEntry, failure, get, open_directory, put, request, tar, tar_file, tar_link, unpacking,
    upload,
};
use crate::support::TestBox;

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(content, ruzstd::encoding::CompressionLevel::Fastest)
}

fn reading(archive: Archive) -> Read {
    Read {
        archive: archive.into(),
        ..Read::default()
    }
}

#[tokio::test]
async fn directory_is_packed_and_unpacked_again_in_each_form() {
    let (boxd, client) = TestBox::idle().await;
    let source = boxd.path("source");
    let long = "n".repeat(150);
    fs::create_dir_all(source.join("sub/empty")).unwrap();
    fs::write(source.join("file"), vec![7; 100_000]).unwrap();
    fs::write(source.join("sub").join(&long), "long").unwrap();
    fs::set_permissions(source.join("file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(source.join("sub"), fs::Permissions::from_mode(0o750)).unwrap();
    std::os::unix::fs::chown(source.join("file"), Some(1234), Some(1235)).unwrap();
    // chown(2) removed it.
    fs::set_permissions(source.join("file"), fs::Permissions::from_mode(0o4751)).unwrap();
    symlink("sub/empty", source.join("link")).unwrap();
    nix::unistd::mkfifo(&source.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for archive in [Archive::Tar, Archive::TarGzip, Archive::TarZstd] {
        let (opened, stream) = get(&client, &source, reading(archive)).await.unwrap();
        assert_eq!((opened.length, opened.etag.as_str()), (None, ""));
        let target = boxd.path(&format!("{archive:?}"));
        put(&client, &target, unpacking(archive), &stream)
            .await
            .unwrap();
        assert!(fs::read(target.join("file")).unwrap() == vec![7; 100_000]);
        let file = fs::metadata(target.join("file")).unwrap();
        assert_eq!(file.mode() & 0o7777, 0o4751);
        assert_eq!((file.uid(), file.gid()), (1234, 1235));
        let before = fs::metadata(source.join("file")).unwrap();
        assert_eq!(file.mtime(), before.mtime());
        assert_eq!(
            fs::metadata(target.join("sub")).unwrap().mode() & 0o7777,
            0o750
        );
        assert_eq!(fs::read(target.join("sub").join(&long)).unwrap(), b"long");
        assert!(target.join("sub/empty").is_dir());
        assert_eq!(
            fs::read_link(target.join("link")).unwrap(),
            Path::new("sub/empty")
        );
        assert!(!target.join("fifo").exists());
        // Again, over what is there.
        put(&client, &target, unpacking(archive), &stream)
            .await
            .unwrap();
    }
    let plain = request(&source, Operation::Read(Read::default()));
    assert_eq!(failure(&client, plain).await, "is_a_directory");
}

#[tokio::test]
async fn other_programs_read_the_streams_and_theirs_are_unpacked() {
    let (boxd, client) = TestBox::idle().await;
    let source = boxd.path("source");
    fs::create_dir_all(source.join("d".repeat(90)).join("e".repeat(90))).unwrap();
    let deep = source
        .join("d".repeat(90))
        .join("e".repeat(90))
        .join("file");
    fs::write(&deep, "content").unwrap();
    fs::hard_link(&deep, source.join("hard")).unwrap();
    for (archive, option) in [
        (Archive::Tar, "--no-auto-compress"),
        (Archive::TarGzip, "--gzip"),
    ] {
        let (_, stream) = get(&client, &source, reading(archive)).await.unwrap();
        fs::write(boxd.path("stream"), stream).unwrap();
        let script = format!(
            "mkdir theirs && tar -x {option} -f stream -C theirs && diff -r source theirs && \
             tar -c {option} --format=pax -f stream -C source . && rm -r theirs"
        );
        let outcome = crate::support::run(&client, crate::support::sh(&script)).await;
        assert_eq!(outcome.code(), 0, "{archive:?}: {outcome:?}");
        let target = boxd.path(&format!("{archive:?}"));
        let stream = fs::read(boxd.path("stream")).unwrap();
        put(&client, &target, unpacking(archive), &stream)
            .await
            .unwrap();
        let hard = fs::metadata(target.join("hard")).unwrap();
        assert_eq!((hard.nlink(), hard.len()), (2, 7));
    }
}

/// Unpacks a hostile archive into a new directory `target`; returns the message of its refusal.
async fn refused(boxd: &TestBox, client: &BoxClient, entries: &[TarEntry<'_>]) -> String {
    let target = boxd.path("target");
    if target.exists() {
        fs::remove_dir_all(&target).unwrap();
    }
    fs::create_dir(&target).unwrap();
    fs::write(boxd.path("outside"), "untouched").unwrap();
    symlink("../outside", target.join("existing-link")).unwrap();
    symlink("..", target.join("existing-directory-link")).unwrap();
    fs::write(target.join("existing"), "").unwrap();
    let result = put(client, &target, unpacking(Archive::Tar), &tar(entries)).await;
    let failed = result.unwrap_err();
    assert_eq!(failed.code, "archive_invalid", "{}", failed.message);
    assert_eq!(fs::read(boxd.path("outside")).unwrap(), b"untouched");
    assert!(!boxd.path("escaped").exists());
    failed.message
}

#[tokio::test]
async fn hostile_entries_are_refused_by_name_and_write_nothing_outside() {
    let (boxd, client) = TestBox::idle().await;
    let trailing = format!("dir/{}", "../".repeat(3));
    for entry in [
        tar_file("../escaped", b"x"),
        tar_file("a/../../escaped", b"x"),
        tar_file("/escaped", b"x"),
        tar_file("existing-link", b"x"),
        tar_file("existing-directory-link/escaped", b"x"),
        tar_file("existing/below", b"x"),
        tar_link(b'2', "absolute", "/etc/passwd"),
        tar_link(b'2', "up", "../outside"),
        tar_link(b'2', "deep/up", "../../outside"),
        tar_link(b'2', "turn", "deep/../../outside"),
        tar_link(b'1', "hard", "../outside"),
        tar_link(b'1', "hard", "/etc/passwd"),
        tar_link(b'1', "hard", "existing-link"),
        tar_link(b'1', "hard", "existing-directory-link/outside"),
        tar_link(b'1', "hard", "missing"),
        tar_link(b'3', "character-device", ""),
        tar_link(b'4', "block-device", ""),
        tar_link(b'6', "fifo", ""),
        tar_link(b'5', "existing-directory-link", ""),
        tar_link(b'5', "existing", ""),
        tar_file(&trailing, b"x"),
    ] {
        let name = entry.name.to_owned();
        let entries = [
            tar_file("first", b"kept"),
            entry,
            tar_file("last", b"never"),
        ];
        let message = refused(&boxd, &client, &entries).await;
        assert!(message.contains(&name), "{message} of {name}");
        // Those before it stay.
        assert_eq!(fs::read(boxd.path("target/first")).unwrap(), b"kept");
        assert!(!boxd.path("target/last").exists());
    }
}

#[tokio::test]
async fn archive_that_writes_through_its_own_link_is_refused() {
    let (boxd, client) = TestBox::idle().await;
    for entries in [
        [tar_link(b'2', "link", "sub"), tar_file("link/file", b"x")],
        [tar_link(b'2', "link", "file"), tar_file("link", b"x")],
    ] {
        let message = refused(&boxd, &client, &entries).await;
        assert!(message.contains("link"), "{message}");
    }
}

#[tokio::test]
async fn malformed_streams_are_refused() {
    let (boxd, client) = TestBox::idle().await;
    let whole = tar(&[tar_file("file", &[9; 50_000])]);
    let zipped = gzip(&whole);
    let frame = zstd(&whole);
    let mut wrong_sum = whole.clone();
    wrong_sum[0] = b'x';
    for (archive, stream) in [
        (Archive::Tar, whole[..20_000].to_vec()),
        (Archive::Tar, whole[..100].to_vec()),
        (Archive::Tar, Vec::new()),
        (Archive::Tar, wrong_sum),
        (Archive::TarGzip, zipped[..zipped.len() - 4].to_vec()),
        (Archive::TarGzip, zipped[..zipped.len() / 2].to_vec()),
        (Archive::TarGzip, whole.clone()),
        (Archive::TarZstd, frame[..frame.len() - 2].to_vec()),
        (Archive::TarZstd, zipped.clone()),
        // A window of 16 MiB.
        (
            Archive::TarZstd,
            vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 14 << 3],
        ),
    ] {
        let length = stream.len();
        let result = put(&client, &boxd.path("target"), unpacking(archive), &stream).await;
        let failed = result.unwrap_err();
        assert_eq!(
            failed.code, "archive_invalid",
            "{archive:?} of {length} bytes: {failed:?}"
        );
    }
}

// Compressing takes a while, in which another thread must answer the pings of boxd.
#[tokio::test(flavor = "multi_thread")]
async fn decompression_bomb_does_not_grow_boxd() {
    let (boxd, client) = TestBox::idle().await;
    // After the archive's end, 256 MiB of zeros that compress to a few hundred KiB.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&tar(&[tar_file("file", b"x")])).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(256 << 20), &mut encoder).unwrap();
    let bomb = encoder.finish().unwrap();
    let write = request(
        &boxd.path("target"),
        Operation::Write(unpacking(Archive::TarGzip)),
    );
    let before = boxd.resident_kib();
    upload(&client, write, &bomb).await.unwrap();
    assert_eq!(fs::read(boxd.path("target/file")).unwrap(), b"x");
    let grown = boxd.resident_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB");
}

#[tokio::test]
async fn set_uid_bits_and_owners_are_kept_for_root_alone() {
    let (boxd, client) = TestBox::idle().await;
    let directory = open_directory(&boxd, "shared");
    let archive = tar(&[TarEntry {
        mode: 0o6755,
        ..tar_file("file", b"x")
    }]);
    let write = |name: &str| {
        let unpacking = unpacking(Archive::Tar);
        request(&directory.join(name), Operation::Write(unpacking))
    };
    upload(&client, write("root"), &archive).await.unwrap();
    let found = fs::metadata(directory.join("root/file")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid()), (0o6755, 1234));
    let by_user = FileRequest {
        user: "12345".to_owned(),
        ..write("user")
    };
    upload(&client, by_user, &archive).await.unwrap();
    let found = fs::metadata(directory.join("user/file")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid()), (0o755, 12345));
}

#[tokio::test]
async fn existing_devices_and_directories_stay_in_place() {
    let (boxd, client) = TestBox::idle().await;
    let target = boxd.path("target");
    fs::create_dir_all(target.join("directory/inner")).unwrap();
    nix::unistd::mkfifo(&target.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for name in ["fifo", "directory"] {
        let stream = tar(&[tar_file(name, b"x")]);
        let result = put(&client, &target, unpacking(Archive::Tar), &stream).await;
        assert_eq!(result.unwrap_err().code, "archive_invalid", "{name}");
    }
    assert!(
        fs::symlink_metadata(target.join("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert!(target.join("directory/inner").is_dir());
}

#[tokio::test]
async fn aborted_unpacking_is_no_invalid_archive() {
    use agentbox_contracts::files::file_input::Input;
    let (boxd, client) = TestBox::idle().await;
    let write = request(
        &boxd.path("target"),
        Operation::Write(unpacking(Archive::Tar)),
    );
    let mut call = Call::open(&client, write).await.unwrap();
    assert_eq!(call.next().await, Output::Ready(()));
    let archive = tar(&[tar_file("file", &[1; 10_000])]);
    call.send(Input::Data(archive[..5000].to_vec().into()))
        .await;
    let Call { inputs, outputs } = call;
    // The content ends without its end.
    let (unused, _) = tokio::sync::mpsc::channel(1);
    drop(inputs);
    let mut call = Call {
        inputs: unused,
        outputs,
    };
    assert_eq!(call.finish().await.unwrap_err().code, "bad_request");
}
