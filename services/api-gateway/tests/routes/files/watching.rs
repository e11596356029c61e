//! `GET /environments/{id}/files/events`.

use serde_json::Value;

use super::{directory, files, modest, run};
use crate::support::sse::Events;

#[tokio::test]
async fn every_kind_of_change_below_a_directory_is_an_event() {
    let owned = modest().await;
    let root = directory();
    run(owned, &format!("mkdir {root}")).await;
    let path = files(owned, &format!("/events?path={root}&recursive=true"));
    let mut events = Events::open(&owned.user.caller, &path).await;
    run(owned, &format!("mkdir {root}/sub")).await;
    // The new directory is watched before its event is sent.
    let created = events.next().await.unwrap();
    assert_eq!(created.name, "created");
    let changes = "echo a > sub/f && mv sub/f sub/g && chmod 600 sub/g && rm sub/g && rmdir sub";
    run(owned, &format!("cd {root} && {changes}")).await;
    let received = events.take(6).await;
    for (event, (name, path)) in received.iter().zip([
        ("created", "sub/f"),
        ("modified", "sub/f"),
        ("moved", "sub/g"),
        ("attributes", "sub/g"),
        ("deleted", "sub/g"),
        ("deleted", "sub"),
    ]) {
        let found = event.json();
        assert_eq!(event.name, name, "{received:?}");
        assert_eq!(found["path"], format!("{root}/{path}"), "{received:?}");
        let from = match name {
            "moved" => Value::from(format!("{root}/sub/f")),
            _ => Value::Null,
        };
        assert_eq!(found["from"], from, "{received:?}");
    }
    let numbers = received.iter().map(|event| event.number());
    assert!(numbers.is_sorted_by(|before, after| before < after));
    // The end of what is followed is the end of the stream.
    run(owned, &format!("rmdir {root}")).await;
    let rest = events.read_to_end().await;
    assert_eq!(rest.len(), 1, "{rest:?}");
    assert_eq!(rest[0].name, "deleted");
    assert_eq!(rest[0].json()["path"], root);
}

#[tokio::test]
async fn follower_of_a_missing_path_is_refused() {
    let owned = modest().await;
    let path = files(owned, &format!("/events?path={}", directory()));
    let answer = owned.user.caller.get(&path).await;
    answer.expect_error(404, "file_not_found");
}
