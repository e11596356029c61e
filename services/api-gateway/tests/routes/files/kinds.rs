//! Every kind of file, and every kind of name.

use reqwest::Method;
use serde_json::{Value, json};

use super::{content, directory, expect, files, metadata, modest, put, request, run};
use crate::support::boxes::OwnedEnvironment;
use crate::support::caller::send;

/// A status, and the error or nothing.
type Expected = (u16, &'static str);

const CREATED: Expected = (201, "");
const DONE: Expected = (204, "");

#[tokio::test]
async fn contents_are_read_and_written_by_the_kind_of_the_file() {
    let owned = modest().await;
    let caller = &owned.user.caller;
    let root = directory();
    let made = "mkdir directory && printf before > file && chmod 640 file && ln -s file link \
                && ln -s link second && ln -s missing dangling && ln -s loop loop \
                && ln -s directory to-directory && mkfifo fifo";
    run(owned, &format!("mkdir {root} && cd {root} && {made}")).await;
    let found = (200, "");
    let directory = (409, "is_a_directory");
    let device = (409, "not_replaceable");
    let not_read = (400, "validation_failed");
    let link = (400, "too_many_links");
    let below = (409, "not_a_directory");
    let long = (400, "name_too_long");
    let invalid = (400, "invalid_path");
    let at = |name: &str| format!("{root}/{name}");
    // The answers to a download, an atomic upload and one in place, in this order.
    for (path, read, replaced, written) in [
        (at("file"), found, DONE, DONE),
        (at("second"), found, DONE, DONE),
        (at("dangling"), (404, "file_not_found"), CREATED, DONE),
        (at("directory"), directory, directory, directory),
        (at("to-directory"), directory, directory, directory),
        (at("loop"), link, link, link),
        (at("fifo"), not_read, device, device),
        (at("file/below"), below, below, below),
        (at(&"n".repeat(256)), long, long, long),
        ("/dev/null".to_owned(), not_read, device, device),
        // A mount point.
        ("/etc/hosts".to_owned(), found, device, DONE),
        ("/".to_owned(), directory, directory, directory),
        ("relative".to_owned(), invalid, invalid, invalid),
        ("/a%00b".to_owned(), invalid, invalid, invalid),
        (format!("/{}", "d/".repeat(2048)), invalid, invalid, invalid),
    ] {
        let in_place = format!("{}&atomic=false", content(owned, &path));
        let path = content(owned, &path);
        expect(&caller.get(&path).await, read.0, read.1, &path);
        let answer = put(caller, &path, "after").await;
        expect(&answer, replaced.0, replaced.1, &path);
        let answer = put(caller, &in_place, "after").await;
        expect(&answer, written.0, written.1, &in_place);
    }
    for name in ["file", "missing"] {
        let answer = caller.get(&content(owned, &at(name))).await;
        assert_eq!((answer.status, answer.text.as_str()), (200, "after"));
    }
    // The mode is kept, the links are links still, and no temporary file is left.
    assert_eq!(metadata(owned, &at("file")).await["mode"], "0640");
    for (name, target) in [
        ("link", "file"),
        ("second", "link"),
        ("dangling", "missing"),
    ] {
        let found = metadata(owned, &at(name)).await;
        assert_eq!(found["type"], "symlink", "{found}");
        assert_eq!(found["target"], target, "{found}");
    }
    let hidden = format!("ls -A {root} /etc /dev | grep agentbox- || true");
    assert_eq!(run(owned, &hidden).await, "");
    let orphan = format!("{}&parents=false", content(owned, &at("none/file")));
    put(caller, &orphan, "")
        .await
        .expect_error(404, "file_not_found");
}

/// Sends a change and asserts its answer.
async fn change(
    owned: &OwnedEnvironment,
    method: Method,
    rest: &str,
    body: &Value,
    expected: Expected,
) {
    let what = format!("{method} {rest} {body}");
    let mut request = owned.user.caller.request(method, &files(owned, rest));
    if !body.is_null() {
        request = request.json(body);
    }
    expect(&send(request).await, expected.0, expected.1, &what);
}

#[tokio::test]
async fn move_and_copy_act_on_links_and_refuse_what_is_there() {
    let owned = modest().await;
    let root = directory();
    let made = "mkdir -p full/inner directory && echo a > full/a && echo file > file \
                && echo other > other && ln -s file link && mkfifo fifo";
    run(owned, &format!("mkdir {root} && cd {root} && {made}")).await;
    let exists = (409, "already_exists");
    let inside = (400, "invalid_path");
    for (kind, from, to, fields, expected) in [
        ("move", "link", "moved", json!({}), DONE),
        ("copy", "moved", "copied", json!({}), DONE),
        ("copy", "moved", "file", json!({}), exists),
        ("move", "file", "other", json!({}), exists),
        ("move", "file", "other", json!({"overwrite": true}), DONE),
        ("move", "file", "x", json!({}), (404, "file_not_found")),
        ("copy", "file", "x", json!({}), (404, "file_not_found")),
        (
            "move",
            "other",
            "none/x",
            json!({}),
            (404, "file_not_found"),
        ),
        ("move", "directory", "directory/below", json!({}), inside),
        ("copy", "full", "x", json!({}), (409, "is_a_directory")),
        (
            "copy",
            "full",
            "full/inner/x",
            json!({"recursive": true}),
            inside,
        ),
        ("copy", "full", "again", json!({"recursive": true}), DONE),
        ("copy", "fifo", "x", json!({}), (400, "validation_failed")),
        (
            "copy",
            "other",
            "again",
            json!({"overwrite": true}),
            (409, "is_a_directory"),
        ),
        ("move", "fifo", "moved-fifo", json!({}), DONE),
    ] {
        let mut body = fields;
        body["from"] = json!(format!("{root}/{from}"));
        body["to"] = json!(format!("{root}/{to}"));
        change(owned, Method::POST, &format!("/{kind}"), &body, expected).await;
    }
    for name in ["moved", "copied"] {
        let found = metadata(owned, &format!("{root}/{name}")).await;
        assert_eq!(found["target"], "file", "{found}");
    }
    let seen = run(
        owned,
        &format!("cd {root} && cat other again/a && find . | sort"),
    )
    .await;
    let names = "./again ./again/a ./again/inner ./copied ./directory ./full ./full/a \
                 ./full/inner ./moved ./moved-fifo ./other";
    let names = names.split_whitespace().collect::<Vec<_>>().join("\n");
    assert_eq!(seen, format!("file\na\n.\n{names}\n"));
    // Another file system: a move is refused, a copy is not.
    let elsewhere = format!("/dev/shm/{:016x}", rand::random::<u64>());
    let body = json!({"from": format!("{root}/other"), "to": elsewhere});
    change(owned, Method::POST, "/move", &body, (409, "cross_device")).await;
    change(owned, Method::POST, "/copy", &body, DONE).await;
    let query = format!("?path={elsewhere}");
    change(owned, Method::DELETE, &query, &Value::Null, DONE).await;
}

#[tokio::test]
async fn directories_deletions_and_modes_have_the_documented_answers() {
    let owned = modest().await;
    let root = directory();
    let made = "mkdir -p full/inner && touch full/a file && ln -s full link";
    run(owned, &format!("mkdir {root} && cd {root} && {made}")).await;
    let at = |name: &str| format!("{root}/{name}");
    let query = |name: &str| format!("?path={root}/{name}");
    let (none, found) = (Value::Null, (200, ""));
    let missing = (404, "file_not_found");
    let deep = json!({"path": at("a/b/c"), "mode": "0700"});
    let orphan = json!({"path": at("x/y"), "parents": false});
    let existing = json!({"path": at("file")});
    for (body, expected) in [
        (deep.clone(), CREATED),
        (deep, found),
        (orphan, missing),
        (existing, (409, "already_exists")),
    ] {
        change(owned, Method::POST, "/directories", &body, expected).await;
    }
    assert_eq!(metadata(owned, &at("a/b/c")).await["mode"], "0700");

    for (name, body, expected) in [
        ("file", json!({"mode": "4755"}), found),
        ("file", json!({"mode": "9"}), (400, "validation_failed")),
        ("file", json!({}), (400, "validation_failed")),
        (
            "file",
            json!({"owner": "no-such-user"}),
            (400, "user_not_found"),
        ),
        ("x", json!({"mode": "0600"}), missing),
        (
            "file",
            json!({"owner": "1234", "group": "1235", "mode": "0601"}),
            found,
        ),
    ] {
        change(owned, Method::PATCH, &query(name), &body, expected).await;
    }
    let changed = metadata(owned, &at("file")).await;
    for (field, value) in [
        ("mode", json!("0601")),
        ("uid", json!(1234)),
        ("gid", json!(1235)),
        ("type", json!("file")),
        ("size", json!(0)),
    ] {
        assert_eq!(changed[field], value, "{changed}");
    }

    for (path, expected) in [
        (query("link"), DONE),
        (query("full"), (409, "not_empty")),
        (format!("{}&recursive=true", query("full")), DONE),
        (query("full"), missing),
        (query("file/below"), (409, "not_a_directory")),
        (query("file"), DONE),
        // A mount point.
        ("?path=/etc/hostname".to_owned(), (409, "busy")),
        ("?path=/".to_owned(), (400, "invalid_path")),
    ] {
        change(owned, Method::DELETE, &path, &none, expected).await;
    }
    assert_eq!(run(owned, &format!("ls -A {root}")).await, "a\n");
}

#[tokio::test]
async fn names_with_newlines_and_broken_utf8_are_kept() {
    let owned = modest().await;
    let caller = &owned.user.caller;
    let root = directory();
    for name in ["new%0Aline", "broken%FF%FE", "a%20b%2B%22%25"] {
        let path = content(owned, &format!("{root}/{name}"));
        assert_eq!(put(caller, &path, name).await.status, 201, "{name}");
        assert_eq!(caller.get(&path).await.text, name);
    }
    let list = caller.get(&files(owned, &format!("?path={root}"))).await;
    let list = list.expect_status(200);
    let names: Vec<&Value> = list["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| &entry["name"])
        .collect();
    assert_eq!(names, ["a b+\"%", "broken\u{fffd}\u{fffd}", "new\nline"]);
    assert_eq!(list["entries"][1]["name_base64"], "YnJva2Vu//4=");
    assert_eq!(list["entries"][2].get("name_base64"), None);
    let encoded = list["entries"][1]["path_base64"].as_str().unwrap();
    let body = json!({"from_base64": encoded, "to": format!("{root}/plain")});
    change(owned, Method::POST, "/move", &body, DONE).await;
    let query = format!("?path={root}/new%0Aline");
    change(owned, Method::DELETE, &query, &Value::Null, DONE).await;
    let listed = run(owned, &format!("ls -A {root}")).await;
    assert_eq!(listed, "a b+\"%\nplain\n");
}

#[tokio::test]
async fn huge_sparse_file_is_read_in_parts_and_copied_with_its_holes() {
    const SIZE: u64 = 100 << 30;
    let owned = modest().await;
    let caller = &owned.user.caller;
    let root = directory();
    let made = format!("truncate -s {SIZE} sparse && printf end >> sparse");
    run(owned, &format!("mkdir {root} && cd {root} && {made}")).await;
    let body = json!({"from": format!("{root}/sparse"), "to": format!("{root}/copy")});
    change(owned, Method::POST, "/copy", &body, DONE).await;
    for name in ["sparse", "copy"] {
        let path = content(owned, &format!("{root}/{name}"));
        let head = request(caller, Method::HEAD, &path, &[], "").await;
        assert_eq!(head.header("content-length"), (SIZE + 3).to_string());
        for (range, expected, place) in [
            ("bytes=-5", "\0\0end", format!("{}-{}", SIZE - 2, SIZE + 2)),
            ("bytes=0-1", "\0\0", "0-1".to_owned()),
            (
                "bytes=5000000000-5000000001",
                "\0\0",
                "5000000000-5000000001".to_owned(),
            ),
        ] {
            let part = request(caller, Method::GET, &path, &[("range", range)], "").await;
            assert_eq!((part.status, part.text.as_str()), (206, expected));
            let place = format!("bytes {place}/{}", SIZE + 3);
            assert_eq!(part.header("content-range"), place);
        }
    }
    let used = run(owned, &format!("du -k {root}/copy | cut -f1")).await;
    assert!(used.trim().parse::<u64>().unwrap() < 1024, "{used} KiB");
}

#[tokio::test]
async fn directory_of_ten_thousand_entries_is_listed_once_each() {
    let owned = modest().await;
    let caller = &owned.user.caller;
    let root = directory();
    let made = "seq 10000 19999 | xargs touch";
    run(owned, &format!("mkdir {root} && cd {root} && {made}")).await;
    let mut seen = 10_000;
    let mut cursor = String::new();
    loop {
        let query = format!("?path={root}&limit=1000{cursor}");
        let page = caller.get(&files(owned, &query)).await.expect_status(200);
        for entry in page["entries"].as_array().unwrap() {
            assert_eq!(entry["name"], seen.to_string());
            seen += 1;
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen, 20_000);
    let query = format!("?path={root}&recursive=true");
    change(owned, Method::DELETE, &query, &Value::Null, DONE).await;
}
