//! A timeout that is extended while the sweeper ends its environment.

use agentbox_contracts::environment::rpc::PatchRequest;
use agentbox_contracts::environment::{Environment, Status};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::ids::{EnvironmentId, UserId};
use agentbox_scheduler::environment::handlers::Environments;
use agentbox_scheduler::environment::record::Record;
use agentbox_scheduler::environment::state::{EndReason, transition};
use agentbox_scheduler::environment::store::{Change, Store};
use chrono::{TimeDelta, Utc};

use super::started;
use crate::support::scheduler::environments;
use crate::support::{creation, database, request};

/// A running environment whose timeout is over, as the sweeper reads it.
async fn expired(store: &Store) -> Record {
    let mut creation = creation(&UserId::random(), request("expired"));
    creation.environment.created_at -= TimeDelta::hours(1);
    creation.environment.expires_at -= TimeDelta::hours(1);
    let before = store.create(&creation).await.unwrap();
    let now = Utc::now();
    let running = transition(now, &before.state(), &started()).unwrap();
    let change = Change::observed(&before, running);
    store.change(&before, &change, now).await.unwrap()
}

/// Extends the timeout to a day.
async fn extend(environments: &Environments, id: &EnvironmentId) -> Result<Environment, Error> {
    let patch = PatchRequest {
        id: id.clone(),
        name: None,
        labels: None,
        timeout_s: Some(86_400),
        idle_timeout_s: None,
        network_policy: None,
    };
    let patched = environments.patch(patch).await?;
    Ok(patched.environment)
}

#[tokio::test]
async fn environment_whose_timeout_is_extended_before_its_end_keeps_running() {
    let database = database().await;
    let environments = environments(&database).await;
    // The sweeper has read the row before the PATCH.
    let record = expired(&database.store).await;
    let id = record.environment.id.clone();
    let extended = extend(&environments, &id).await.unwrap();
    let ending = environments.end(record, EndReason::Expired, false);
    ending.await.unwrap();
    let after = database.store.get(&id).await.unwrap().unwrap().environment;
    assert_eq!(after.status, Status::Running, "{after:?}");
    assert_eq!(after.expires_at, extended.expires_at);
}

#[tokio::test(flavor = "multi_thread")]
async fn extension_during_the_end_either_lasts_or_is_refused() {
    let database = database().await;
    let environments = environments(&database).await;
    for round in 0..50 {
        let id = expired(&database.store).await.environment.id;
        let end = async {
            let record = database.store.get(&id).await.unwrap().unwrap();
            environments.end(record, EndReason::Expired, false).await
        };
        // Either may be first.
        let (extended, ended) = if round % 2 == 0 {
            tokio::join!(extend(&environments, &id), end)
        } else {
            let (ended, extended) = tokio::join!(end, extend(&environments, &id));
            (extended, ended)
        };
        ended.unwrap();
        let after = database.store.get(&id).await.unwrap().unwrap().environment;
        match extended {
            Ok(extended) => {
                assert_eq!(after.status, Status::Running, "{after:?}");
                assert_eq!(after.expires_at, extended.expires_at);
            }
            Err(error) => {
                assert_eq!(error.code, ErrorCode::Conflict, "{error}");
                assert_eq!(after.status, Status::Terminating, "{after:?}");
            }
        }
    }
}
