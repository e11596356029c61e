//! Creating an environment in a warm box that matches its request.

use agentbox_contracts::environment::Status;
use agentbox_contracts::error::Error;
use agentbox_contracts::pool::PoolUse;

use super::Environments;
use crate::environment::creation::Creation;
use crate::environment::record::Record;
use crate::environment::store::{BoxNeed, ClaimOutcome};
use crate::metrics;
use crate::pool::matching::{best, claimable_clusters, gives_user};

impl Environments {
    /// Creates the environment of `creation` in a warm box, and configures the box. `None`: there is no
    /// such box, and `creation` has the reason.
    ///
    /// The environment is pending in the answer when the box could not be configured: it starts in a
    /// new one.
    pub(super) async fn claim(&self, creation: &mut Creation) -> Result<Option<Record>, Error> {
        let inner = self.inner();
        let request = &creation.environment.request;
        let pools = inner.store.pools_of_image(&request.image).await?;
        let Some((pool, mismatch)) = best(request, creation.quantities, &pools) else {
            return Ok(None);
        };
        let clusters = match mismatch {
            Some(reason) => Err(reason),
            None => {
                let all = inner.clusters.iter().map(|cluster| &**cluster);
                claimable_clusters(request, &pool.spec, all)
            }
        };
        let outcome = match clusters {
            Ok(clusters) => {
                let need = match gives_user(request, &pool.spec) {
                    true => BoxNeed::Root,
                    false => BoxNeed::Any,
                };
                let store = &inner.store;
                let creating = store.create_in_warm_box(creation, pool, &clusters, need);
                creating.await?
            }
            Err(reason) => {
                creation.environment.pool = Some(PoolUse::miss(&pool.name, reason));
                return Ok(None);
            }
        };
        let claimed = match outcome {
            ClaimOutcome::Claimed(claimed) => *claimed,
            ClaimOutcome::Replayed(replayed) => return Ok(Some(*replayed)),
            ClaimOutcome::Missed(reason) => {
                creation.environment.pool = Some(PoolUse::miss(&pool.name, reason));
                return Ok(None);
            }
        };
        metrics::transitioned(Status::Pending, None);
        tracing::info!(
            environment.id = %claimed.environment.id,
            cluster = claimed.environment.cluster,
            pool = pool.name,
            "environment created in a warm box"
        );
        let id = claimed.environment.id.clone();
        let record = inner.reconciler.complete_create(claimed).await?;
        // A claim that was given up meanwhile is counted as its miss already.
        if let Some(pool) = record.environment.pool.as_ref().filter(|pool| pool.hit) {
            metrics::pool_requested(pool);
        }
        // With the events of the create and of the start together.
        inner.outbox.wake(&id);
        Ok(Some(record))
    }
}
