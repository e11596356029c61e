//! Whole lifecycles on a real containerd.

use std::time::{Duration, Instant};

use agentbox_contracts::environment::rpc::{
    Create, CreateRequest, Delete, DeleteOwned, DeleteOwnedRequest, DeleteRequest, Patch,
    PatchRequest,
};
use agentbox_contracts::environment::{EventKind, Isolation, Status, StatusReason};
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_contracts::units::MilliCpu;
use agentbox_scheduler::environment::quota::Quota;
use agentbox_testing::repeat_until_below;
use chrono::TimeDelta;
use serde_json::json;

use crate::executions::start;
use crate::support::cluster::{CALL, World};
use crate::support::request;
use crate::support::scheduler::settings;

const SOON: Duration = Duration::from_secs(20);

fn command(name: &str, words: &[&str]) -> agentbox_contracts::environment::EnvironmentRequest {
    let mut request = request(name);
    request.command = Some(words.iter().map(|word| (*word).into()).collect());
    request
}

async fn delete(world: &World, id: &EnvironmentId, force: bool) {
    let request = DeleteRequest {
        id: id.clone(),
        force,
    };
    world.gateway.call::<Delete>(&request, CALL).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_is_created_runs_and_leaves_nothing_when_deleted() {
    let world = World::new().await;
    let replica = world.replica().await;
    let begun = Instant::now();
    let created = world.create(request("a-life")).await;
    let answered = begun.elapsed();
    assert_eq!(created.status, Status::Pending);
    assert_eq!(
        created.endpoint,
        format!("{}.agentbox.svc.cluster.local", created.id)
    );
    assert_eq!(created.namespace, format!("agentbox-{}", created.id));
    assert_eq!(
        created.expires_at,
        created.created_at + TimeDelta::seconds(600)
    );
    let running = world
        .wait_for_status(&created.id, Status::Running, SOON)
        .await;
    println!(
        "created after {answered:?}, running after {:?}",
        begun.elapsed()
    );
    let address = running.address.unwrap();
    assert_eq!(running.endpoint, address.ip().to_string());
    assert!(running.started_at.unwrap() >= created.created_at);

    delete(&world, &created.id, false).await;
    delete(&world, &created.id, false).await;
    let ended = world
        .wait_for_status(&created.id, Status::Terminated, SOON)
        .await;
    assert_eq!(ended.status_reason, Some(StatusReason::Deleted));
    assert!(
        world.driver.get(&created.id).await.unwrap().is_none(),
        "the box of a terminated environment is removed"
    );
    let kinds: Vec<_> = world
        .events(&created.id, 4)
        .await
        .into_iter()
        .map(|event| event.kind)
        .collect();
    assert_eq!(
        kinds,
        [
            EventKind::Created,
            EventKind::Running,
            EventKind::Terminating,
            EventKind::Terminated
        ]
    );
    // An ended environment can be read, and deleted again.
    delete(&world, &created.id, true).await;
    assert_eq!(world.get(&created.id).await, ended);
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_of_the_main_command_ends_the_environment() {
    let world = World::new().await;
    let replica = world.replica().await;
    for (status, exit_code) in [(Status::Terminated, 0), (Status::Failed, 3)] {
        // It ends when it has been seen running.
        let script = format!("until [ -e /tmp/end ]; do sleep 0.1; done; exit {exit_code}");
        repeat_until_below(Duration::from_secs(3), async || {
            let created = world.create(command("ends", &["sh", "-c", &script])).await;
            let running = world
                .wait_for_status(&created.id, Status::Running, SOON)
                .await;
            start(&world, &running, "sleep 0.5; touch /tmp/end").await;
            let ended = world.wait_for_status(&created.id, status, SOON).await;
            let lag = chrono::Utc::now() - ended.ended_at.unwrap();
            println!("an exit with {exit_code} shows {lag} after it");
            assert_eq!(ended.status_reason, Some(StatusReason::Exited));
            assert_eq!(ended.exit_code, Some(exit_code));
            assert_eq!(ended.started_at, running.started_at);
            world.wait_for_box_removal(&created.id).await;
            lag.to_std().unwrap_or_default()
        })
        .await;
    }
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn command_that_exits_at_once_is_not_lost() {
    let world = World::new().await;
    let replica = world.replica().await;
    let created = world.create(command("short", &["true"])).await;
    let ended = world
        .wait_for_status(&created.id, Status::Terminated, SOON)
        .await;
    assert_eq!(
        (ended.status_reason, ended.exit_code),
        (Some(StatusReason::Exited), Some(0))
    );
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_image_fails_the_environment_within_seconds_and_is_named() {
    let world = World::new().await;
    let replica = world.replica().await;
    let mut wanted = request("no-image");
    wanted.image = "agentbox-scheduler/no-such-image:1".into();
    let created = world.create(wanted).await;
    let failed = world
        .wait_for_status(&created.id, Status::Failed, Duration::from_secs(30))
        .await;
    assert_eq!(failed.status_reason, Some(StatusReason::ImagePull));
    let message = failed.status_message.unwrap();
    assert!(
        message.contains("agentbox-scheduler/no-such-image:1"),
        "{message}"
    );
    // The cause is in the log only: it may describe the operator's network.
    for cause in ["dial", "lookup", "http", "refused:"] {
        assert!(!message.contains(cause), "{message}");
    }
    world.wait_for_box_removal(&created.id).await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn image_of_another_registry_is_refused_without_a_pull() {
    let world = World::new().await;
    let replica = world.replica().await;
    for image in [
        "127.0.0.1:5432/a/b",
        "localhost:5000/a",
        "registry.internal/a",
    ] {
        let mut wanted = request("other-registry");
        wanted.image = image.into();
        let error = world.try_create(wanted).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Validation, "{error}");
        assert!(error.message.starts_with("image: must be from"), "{error}");
        assert!(
            error.message.contains("docker.io, ghcr.io, quay.io"),
            "{error}"
        );
    }
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn request_that_no_cluster_supports_is_refused_without_a_row() {
    let world = World::new().await;
    let replica = world.replica().await;
    let mut no_class = request("no-class");
    no_class.isolation = Some(Isolation {
        runtime_class: Some("nosuchclass".into()),
        ..Isolation::default()
    });
    let mut no_node = request("no-node");
    no_node
        .node_selector
        .insert("disk".into(), "none-has-it".into());
    let mut too_large = request("too-large");
    too_large.resources.cpu = "100000".into();
    let mut too_much_storage = request("too-much-storage");
    too_much_storage.resources.storage = "1Ei".into();
    for (request, field) in [
        (no_class, "isolation.runtime_class"),
        (no_node, "node_selector"),
        (too_large, "resources.cpu"),
        (too_much_storage, "resources.storage"),
        (request("Not A Name"), "name"),
    ] {
        let error = world.try_create(request).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Validation, "{field}");
        assert!(error.message.starts_with(field), "{field}: {error}");
    }
    assert_eq!(
        world
            .database
            .number("SELECT count(*) FROM environments")
            .await,
        0
    );
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn selector_matches_cluster_labels_and_another_is_refused_by_name() {
    let world = World::with_labels(json!({ "region": "eu" })).await;
    // A process, because the program reads the labels from the clusters file.
    let _scheduler = world.process();
    world.wait_until_ready().await;
    let selecting = |pairs: &[(&str, &str)]| {
        let mut wanted = request("selects");
        for (key, value) in pairs {
            wanted.node_selector.insert((*key).into(), (*value).into());
        }
        wanted
    };
    let placed = selecting(&[("region", "eu"), ("kubernetes.io/os", "linux")]);
    let created = world.create(placed).await;
    world
        .wait_for_status(&created.id, Status::Running, SOON)
        .await;
    for (selector, named) in [
        ([("region", "us")], "`region=us`"),
        ([("disk", "ssd")], "`disk=ssd`"),
    ] {
        let refused = world.try_create(selecting(&selector)).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Validation);
        assert!(refused.message.starts_with("node_selector: "), "{refused}");
        assert!(refused.message.contains(named), "{refused}");
    }
    delete(&world, &created.id, true).await;
    world
        .wait_for_status(&created.id, Status::Terminated, SOON)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forced_delete_ends_the_grace_period_of_a_box_that_ignores_sigterm() {
    let world = World::new().await;
    let replica = world.replica().await;
    let stubborn = ["sh", "-c", "trap '' TERM; while true; do sleep 1; done"];
    let created = world.create(command("stubborn", &stubborn)).await;
    world
        .wait_for_status(&created.id, Status::Running, SOON)
        .await;
    delete(&world, &created.id, false).await;
    world
        .wait_for_status(&created.id, Status::Terminating, SOON)
        .await;
    let late = PatchRequest {
        id: created.id.clone(),
        name: None,
        labels: None,
        timeout_s: Some(6000),
        idle_timeout_s: None,
        network_policy: None,
    };
    let late = world.gateway.call::<Patch>(&late, CALL).await.unwrap_err();
    assert_eq!(late.code, ErrorCode::Conflict, "{late}");
    let unchanged = world.get(&created.id).await;
    assert_eq!(unchanged.expires_at, created.expires_at);
    let begun = Instant::now();
    delete(&world, &created.id, true).await;
    world
        .wait_for_status(&created.id, Status::Terminated, SOON)
        .await;
    assert!(
        begun.elapsed() < Duration::from_secs(6),
        "{:?}",
        begun.elapsed()
    );
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn timeout_that_is_over_or_patched_into_the_past_ends_the_environment() {
    let world = World::new().await;
    let replica = world.replica().await;
    let mut short = request("short-lived");
    short.timeout_s = 2;
    let expiring = world.create(short).await;
    let patched = world.create(request("patched")).await;
    world
        .wait_for_status(&patched.id, Status::Running, SOON)
        .await;
    let patch = |name: Option<&str>, timeout_s| PatchRequest {
        id: patched.id.clone(),
        name: name.map(Into::into),
        labels: Some([("a".to_owned(), "b".to_owned())].into()),
        timeout_s,
        idle_timeout_s: None,
        network_policy: None,
    };
    let extended = world
        .gateway
        .call::<Patch>(&patch(Some("renamed"), Some(6000)), CALL)
        .await
        .unwrap()
        .environment;
    assert_eq!(
        extended.expires_at,
        extended.created_at + TimeDelta::seconds(6000)
    );
    assert_eq!(extended.request.name, "renamed");
    assert_eq!(extended.request.labels["a"], "b");
    let ended = world
        .gateway
        .call::<Patch>(&patch(None, Some(1)), CALL)
        .await;
    // If its first second is not over yet, the sweeper ends it later.
    assert!(matches!(
        ended.unwrap().environment.status,
        Status::Terminating | Status::Running
    ));
    for id in [&expiring.id, &patched.id] {
        let ended = world.wait_for_status(id, Status::Terminated, SOON).await;
        assert_eq!(ended.status_reason, Some(StatusReason::Expired));
    }
    let late = world
        .gateway
        .call::<Patch>(&patch(None, Some(6000)), CALL)
        .await
        .unwrap_err();
    assert_eq!(late.code, ErrorCode::Conflict);
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_users_environments_ends_them_and_frees_the_quota() {
    let world = World::new().await;
    let quota = Quota {
        environments: Some(2),
        cpu: Some(MilliCpu(1_000)),
        ..Quota::default()
    };
    let mut settings = settings();
    settings.quota = quota;
    let replica = world.replica_with(world.driver.clone(), settings).await;
    let with_key = CreateRequest {
        owner: world.owner.clone(),
        owner_username: "somebody".into(),
        request: request("once"),
        idempotency_key: Some("the key".into()),
        limits: Default::default(),
    };
    let first = world.gateway.call::<Create>(&with_key, CALL).await.unwrap();
    let again = world.gateway.call::<Create>(&with_key, CALL).await.unwrap();
    assert_eq!(first.id, again.id);
    let second = world.create(request("second")).await;
    let refused = world.try_create(request("third")).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::QuotaExceeded);
    let everything = DeleteOwnedRequest {
        owner: world.owner.clone(),
    };
    world
        .gateway
        .call::<DeleteOwned>(&everything, CALL)
        .await
        .unwrap();
    for id in [&first.id, &second.id] {
        world.wait_for_status(id, Status::Terminated, SOON).await;
        world.wait_for_box_removal(id).await;
    }
    world.create(request("capacity-again")).await;
    replica.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_reports_the_database_and_each_cluster() {
    let world = World::new().await;
    let replica = world.replica().await;
    let health = world.health().await.unwrap();
    assert!(health.database);
    let [cluster] = &health.clusters[..] else {
        panic!("{health:?}")
    };
    assert!(cluster.connected && cluster.nodes == 1, "{cluster:?}");
    assert!(cluster.version.starts_with("containerd "), "{cluster:?}");
    replica.stop().await;
}
