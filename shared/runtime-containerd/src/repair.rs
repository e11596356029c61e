//! Restores lost firewall rules.
//!
//! A host's firewall service may flush every table when it restarts, and boxes would be open.
//! Every few seconds one replica compares the running boxes with the boxes that have rules.

use std::time::Duration;

use agentbox_contracts::ErrorChain;
use agentbox_runtime::RuntimeError;

use crate::box_state::{BoxLock, BoxState};
use crate::context::Context;

/// The pause between two checks: boxes may be open a little longer than this.
pub const INTERVAL: Duration = Duration::from_secs(2);

impl Context {
    /// Installs the rules of running boxes that have none. `_lead` proves that no other replica
    /// does the same. An error of one box is logged and does not affect the others.
    pub async fn repair_firewall(&self, _lead: &BoxLock) -> Result<(), RuntimeError> {
        // In this order: a box that is listed as running already had its rules.
        let running = self.all_objects().await?;
        let installed = self.firewall.own_boxes().await?;
        for (id, objects) in running {
            if installed.contains(&id) || !objects.is_running() {
                continue;
            }
            let lock = self.states.lock(&id, self.config.call_deadline()).await?;
            // Read again under the lock: it may have been stopped or removed meanwhile.
            if !self.objects(&id).await?.is_running() {
                continue;
            }
            let state = self.states.load(&id).await?;
            if let Some(BoxState {
                network: Some(network),
                policy: Some(policy),
                ..
            }) = state
            {
                tracing::warn!(environment.id = %id, "found a running box without firewall rules");
                if let Err(error) = self.firewall.install(&id, &network, &policy).await {
                    tracing::error!(
                        error = %ErrorChain(&error),
                        environment.id = %id,
                        "could not restore the firewall rules of a box"
                    );
                }
            }
            drop(lock);
        }
        Ok(())
    }
}
