//! Reads of several environments at once.

use std::collections::BTreeMap;

use agentbox_contracts::environment::rpc::{GetManyRequest, GetRequest, MAX_READ};
use agentbox_contracts::error::ErrorCode;
use agentbox_contracts::ids::{EnvironmentId, UserId};

use crate::support::scheduler::environments;
use crate::support::{Database, creation, database, request};

/// Creates an environment with a variable of `length` bytes.
async fn create(database: &Database, length: usize) -> EnvironmentId {
    let mut wanted = request("read");
    wanted.env.insert("A".into(), "x".repeat(length));
    let creation = creation(&UserId::random(), wanted);
    database.store.create(&creation).await.unwrap();
    creation.environment.id
}

#[tokio::test]
async fn environment_that_cannot_be_read_fails_alone() {
    let database = database().await;
    let handlers = environments(&database).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(create(&database, 1).await);
    }
    let [first, unsealed, corrupt, last] = ids.as_slice() else {
        panic!("{ids:?}");
    };
    for (id, change) in [
        (unsealed, "sealed_variables = 'x'"),
        (corrupt, "address = 'nowhere'"),
    ] {
        let update = format!("UPDATE environments SET {change} WHERE id = '{id}'");
        database.execute(&update).await;
    }
    let missing = EnvironmentId::random();
    let mut requested = ids.clone();
    requested.push(missing);
    let reply = handlers
        .get_many(GetManyRequest { ids: requested })
        .await
        .unwrap();
    assert_eq!(reply.environments.len(), 2);
    for id in [first, last] {
        let alone = handlers.get(GetRequest { id: id.clone() }).await.unwrap();
        assert!(reply.environments.contains(&alone), "{reply:?}");
    }
    let failed = reply.errors.into_iter().map(|(id, error)| (id, error.code));
    let expected = [unsealed, corrupt].map(|id| (id.clone(), ErrorCode::Internal));
    assert_eq!(failed.collect::<BTreeMap<_, _>>(), BTreeMap::from(expected));
    assert!(reply.remaining.is_empty());
}

#[tokio::test]
async fn environments_that_exceed_a_message_are_read_in_parts() {
    let database = database().await;
    let handlers = environments(&database).await;
    let mut wanted = Vec::new();
    for _ in 0..12 {
        wanted.push(create(&database, 120_000).await);
    }
    wanted.sort_unstable();
    let (mut read, mut parts) = (Vec::new(), 0);
    let mut ids = wanted.clone();
    while !ids.is_empty() {
        let reply = handlers.get_many(GetManyRequest { ids }).await.unwrap();
        assert!(!reply.environments.is_empty());
        parts += 1;
        read.extend(reply.environments.into_iter().map(|found| found.id));
        ids = reply.remaining;
    }
    read.sort_unstable();
    assert_eq!((read, parts), (wanted, 2));
    let ids = vec![EnvironmentId::random(); MAX_READ + 1];
    let refused = handlers.get_many(GetManyRequest { ids }).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::Validation);
}
