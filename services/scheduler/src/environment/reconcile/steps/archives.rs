//! The archive of the last output and the executions of a box.

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::exec::ArchiveRequest;
use agentbox_contracts::exec::rpc::ArchiveOutput;
use agentbox_runtime::BoxPhase;
use chrono::Utc;

use crate::environment::plan::{Archive, Observation};
use crate::environment::reconcile::Reconciler;
use crate::environment::record::Record;
use crate::environment::state::{LifecycleEvent, transition};
use crate::metrics;

const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(5);

impl Reconciler {
    /// Archives the executions of a box that runs, with their output, which its boxd alone has. Not
    /// tried again: a box that does not answer is stopped all the same.
    pub(super) async fn archive_executions(&self, record: &Record) {
        let environment = &record.environment;
        if environment.address.is_none() {
            return;
        }
        let request = ArchiveRequest {
            environment: environment.id.clone(),
            address: environment.address,
            before_stop: true,
            status_reason: environment.status_reason,
            ended_at: None,
        };
        let stored = self
            .bus
            .call_cluster::<ArchiveOutput>(&environment.cluster, &request, ARCHIVE_TIMEOUT)
            .await;
        if let Err(error) = stored {
            metrics::step_failed("archive_executions");
            tracing::warn!(error = %ErrorChain(&error), environment.id = %environment.id, "executions not archived before the stop");
        }
    }

    /// Archives the last output and the executions. False: try again, because they are not archived
    /// and there is time left.
    pub(super) async fn archive(
        &self,
        record: &Record,
        archive: Archive,
        request: ArchiveRequest,
    ) -> bool {
        let Archive::Until(until) = archive else {
            return true;
        };
        let environment = &record.environment;
        let stored = self
            .bus
            .call_cluster::<ArchiveOutput>(&environment.cluster, &request, ARCHIVE_TIMEOUT)
            .await;
        let Err(error) = stored else { return true };
        metrics::step_failed("archive");
        if Utc::now() < until {
            tracing::info!(error = %ErrorChain(&error), environment.id = %environment.id, "output not archived; retried");
            return false;
        }
        metrics::archive_abandoned();
        tracing::error!(error = %ErrorChain(&error), environment.id = %environment.id, "output not archived; the environment ends without it");
        true
    }
}

/// The request to archive a box that has ended. `event` ends its environment.
pub(super) fn archive_request(
    record: &Record,
    event: &LifecycleEvent,
    observation: &Observation,
) -> ArchiveRequest {
    let environment = &record.environment;
    let now = Utc::now();
    let ended = transition(now, &record.state(), event);
    let finished_at = match observation {
        Observation::Present(observed) => match observed.phase {
            BoxPhase::Exited { finished_at, .. } => Some(finished_at),
            BoxPhase::Starting { .. } | BoxPhase::Running { .. } | BoxPhase::Failed { .. } => None,
        },
        Observation::Unknown | Observation::Absent => None,
    };
    ArchiveRequest {
        environment: environment.id.clone(),
        address: environment.address,
        before_stop: false,
        status_reason: ended.and_then(|state| state.reason),
        ended_at: Some(finished_at.unwrap_or(now)),
    }
}
