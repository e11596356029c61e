//! Measures lists of 100,000 environments: the scheduler's response over NATS, with page and total.
//!
//! The rows are written into the database, for a cluster that no scheduler is configured for.

use std::time::{Duration, Instant};

use agentbox_bus::Bus;
use agentbox_contracts::environment::rpc::{List, ListRequest};
use agentbox_contracts::environment::{Status, Visibility};
use agentbox_contracts::ids::UserId;
use agentbox_testing::System;
use anyhow::{Context as _, ensure};

use crate::bus::connect;
use crate::figures::{Figure, Samples};

const ROWS: u64 = 100_000;
const BATCH: u64 = 10_000;
const SAMPLES: usize = 200;
const PAGE: u32 = 100;
const DEADLINE: Duration = Duration::from_secs(10);

/// # Errors
/// When the rows cannot be written, or a list is not answered or is empty.
pub async fn measure(system: &System) -> anyhow::Result<Vec<Figure>> {
    let owner = UserId::random();
    println!("writing {ROWS} environments");
    insert(system, &owner).await?;
    let bus = connect(system, "api-gateway").await?;
    let mut figures = Vec::new();
    for (name, request) in cases(&owner) {
        figures.push(case(&bus, name, &request).await?);
    }
    bus.close().await;
    Ok(figures)
}

/// Inserts the environments: half are one user's, the rest belong to 25 others; one in 100 runs,
/// the others have ended.
async fn insert(system: &System, owner: &UserId) -> anyhow::Result<()> {
    let postgres = system
        .postgres
        .as_ref()
        .context("a system without Postgres")?;
    let batches = (0..ROWS / BATCH).map(|batch| {
        let (first, last) = (batch * BATCH + 1, (batch + 1) * BATCH);
        format!(
            r#"INSERT INTO scheduler.environments (id, owner, owner_username, cluster, name,
                labels, timeout_s, request, cpu_milli, memory_bytes, storage_bytes, status,
                created_at, ended_at, expires_at, endpoint, namespace, generation,
                start_deadline, capacity_reserved, grace_ms, box_removed)
             SELECT 'env-' || lpad(n::text, 16, '0'),
                CASE WHEN n % 2 = 0 THEN '{owner}' ELSE 'user-' || lpad((n % 50)::text, 16, '0') END,
                'somebody', 'nowhere', 'n-' || n,
                jsonb_build_object('project', 'p' || (n % 500),
                    'tier', CASE WHEN n % 3 = 0 THEN 'a' ELSE 'b' END),
                3600,
                '{{"name": "n", "image": "busybox", "timeout_s": 3600,
                  "resources": {{"cpu": "50m", "memory": "32Mi", "storage": "64Mi"}},
                  "command": ["python", "-c", "print(40 + 2)"]}}',
                50, 33554432, 67108864,
                CASE WHEN n % 100 = 0 THEN 'running' ELSE 'terminated' END,
                now() - n * interval '1 second', CASE WHEN n % 100 = 0 THEN NULL ELSE now() END,
                now() + interval '1 day', '10.0.0.1', 'agentbox-env', 1, now(), true, 0, true
             FROM generate_series({first}, {last}) AS n"#
        )
    });
    let mut statements: Vec<String> = batches.collect();
    statements.push("VACUUM ANALYZE scheduler.environments".to_owned());
    statements.push("VACUUM ANALYZE scheduler.environment_terms".to_owned());
    for statement in &statements {
        postgres.execute(&[statement]).await?;
    }
    Ok(())
}

fn cases(owner: &UserId) -> Vec<(&'static str, ListRequest)> {
    let all = || ListRequest {
        visibility: Visibility::All,
        status: None,
        label_selector: None,
        limit: PAGE,
        offset: 0,
        known_total: None,
    };
    let owned = || ListRequest {
        visibility: Visibility::Owner(owner.clone()),
        ..all()
    };
    let with_selector = |list: ListRequest, selector: &str| ListRequest {
        label_selector: Some(selector.to_owned()),
        ..list
    };
    let with_offset = |list: ListRequest, offset| ListRequest { offset, ..list };
    let with_status = |list: ListRequest, status| ListRequest {
        status: Some(status),
        ..list
    };
    vec![
        ("all", all()),
        ("all, offset 90,000", with_offset(all(), 90_000)),
        ("of one owner", owned()),
        ("of one owner, offset 40,000", with_offset(owned(), 40_000)),
        ("running", with_status(all(), Status::Running)),
        ("terminated", with_status(all(), Status::Terminated)),
        (
            "of one owner, running",
            with_status(owned(), Status::Running),
        ),
        ("project=p7 (200)", with_selector(all(), "project=p7")),
        ("tier=b (66,667)", with_selector(all(), "tier=b")),
        (
            "tier=b, offset 60,000",
            with_offset(with_selector(all(), "tier=b"), 60_000),
        ),
        ("tier (all)", with_selector(all(), "tier")),
        ("project!=p7", with_selector(all(), "project!=p7")),
        ("tier!=b", with_selector(all(), "tier!=b")),
        (
            "project in (p1,p2,p3),tier=a",
            with_selector(all(), "project in (p1,p2,p3),tier=a"),
        ),
        ("tier=a,project", with_selector(all(), "tier=a,project")),
        (
            "of one owner, project=p8",
            with_selector(owned(), "project=p8"),
        ),
        (
            "of one owner, terminated, tier=b",
            with_selector(with_status(owned(), Status::Terminated), "tier=b"),
        ),
        (
            "running, tier!=b",
            with_selector(with_status(all(), Status::Running), "tier!=b"),
        ),
    ]
}

async fn case(bus: &Bus, name: &str, request: &ListRequest) -> anyhow::Result<Figure> {
    let mut samples = Samples::default();
    for _ in 0..SAMPLES {
        let started = Instant::now();
        let reply = bus.call::<List>(request, DEADLINE).await;
        let took = started.elapsed();
        let reply = reply.with_context(|| format!("list: {name}"))?;
        ensure!(
            !reply.environments.is_empty(),
            "list: {name}: the list is empty"
        );
        samples.push(Ok(took));
    }
    Ok(samples.figure(&format!("list: {name}")))
}
