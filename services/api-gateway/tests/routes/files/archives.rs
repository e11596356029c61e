//! Directories as archives, and archives that no careful writer makes.

use reqwest::Method;
use serde_json::{Value, json};

use super::{content, directory, expect, files, metadata, modest, request, run};
use crate::support::answer::{Answer, check_head, header};
use crate::support::boxes::OwnedEnvironment;
use crate::support::caller::Caller;

const TAR: &str = "application/x-tar";
const GZIP: &str = "application/x-tar+gzip";
const ZSTD: &str = "application/x-tar+zstd";

/// One entry of an archive: its type, name, link target and content.
struct Entry<'a>(u8, &'a str, &'a str, &'a [u8]);

const fn file(name: &str) -> Entry<'_> {
    Entry(b'0', name, "", b"content")
}

const fn link<'a>(kind: u8, name: &'a str, target: &'a str) -> Entry<'a> {
    Entry(kind, name, target, b"")
}

/// A ustar archive. All entries have the set-uid bit and belong to 1234:1235.
fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut archive = Vec::new();
    for Entry(kind, name, target, content) in entries {
        let mut header = [0; 512];
        let mut set = |at: usize, text: &str| {
            header[at..at + text.len()].copy_from_slice(text.as_bytes());
        };
        set(0, name);
        set(100, "0004755");
        set(108, &format!("{:07o}", 1234));
        set(116, &format!("{:07o}", 1235));
        set(124, &format!("{:011o}", content.len()));
        set(136, &format!("{:011o}", 1_700_000_000));
        set(148, "        ");
        set(157, target);
        set(257, "ustar");
        header[156] = *kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        archive.extend_from_slice(&header);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

async fn unpack(caller: &Caller, path: &str, media_type: &str, archive: Vec<u8>) -> Answer {
    let headers = [("content-type", media_type)];
    request(caller, Method::PUT, path, &headers, archive).await
}

/// A directory as an archive.
async fn pack(caller: &Caller, path: &str, media_type: &str) -> Vec<u8> {
    let request = caller.request(Method::GET, path);
    let response = request.header("accept", media_type).send().await.unwrap();
    let headers = response.headers();
    assert_eq!(response.status(), 200);
    check_head(200, headers);
    assert_eq!(header(headers, "content-type"), Some(media_type));
    assert_eq!(header(headers, "etag"), None);
    response.bytes().await.unwrap().to_vec()
}

#[tokio::test]
async fn hostile_archives_are_refused_by_entry_and_write_nothing_outside() {
    let owned = modest().await;
    let caller = &owned.user.caller;
    let root = directory();
    let made = "mkdir -p target/directory outside && echo safe > outside/file \
                && echo here > target/existing && ln -s ../outside/file target/link \
                && ln -s ../outside target/directory-link && mkfifo target/pipe";
    run(owned, &format!("mkdir {root} && cd {root} && {made}")).await;
    let outside = format!("{root}/outside/file");
    let path = content(owned, &format!("{root}/target"));
    for refused in [
        file("../escaped"),
        file("a/../../escaped"),
        file("/tmp/escaped"),
        file("directory/../../../escaped"),
        file("link"),
        file("directory-link/escaped"),
        file("existing/below"),
        file("directory"),
        file("pipe"),
        link(b'2', "absolute", &outside),
        link(b'2', "up", "../outside"),
        link(b'2', "deep/up", "../../outside"),
        link(b'2', "turn", "deep/../../outside"),
        link(b'1', "hard", "../outside/file"),
        link(b'1', "hard", &outside),
        link(b'1', "hard", "link"),
        link(b'1', "hard", "directory-link/file"),
        link(b'3', "character-device", ""),
        link(b'4', "block-device", ""),
        link(b'6', "fifo", ""),
        link(b'5', "directory-link", ""),
        link(b'5', "existing", ""),
    ] {
        let name = refused.1;
        let archive = tar(&[file("first"), refused, file("last")]);
        let answer = unpack(caller, &path, TAR, archive).await;
        let message = answer.expect_error(400, "archive_invalid");
        assert!(message.contains(name), "{message} of {name}");
    }
    // Through a link of the same archive.
    for entries in [
        [link(b'2', "own", "directory"), file("own/file")],
        [link(b'2', "own", "existing"), file("own")],
    ] {
        let answer = unpack(caller, &path, TAR, tar(&entries)).await;
        let message = answer.expect_error(400, "archive_invalid");
        assert!(message.contains("own"), "{message}");
    }
    // The entries before a refused one stay.
    let seen = format!(
        "cd {root} && ls -A . outside && cat outside/file target/existing target/first && ls target"
    );
    let expected = ".:\noutside\ntarget\n\noutside:\nfile\nsafe\nhere\ncontentdeep\ndirectory\n\
                    directory-link\nexisting\nfirst\nlink\nown\npipe\n";
    assert_eq!(run(owned, &seen).await, expected);
    assert_eq!(run(owned, "ls /tmp | grep escaped || true").await, "");
}

#[tokio::test]
async fn malformed_archives_are_refused() {
    let owned = modest().await;
    let caller = &owned.user.caller;
    let root = directory();
    run(
        owned,
        &format!("mkdir -p {root}/source && date > {root}/source/a"),
    )
    .await;
    let source = content(owned, &format!("{root}/source"));
    let path = content(owned, &format!("{root}/target"));
    let (plain, gzip, zstd) = (
        pack(caller, &source, TAR).await,
        pack(caller, &source, GZIP).await,
        pack(caller, &source, ZSTD).await,
    );
    let mut wrong_sum = plain.clone();
    wrong_sum[0] ^= 1;
    for (what, media_type, archive) in [
        ("no archive", TAR, Vec::new()),
        ("half a header", TAR, plain[..100].to_vec()),
        ("half a file", TAR, plain[..520].to_vec()),
        ("a wrong sum", TAR, wrong_sum),
        ("truncated gzip", GZIP, gzip[..gzip.len() - 4].to_vec()),
        ("half of gzip", GZIP, gzip[..gzip.len() / 2].to_vec()),
        ("truncated zstd", ZSTD, zstd[..zstd.len() - 2].to_vec()),
        ("tar as gzip", GZIP, plain.clone()),
        ("gzip as zstd", ZSTD, gzip.clone()),
        // A window of 16 MiB.
        (
            "a large window",
            ZSTD,
            vec![0x28, 0xb5, 0x2f, 0xfd, 0, 14 << 3],
        ),
    ] {
        let answer = unpack(caller, &path, media_type, archive).await;
        expect(&answer, 400, "archive_invalid", what);
    }
    let of_empty = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";
    let headers = [("content-type", TAR), ("content-digest", of_empty)];
    let answer = request(caller, Method::PUT, &path, &headers, plain).await;
    answer.expect_error(400, "digest_mismatch");
}

/// The entries of a directory, several levels deep, without what a copy does not keep.
async fn tree(owned: &OwnedEnvironment, path: &str) -> Vec<Value> {
    let query = files(owned, &format!("?path={path}&depth=9"));
    let list = owned.user.caller.get(&query).await.expect_status(200);
    let entries = list["entries"].as_array().unwrap();
    let kept = entries.iter().map(|entry| {
        let size = if entry["type"] == "file" {
            entry["size"].clone()
        } else {
            Value::Null
        };
        let relative = entry["path"].as_str().unwrap().strip_prefix(path).unwrap();
        json!([
            relative,
            entry["name_base64"],
            entry["type"],
            entry["mode"],
            size,
            entry["target"]
        ])
    });
    kept.collect()
}

#[tokio::test]
async fn directory_is_downloaded_and_unpacked_in_every_form() {
    let owned = modest().await;
    let caller = &owned.user.caller;
    let root = directory();
    let name = "n".repeat(120);
    let made = format!(
        "mkdir -p d/empty d/deep/{name} && seq 100000 > d/deep/{name}/numbers \
         && printf x > \"d/$(printf 'broken\\377')\" && touch 'd/new\nline' \
         && ln -s ../numbers d/deep/link && ln -s /absolute d/outside && chmod 2750 d/empty"
    );
    run(owned, &format!("mkdir {root} && cd {root} && {made}")).await;
    let source = content(owned, &format!("{root}/d"));
    caller
        .get(&source)
        .await
        .expect_error(409, "is_a_directory");
    let absolute = pack(caller, &source, TAR).await;
    let refused = content(owned, &format!("{root}/refused"));
    let answer = unpack(caller, &refused, TAR, absolute).await;
    assert!(
        answer
            .expect_error(400, "archive_invalid")
            .contains("outside")
    );
    run(owned, &format!("rm {root}/d/outside")).await;
    let expected = tree(owned, &format!("{root}/d")).await;
    assert_eq!(expected.len(), 7, "{expected:?}");
    let sum = "cd deep/n* && sha256sum numbers";
    let numbers = run(owned, &format!("cd {root}/d && {sum}")).await;
    for (copy, media_type) in [("tar", TAR), ("gzip", GZIP), ("zstd", ZSTD)] {
        let archive = pack(caller, &source, media_type).await;
        let target = format!("{root}/{copy}");
        let answer = unpack(caller, &content(owned, &target), media_type, archive).await;
        expect(&answer, 201, "", media_type);
        assert_eq!(tree(owned, &target).await, expected, "{media_type}");
        assert_eq!(run(owned, &format!("cd {target} && {sum}")).await, numbers);
    }
}

#[tokio::test]
async fn owners_and_set_uid_bits_are_kept_for_root_alone() {
    let owned = modest().await;
    let caller = &owned.user.caller;
    let root = directory();
    run(owned, &format!("mkdir {root} && chmod 777 {root}")).await;
    for (user, mode, uid) in [("0", "4755", 1234), ("1000", "0755", 1000)] {
        let path = format!("{root}/{user}");
        let upload = format!("{}&user={user}", content(owned, &path));
        let answer = unpack(caller, &upload, TAR, tar(&[file("file")])).await;
        expect(&answer, 201, "", user);
        let found = metadata(owned, &format!("{path}/file")).await;
        assert_eq!(found["mode"], mode, "{found}");
        assert_eq!(found["uid"], uid, "{found}");
        assert_eq!(found["modified_at"], "2023-11-14T22:13:20Z", "{found}");
    }
}

/// The environment has 128 MiB of memory.
#[tokio::test]
async fn archive_that_unpacks_to_a_multiple_of_the_memory_takes_none() {
    const SIZE: u64 = 256 << 20;
    let owned = modest().await;
    let caller = &owned.user.caller;
    let root = directory();
    let made = format!("mkdir -p {root}/d && truncate -s {SIZE} {root}/d/zeros");
    run(owned, &made).await;
    let bomb = pack(caller, &content(owned, &format!("{root}/d")), GZIP).await;
    assert!(bomb.len() < 8 << 20, "{}", bomb.len());
    let path = content(owned, &format!("{root}/unpacked"));
    let answer = unpack(caller, &path, GZIP, bomb).await;
    expect(&answer, 201, "", "the bomb");
    let found = metadata(owned, &format!("{root}/unpacked/zeros")).await;
    assert_eq!(found["size"], SIZE, "{found}");
    run(owned, &format!("rm -r {root}")).await;
}
