//! Restores lost firewall rules.
//!
//! A host's firewall service may flush every table when it restarts, and boxes would be open.
//! Every few seconds one replica compares the running boxes with the boxes that have rules.
//!
//! * I1. An error of one box is logged, and that box is tried again with growing pauses. The others
//!   are not affected.
//! * I2. No box is waited for: a box whose lock is held is changing, and the next check sees it.

use std::time::{Duration, Instant};

use agentbox_contracts::ErrorChain;
use agentbox_contracts::ids::EnvironmentId;
use agentbox_runtime::{Retries, RuntimeError};

use crate::box_state::{BoxLock, BoxState, StateError};
use crate::context::Context;

/// The pause between two checks: boxes may be open a little longer than this.
pub const INTERVAL: Duration = Duration::from_secs(2);

impl Context {
    /// Installs the rules of running boxes that have none. `_lead` proves that no other replica
    /// does the same.
    ///
    /// # Errors
    /// When the boxes or the rules cannot be listed.
    pub async fn repair_firewall(
        &self,
        _lead: &BoxLock,
        retries: &mut Retries,
    ) -> Result<(), RuntimeError> {
        // In this order: a box that is listed as running already had its rules.
        let running = self.all_objects().await?;
        let installed = self.firewall.own_boxes().await?;
        retries.retain(|id| running.contains_key(id));
        for (id, objects) in running {
            if installed.contains(&id) || !objects.is_running() {
                retries.succeeded(&id);
                continue;
            }
            if !retries.is_due(&id, Instant::now()) {
                continue;
            }
            match self.restore_rules(&id).await {
                Ok(()) => retries.succeeded(&id),
                Err(error) => {
                    let pause = retries.failed(&id, Instant::now());
                    tracing::error!(
                        error = %ErrorChain(&error),
                        environment.id = %id,
                        retry_after = ?pause,
                        "could not restore the firewall rules of a box"
                    );
                }
            }
        }
        Ok(())
    }

    /// Installs the rules of a box, unless it was stopped, removed or is changing now.
    async fn restore_rules(&self, id: &EnvironmentId) -> Result<(), RuntimeError> {
        let _lock = match self.states.lock(id, Duration::ZERO).await {
            Ok(lock) => lock,
            Err(StateError::Locked(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // Read again under the lock: it may have been stopped or removed meanwhile.
        if !self.objects(id).await?.is_running() {
            return Ok(());
        }
        let Some(BoxState {
            network: Some(network),
            policy: Some(policy),
            ..
        }) = self.states.load(id).await?
        else {
            return Ok(());
        };
        tracing::warn!(environment.id = %id, "found a running box without firewall rules");
        self.firewall.install(id, &network, &policy).await?;
        Ok(())
    }
}
