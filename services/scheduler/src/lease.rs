//! Work that one replica of many does, for as long as it holds a lease.
//!
//! * I1. Work is cancelled when its lease is lost or cannot be renewed: two replicas may
//!   overlap for a moment, so the work itself must be safe to do twice.
//! * I2. A killed holder's work is taken over within [`LEASE`].

use std::future::Future;
use std::time::Duration;

use agentbox_contracts::ids::InstanceId;
use tokio_util::sync::CancellationToken;

use crate::environment::store::Store;

const LEASE: Duration = Duration::from_secs(4);
const RENEW_EVERY: Duration = Duration::from_secs(1);

/// Runs `work` whenever this replica holds the lease `name`, until `shutdown`. `work`
/// ends soon after its token is cancelled; when it ends before, it is begun again.
pub async fn while_held<F, Fut>(
    store: &Store,
    name: &str,
    instance: &InstanceId,
    shutdown: &CancellationToken,
    work: F,
) where
    F: Fn(CancellationToken) -> Fut,
    Fut: Future<Output = ()>,
{
    while !shutdown.is_cancelled() {
        if holds(store, name, instance).await {
            tracing::debug!(lease = name, "held");
            let held = shutdown.child_token();
            let working = work(held.clone());
            let keeping = async {
                while !held.is_cancelled() {
                    tokio::select! {
                        () = held.cancelled() => {}
                        () = tokio::time::sleep(RENEW_EVERY) => {
                            if !holds(store, name, instance).await {
                                tracing::info!(lease = name, "lost");
                                held.cancel();
                            }
                        }
                    }
                }
            };
            tokio::pin!(keeping, working);
            tokio::select! {
                () = &mut working => held.cancel(),
                () = &mut keeping => working.await,
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(RENEW_EVERY) => {}
        }
    }
    if let Err(error) = store.drop_lease(name, instance).await {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            lease = name,
            "not given back; it runs out"
        );
    }
}

async fn holds(store: &Store, name: &str, instance: &InstanceId) -> bool {
    match tokio::time::timeout(RENEW_EVERY, store.hold_lease(name, instance, LEASE)).await {
        Ok(Ok(ours)) => ours,
        Ok(Err(error)) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                lease = name,
                "the lease cannot be asked for"
            );
            false
        }
        Err(_) => false,
    }
}
