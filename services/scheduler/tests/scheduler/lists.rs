//! Lists: filters, visibility, selectors and paging. Their speed is the load test's.

use std::collections::BTreeMap;
use std::time::Duration;

use agentbox_contracts::environment::rpc::{ListRequest, MAX_RESOLVED, ResolveRequest};
use agentbox_contracts::environment::{Status, Visibility};
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_scheduler::environment::state::{EndReason, LifecycleEvent, transition};
use agentbox_scheduler::environment::store::{Change, Patch};
use chrono::Utc;

use crate::support::scheduler::environments;
use crate::support::{Database, creation, database, request};

fn all() -> ListRequest {
    ListRequest {
        visibility: Visibility::All,
        status: None,
        label_selector: None,
        limit: 100,
        offset: 0,
        known_total: None,
    }
}

async fn names(database: &Database, request: ListRequest) -> (Vec<String>, u64) {
    let reply = environments(database).await.list(request).await.unwrap();
    let names = reply
        .environments
        .into_iter()
        .map(|e| e.request.name)
        .collect();
    (names, reply.total)
}

#[tokio::test]
async fn list_returns_visible_environments_newest_first_in_seamless_pages() {
    let database = database().await;
    let (mine, other) = (UserId::random(), UserId::random());
    let mut ids = Vec::new();
    for n in 0..7 {
        let owner = if n % 3 == 2 { &other } else { &mine };
        let record = database
            .store
            .create(&creation(owner, request(&format!("n-{n}"))))
            .await
            .unwrap();
        ids.push(record.environment.id);
    }
    // Environments with equal times must have one order on all pages.
    database
        .execute("UPDATE environments SET created_at = '2026-01-01' WHERE name <> 'n-6'")
        .await;
    let (everything, total) = names(&database, all()).await;
    assert_eq!((everything.len(), total), (7, 7));
    assert_eq!(everything[0], "n-6");
    let mut paged = Vec::new();
    for offset in [0, 3, 6, 9] {
        let (page, total) = names(
            &database,
            ListRequest {
                limit: 3,
                offset,
                ..all()
            },
        )
        .await;
        assert_eq!(total, 7);
        paged.extend(page);
    }
    assert_eq!(paged, everything);

    let owned = ListRequest {
        visibility: Visibility::Owner(mine.clone()),
        ..all()
    };
    assert_eq!(names(&database, owned).await.1, 5);
    let listed = Visibility::Listed {
        owner: mine,
        only: vec![ids[0].clone(), ids[2].clone()],
    };
    let (seen, total) = names(
        &database,
        ListRequest {
            visibility: listed,
            ..all()
        },
    )
    .await;
    assert_eq!(
        (seen, total),
        (vec!["n-0".to_owned()], 1),
        "a foreign id in a key gives nothing"
    );
}

#[tokio::test]
async fn page_larger_than_a_message_is_returned_in_parts() {
    let database = database().await;
    let owner = UserId::random();
    let mut long = request("long");
    // A list leaves out variables, but not labels.
    long.labels = (0..64)
        .map(|n| (format!("{n:063}"), "x".repeat(63)))
        .collect();
    for _ in 0..150 {
        database
            .store
            .create(&creation(&owner, long.clone()))
            .await
            .unwrap();
    }
    let environments = environments(&database).await;
    let mut rest = ListRequest {
        limit: 150,
        ..all()
    };
    let mut ids = std::collections::BTreeSet::new();
    let mut parts = 0;
    loop {
        let reply = environments.list(rest.clone()).await.unwrap();
        let bytes = serde_json::to_vec(&reply).unwrap().len();
        assert!(bytes < 1024 * 1024, "{bytes} fit in a message");
        assert_eq!(reply.total, 150);
        parts += 1;
        rest.limit -= u32::try_from(reply.environments.len()).unwrap();
        rest.offset += reply.environments.len() as u64;
        rest.known_total = Some(reply.total);
        assert_eq!(reply.has_more, rest.limit > 0);
        ids.extend(reply.environments.into_iter().map(|e| e.id));
        if !reply.has_more {
            break;
        }
    }
    assert_eq!(ids.len(), 150);
    assert_eq!(parts, 2, "a part holds as much as fits");
}

#[tokio::test]
async fn resolve_returns_the_owners_of_existing_environments() {
    let database = database().await;
    let owners = [UserId::random(), UserId::random()];
    let mut expected = BTreeMap::new();
    for owner in &owners {
        let record = database
            .store
            .create(&creation(owner, request("box")))
            .await
            .unwrap();
        expected.insert(record.environment.id, owner.clone());
    }
    let environments = environments(&database).await;
    let mut ids: Vec<EnvironmentId> = expected.keys().cloned().collect();
    ids.push(EnvironmentId::random());
    let reply = environments.resolve(ResolveRequest { ids }).await.unwrap();
    assert_eq!(reply.owners, expected);
    let too_many = vec![EnvironmentId::random(); MAX_RESOLVED + 1];
    let refused = environments
        .resolve(ResolveRequest { ids: too_many })
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::Validation);
}

#[tokio::test]
async fn selector_matches_as_in_kubernetes() {
    let database = database().await;
    for (name, labels) in [
        ("one", vec![("app", "web"), ("tier", "front")]),
        ("two", vec![("app", "web")]),
        ("three", vec![("app", "db"), ("x.io/it", "")]),
        ("none", vec![]),
    ] {
        let mut wanted = request(name);
        wanted.labels = labels
            .into_iter()
            .map(|(k, v)| (k.into(), v.into()))
            .collect();
        database
            .store
            .create(&creation(&UserId::random(), wanted))
            .await
            .unwrap();
    }
    for (selector, mut expected) in [
        ("app=web", vec!["one", "two"]),
        ("app==web,tier=front", vec!["one"]),
        ("app!=web", vec!["none", "three"]),
        ("app in (web,db)", vec!["one", "three", "two"]),
        ("app notin (web)", vec!["none", "three"]),
        ("app", vec!["one", "three", "two"]),
        ("!app", vec!["none"]),
        ("app,!tier", vec!["three", "two"]),
        ("x.io/it=", vec!["three"]),
        ("app=nothing", vec![]),
        ("app=web,app=db", vec![]),
        ("app notin (db),app notin (web)", vec!["none"]),
        ("!tier,x.io/it!=", vec!["none", "two"]),
        ("app in (web,db),tier,app!=db", vec!["one"]),
        ("!nothing", vec!["none", "one", "three", "two"]),
    ] {
        let list = ListRequest {
            label_selector: Some(selector.into()),
            ..all()
        };
        let (mut found, total) = names(&database, list).await;
        found.sort();
        expected.sort_unstable();
        assert_eq!(found, expected, "{selector}");
        assert_eq!(total, expected.len() as u64, "{selector}");
    }
    for wrong in ["a=b=c", "';--", "a in"] {
        let list = ListRequest {
            label_selector: Some(wrong.into()),
            ..all()
        };
        let error = environments(&database).await.list(list).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Validation, "{wrong}");
    }
}

#[tokio::test]
async fn selector_combines_with_owner_status_and_paging_and_follows_each_change() {
    let database = database().await;
    let owner = UserId::random();
    let mut records = Vec::new();
    for n in 0..4 {
        let mut wanted = request(&format!("n-{n}"));
        wanted.labels.insert("app".into(), "web".into());
        let created = creation(&owner, wanted);
        records.push(database.store.create(&created).await.unwrap());
    }
    let foreign = creation(&UserId::random(), records[0].environment.request.clone());
    database.store.create(&foreign).await.unwrap();

    let patch = Patch {
        labels: Some([("app".to_owned(), "db".to_owned())].into()),
        ..Patch::default()
    };
    let now = Utc::now();
    database
        .store
        .patch(&records[0], &patch, now)
        .await
        .unwrap();
    let event = LifecycleEvent::EndRequested(EndReason::Deleted);
    let state = transition(now, &records[1].state(), &event).unwrap();
    let change = Change::requested(&records[1], state, Duration::ZERO, now);
    database
        .store
        .change(&records[1], &change, now)
        .await
        .unwrap();
    database
        .execute("DELETE FROM environments WHERE name = 'n-2'")
        .await;

    let listed = |status: Option<Status>, selector: &str, offset| ListRequest {
        known_total: None,
        visibility: Visibility::Owner(owner.clone()),
        status,
        label_selector: Some(selector.into()),
        limit: 1,
        offset,
    };
    for (status, selector, offset, expected) in [
        (None, "app=web", 0, ("n-3", 2)),
        (None, "app=web", 1, ("n-1", 2)),
        (None, "app=web", 2, ("", 2)),
        (None, "app=db", 0, ("n-0", 1)),
        (None, "app!=web", 0, ("n-0", 1)),
        (Some(Status::Pending), "app=web", 0, ("n-3", 1)),
        (Some(change.state.status), "app", 0, ("n-1", 1)),
        (Some(Status::Pending), "app!=web", 0, ("n-0", 1)),
        (Some(Status::Pending), "!app", 0, ("", 0)),
    ] {
        let (page, total) = names(&database, listed(status, selector, offset)).await;
        let first = page.first().map_or("", String::as_str);
        assert_eq!((first, total), expected, "{status:?} {selector} {offset}");
    }
}

#[tokio::test]
async fn page_leaves_out_env_and_long_commands() {
    let database = database().await;
    let mut wanted = request("large");
    wanted.env.insert("SECRET".into(), "x".repeat(100_000));
    wanted.command = Some(vec!["echo".into(), "y".repeat(100_000)]);
    let owner = UserId::random();
    for _ in 0..20 {
        database
            .store
            .create(&creation(&owner, wanted.clone()))
            .await
            .unwrap();
    }
    let reply = environments(&database).await.list(all()).await.unwrap();
    assert_eq!(reply.environments.len(), 20);
    assert!(reply.environments.iter().all(|e| e.request.env.is_empty()));
    assert!(serde_json::to_vec(&reply).unwrap().len() < 100_000);
}
