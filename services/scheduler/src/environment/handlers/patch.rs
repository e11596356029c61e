//! Changing an environment. A new network policy is stored first, and then applied to the running box
//! before the answer.
//!
//! * I1. The row records that its policy is not applied yet. When this process is killed in between,
//!   or the cluster does not answer, the reconcile of the environment applies it.
//! * I2. Changes that wait for their clusters are bounded, for each owner and in total
//!   ([`super::policy_changes`]).

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_contracts::environment::Status;
use agentbox_contracts::environment::rpc::{PatchReply, PatchRequest};
use agentbox_contracts::error::{Error, ErrorCode};
use agentbox_contracts::labels::check_labels;
use agentbox_runtime::{PolicyApplication, RuntimeError};
use chrono::Utc;

use super::{Environments, MAX_ATTEMPTS, contended};
use crate::environment::reconcile::call_runtime;
use crate::environment::record::Record;
use crate::environment::request;
use crate::environment::spec::box_spec;
use crate::environment::state::{EndReason, patch_refusal};
use crate::environment::store::{Patch, StoreError};

/// How long a PATCH waits for its network policy. Below the gateway's deadline, and above the five
/// seconds that Kubernetes may take to enforce a policy.
const APPLY_TIMEOUT: Duration = Duration::from_secs(8);

/// The public error when a stored policy could not be applied yet.
fn not_applied(cause: &str) -> Error {
    Error::new(
        ErrorCode::Unavailable,
        format!(
            "the network policy is stored, but not in force yet: {cause}; it will be applied, and \
             the same request waits for it again"
        ),
    )
}

/// Checks the fields of a PATCH.
fn validate(request: &PatchRequest) -> Result<(), Error> {
    if let Some(name) = &request.name {
        request::name(name)?;
    }
    if let Some(labels) = &request.labels {
        check_labels("labels", labels)?;
    }
    if let Some(seconds) = request.timeout_s {
        request::timeout(seconds)?;
    }
    if let Some(Some(seconds)) = request.idle_timeout_s {
        request::idle_timeout(seconds)?;
    }
    if let Some(policy) = &request.network_policy {
        request::network_policy(policy)?;
    }
    Ok(())
}

impl Environments {
    /// Changes the name, the labels, the timeouts or the network policy of an environment.
    ///
    /// # Errors
    /// `Validation`, `NotFound`; `Conflict` when it is terminating or has ended; `Unavailable` when
    /// the change is stored, and its network policy could not be applied yet.
    pub async fn patch(&self, request: PatchRequest) -> Result<PatchReply, Error> {
        validate(&request)?;
        let patch = Patch {
            name: request.name,
            labels: request.labels,
            timeout_s: request.timeout_s,
            idle_timeout_s: request.idle_timeout_s,
            network_policy: request.network_policy,
        };
        for _ in 0..MAX_ATTEMPTS {
            let before = self.find(&request.id).await?;
            if let Some(reason) = patch_refusal(before.environment.status) {
                return Err(Error::new(ErrorCode::Conflict, reason));
            }
            if patch == Patch::default() {
                return self.patched(&before, None);
            }
            let now = Utc::now();
            let after = match self.inner().store.patch(&before, &patch, now).await {
                Err(StoreError::Fenced) => continue,
                outcome => outcome?,
            };
            self.inner().outbox.wake(&request.id);
            // A timeout in the past ends the environment now, not at the next sweep.
            if after.environment.expires_at <= now {
                let ending = self.end(after, EndReason::Expired, false).await?;
                return self.patched(&ending, None);
            }
            // A pending environment starts with its new policy.
            let is_running = after.environment.status == Status::Running;
            let applied = match &patch.network_policy {
                Some(_) if is_running => Some(self.apply_network_policy(&after).await?),
                _ => None,
            };
            return self.patched(&after, applied);
        }
        Err(contended())
    }

    fn patched(
        &self,
        record: &Record,
        network_policy_applied: Option<bool>,
    ) -> Result<PatchReply, Error> {
        Ok(PatchReply {
            environment: self.reply(record)?,
            network_policy_applied,
        })
    }

    /// Applies the network policy of a running environment. Returns whether it was seen in force.
    async fn apply_network_policy(&self, record: &Record) -> Result<bool, Error> {
        let inner = self.inner();
        let environment = &record.environment;
        let begun = inner.policy_changes.begin(&environment.owner);
        let _place = begun.map_err(|bound| not_applied(&bound))?;
        let Some(cluster) = inner.clusters.get(&environment.cluster) else {
            return Err(not_applied("its cluster is not configured"));
        };
        // The variables of the box are sealed in the record, and not needed here.
        let spec = box_spec(
            environment,
            record.quantities,
            cluster,
            &inner.settings.boxes,
        )
        .map_err(|error| {
            tracing::error!(error = %ErrorChain(&error), environment.id = %environment.id, "box spec not built");
            Error::internal()
        })?;
        let applying = call_runtime(cluster, "apply_network_policy", |runtime| {
            runtime.apply_network_policy(&spec, environment.generation)
        });
        let application = match tokio::time::timeout(APPLY_TIMEOUT, applying).await {
            Ok(Ok(application)) => application,
            Ok(Err(RuntimeError::Fenced { .. })) => return Err(contended()),
            Ok(Err(error)) => {
                tracing::info!(error = %ErrorChain(&error), environment.id = %environment.id, "network policy not applied; retried");
                return Err(not_applied(&error.user_message()));
            }
            Err(_) => return Err(not_applied("the cluster does not answer")),
        };
        match inner.store.mark_network_policy_applied(record).await {
            // Another change came first. The next reconcile applies the policy once more.
            Ok(_) | Err(StoreError::Fenced) => {}
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), environment.id = %environment.id, "application of a network policy not recorded; it is repeated");
            }
        }
        Ok(application == PolicyApplication::Confirmed)
    }
}
