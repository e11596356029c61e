//! The quota of a scheduler without settings for it.

use agentbox_contracts::environment::ResourceRequest;
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::ids::UserId;
use agentbox_scheduler::config::Config;
use agentbox_scheduler::environment::store::StoreError;
use clap::Parser as _;

use crate::support::scheduler::BOX_SECRET;
use crate::support::{creation, database, request};

#[tokio::test]
async fn default_quota_refuses_more_cpu_memory_and_storage() {
    let config = Config::parse_from([
        "scheduler".to_owned(),
        "--database-url=postgres://none".to_owned(),
        "--clusters=none".to_owned(),
        format!("--box-secret={BOX_SECRET}"),
        format!("--scheduler-secret={BOX_SECRET}"),
    ]);
    let quota = config.settings().quota;
    let database = database().await;
    let small = request("small").resources;
    let whole_cpu = ResourceRequest {
        cpu: "32".into(),
        ..small.clone()
    };
    let whole_memory = ResourceRequest {
        memory: "64Gi".into(),
        ..small.clone()
    };
    let whole_storage = ResourceRequest {
        storage: "100Gi".into(),
        ..small.clone()
    };
    for (resource, limit, whole) in [
        ("CPU", "32", whole_cpu),
        ("memory", "64Gi", whole_memory),
        ("storage", "100Gi", whole_storage),
    ] {
        let create = async |owner: &UserId, resources: &ResourceRequest| {
            let mut wanted = request("quota");
            wanted.resources = resources.clone();
            let mut creation = creation(owner, wanted);
            creation.quota = quota;
            database.store.create(&creation).await
        };
        let owner = UserId::random();
        create(&owner, &whole).await.unwrap();
        let refused = create(&owner, &small).await.unwrap_err();
        let StoreError::Refused(error) = refused else {
            panic!("{resource}: {refused:?}")
        };
        assert_eq!(error.code, ErrorCode::QuotaExceeded, "{resource}");
        let begin = format!("your quota of {resource} is {limit}: {limit} in use, ");
        assert!(error.message.starts_with(&begin), "{error}");
        // Another owner has another quota.
        create(&UserId::random(), &whole).await.unwrap();
    }
}
