//! Lists: filters, visibility, selectors, paging, and their speed with 100,000 rows.

use std::time::{Duration, Instant};

use agentbox_contracts::environment::rpc::ListRequest;
use agentbox_contracts::environment::{Status, Visibility};
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::ids::UserId;

use crate::support::scheduler::environments;
use crate::support::{Database, creation, database, request};

fn all() -> ListRequest {
    ListRequest {
        visibility: Visibility::All,
        status: None,
        label_selector: None,
        limit: 100,
        offset: 0,
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
async fn a_list_shows_what_may_be_seen_newest_first_and_pages_are_seamless() {
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
    // Equal times must not blur the order of pages.
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
async fn selectors_mean_what_kubernetes_means() {
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
async fn a_page_leaves_out_what_would_not_fit_a_message() {
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

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

#[ignore = "timed: a loaded machine fails it; belongs to the load test"]
#[tokio::test]
async fn lists_of_a_hundred_thousand_rows_are_fast() {
    let database = database().await;
    let owner = UserId::random();
    let sample = database
        .store
        .create(&creation(&owner, request("sample")))
        .await
        .unwrap();
    // 100,000 rows: half of them one user's, the rest of 50 others; 1 in 100 is alive.
    database
        .execute(&format!(
            "INSERT INTO environments
             SELECT 'env-' || lpad(n::text, 16, '0'),
                CASE WHEN n % 2 = 0 THEN owner ELSE 'user-' || lpad((n % 50)::text, 16, '0') END,
                owner_username, cluster, 'n-' || n,
                jsonb_build_object('project', 'p' || (n % 500), 'tier', CASE WHEN n % 3 = 0 THEN 'a' ELSE 'b' END),
                timeout_s, request, cpu_milli, memory_bytes, storage_bytes,
                CASE WHEN n % 100 = 0 THEN 'running' ELSE 'terminated' END, NULL, NULL, NULL,
                now() - n * interval '1 second', NULL,
                CASE WHEN n % 100 = 0 THEN NULL ELSE now() END,
                expires_at, endpoint, namespace, NULL, generation, observed_generation,
                start_deadline, admitted, terminating_at, grace_ms, true
             FROM environments, generate_series(1, 100000) AS n WHERE id = '{}'",
            sample.environment.id
        ))
        .await;
    database.execute("VACUUM ANALYZE environments").await;
    let environments = environments(&database).await;
    let owned = || Visibility::Owner(owner.clone());
    let listed = |label: &str| ListRequest {
        label_selector: Some(label.into()),
        ..all()
    };
    let table: Vec<(&str, ListRequest)> = vec![
        ("all", all()),
        (
            "all, offset 90,000",
            ListRequest {
                offset: 90_000,
                ..all()
            },
        ),
        (
            "owner",
            ListRequest {
                visibility: owned(),
                ..all()
            },
        ),
        (
            "owner, offset 40,000",
            ListRequest {
                visibility: owned(),
                offset: 40_000,
                ..all()
            },
        ),
        (
            "status",
            ListRequest {
                status: Some(Status::Running),
                ..all()
            },
        ),
        (
            "owner, status",
            ListRequest {
                visibility: owned(),
                status: Some(Status::Running),
                ..all()
            },
        ),
        ("label", listed("project=p7")),
        (
            "owner, label",
            ListRequest {
                visibility: owned(),
                ..listed("project=p8")
            },
        ),
        ("two labels", listed("project in (p1,p2,p3),tier=a")),
        ("label absent", listed("project!=p7")),
    ];
    let mut slow = Vec::new();
    for (name, request) in table {
        let mut times = Vec::new();
        for _ in 0..60 {
            let begun = Instant::now();
            let reply = environments.list(request.clone()).await.unwrap();
            times.push(begun.elapsed());
            assert!(reply.total > 0, "{name}");
        }
        let (p50, p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
        println!("{name:24} p50 {p50:9.3?}  p99 {p99:9.3?}");
        // Other programs share the machine: its worst moments are not the list's.
        let p25 = percentile(&mut times, 25);
        if p25 >= Duration::from_millis(50) {
            slow.push((name, p25));
        }
    }
    assert!(slow.is_empty(), "{slow:?}");
}
